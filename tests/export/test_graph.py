"""The exported graph computes what the meta-architectures compute; descriptions are checked."""

import dataclasses

import pytest
import torch

from offseg_d2.deploy import optimize
from offseg_d2.export import ModelDescription, SegmentationGraph, prepare_export, sample_images
from tests.common import assert_close
from tests.export.tiny import CLASSES, COLORS, METADATA, prepared, tiny


@pytest.fixture(scope="module")
def swin():
    return tiny("swin")


@torch.no_grad()
@pytest.mark.parametrize("name", ["offseg", "segformer", "mask_query", "mobilenet_v2", "segnext"])
def test_the_graph_gives_scores_and_labels_of_the_model(name):
    model, graph, _ = prepared(name, size=(70, 90))
    images = sample_images(2, (70, 90), torch.float32)
    scores, labels = graph(images)
    expected = model([{"image": image} for image in images])
    assert_close(scores, torch.stack([x["sem_seg"] for x in expected]))
    assert torch.equal(labels.long(), scores.argmax(1))
    assert labels.dtype == torch.uint8
    assert name == "mask_query" or len(labels.unique()) > 1


@torch.no_grad()
def test_a_model_of_bgr_images_reads_rgb_through_the_graph():
    opts = ("INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0])
    model, graph, description = prepared("convs", *opts, size=(64, 64))
    images = sample_images(1, (64, 64), torch.uint8)
    assert_close(graph(images)[0][0], model([{"image": images[0].flip(0)}])[0]["sem_seg"])
    assert description.pixel_mean == (3.0, 2.0, 1.0)


@torch.no_grad()
def test_the_copy_draws_the_bases_of_the_decomposition_once():
    model, _ = tiny("segnext", "MODEL.LIGHT_HAM.RANDOM_BASES", True)
    graph = SegmentationGraph(model)
    images = sample_images(1, (64, 64), torch.float32)
    assert torch.equal(graph(images)[0], graph(images)[0])
    scores = [model([{"image": images[0]}])[0]["sem_seg"] for _ in range(2)]
    assert not torch.equal(*scores)


def test_the_model_itself_stays_as_it_was():
    model, cfg = tiny("convs")
    prepare_export(model, cfg, METADATA)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_description_survives_being_written():
    _, _, description = prepared("convs", output="logits", batch=2)
    assert description.classes == CLASSES and description.colors == COLORS
    assert description.size is None and description.multiple == 32
    assert ModelDescription.from_json(description.to_json(), "x.onnx") == description


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "odd": 2}'])
def test_an_unreadable_description_names_the_file(text):
    with pytest.raises(ValueError, match=r"`x\.onnx` must hold a description"):
        ModelDescription.from_json(text, "x.onnx")


def test_a_description_of_another_format_is_refused():
    _, _, description = prepared("convs")
    text = dataclasses.replace(description, format=2).to_json()
    with pytest.raises(ValueError, match="must have description format 1, but has 2"):
        ModelDescription.from_json(text, "x.onnx")


@pytest.mark.parametrize(
    ("opts", "options", "message"),
    [
        (("TEST.SEM_SEG.TTA.ENABLED", True), {}, "`TEST.SEM_SEG.TTA.ENABLED` must be False"),
        (
            (
                *("TEST.SEM_SEG.MODE", "slide", "TEST.SEM_SEG.CROP_SIZE", [64, 64]),
                *("TEST.SEM_SEG.STRIDE", [64, 64]),
            ),
            {"size": (64, 96), "output": "logits"},
            "must be that of a sliding window, 64 x 64 pixels",
        ),
        ((), {"size": (0, 96)}, "`size` must be two positive numbers"),
        ((), {"batch": 0}, "`batch` must be at least 1, but is 0"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(opts, options, message):
    with pytest.raises(ValueError, match=message):
        prepared("convs", *opts, **options)


@pytest.mark.parametrize("options", [{}, {"size": (64, 64)}, {"batch": 1}])
def test_a_swin_backbone_needs_a_fixed_size_and_batch(swin, options):
    with pytest.raises(ValueError, match="`size` and `batch` must be given to export a Swin"):
        prepare_export(*swin, METADATA, **options)


def test_label_maps_are_of_whole_images_also_where_windows_slide(caplog):
    opts = ("TEST.SEM_SEG.MODE", "slide")
    with caplog.at_level("WARNING", logger="offseg_d2"):
        _, _, description = prepared("convs", *opts, size=(70, 90))
    assert description.mode == "whole" and description.size == (70, 90)
    assert "label maps of whole images" in caplog.text
    caplog.clear()
    assert prepared("convs", *opts, output="logits")[2].mode == "slide"
    assert not caplog.text


def test_other_models_optimized_ones_and_models_in_training_are_refused():
    with pytest.raises(TypeError, match="must be a PerPixelSegmentor or a MaskSegmentor"):
        SegmentationGraph(torch.nn.Conv2d(3, 5, 1))
    model, _ = tiny("offseg")
    with pytest.raises(TypeError, match=r"but is the result of offseg_d2\.deploy\.optimize"):
        SegmentationGraph(optimize(model))
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        SegmentationGraph(model.train())
