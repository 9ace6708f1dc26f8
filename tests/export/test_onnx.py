"""ONNX files in onnxruntime against PyTorch; the segmenter against the model."""

import dataclasses

import numpy as np
import pytest
import torch

import offseg_d2.export.onnx_file
from offseg_d2.export import (
    Comparison,
    ExportMismatchError,
    OnnxSegmenter,
    compare,
    export_onnx,
    sample_images,
)
from offseg_d2.export.check import THRESHOLDS
from offseg_d2.export.description import KEY
from offseg_d2.export.runtime import open_session
from offseg_d2.modeling.meta_arch import predict
from tests.common import assert_close
from tests.export.test_size import ALLOWED, FEW, tensor_bytes, weight_bytes
from tests.export.tiny import CLASSES, COLORS, picture, prepared, record

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

ROUNDING = {"tolerance": 1e-4, "reason": "onnxruntime sums in another order"}


def run(path, images: torch.Tensor) -> torch.Tensor:
    session = open_session(path.read_bytes(), str(path))
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


@pytest.mark.parametrize(("batch", "size"), [(1, (64, 160)), (3, (96, 64))])
def test_a_dynamic_file_is_the_model_at_other_sizes_and_batches(dynamic_onnx, batch, size):
    model, path, _ = dynamic_onnx
    images = sample_images(batch, size, torch.float32, seed=7)
    with torch.no_grad():
        expected = torch.stack([x["sem_seg"] for x in model([{"image": i} for i in images])])
    logits = run(path, images)
    assert_close(logits, expected, **ROUNDING)
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.9999


def test_a_fixed_file_pads_inside_and_gives_the_labels_of_the_model(fixed_onnx):
    model, path, _ = fixed_onnx
    images = sample_images(2, (70, 90), torch.uint8, seed=7)
    labels = run(path, images)
    expected = model.predict_label_maps([{"image": image} for image in images])
    assert labels.dtype == torch.uint8 and labels.shape == (2, 70, 90)
    assert len(labels.unique()) > 1
    assert (labels == torch.stack([x["sem_seg"] for x in expected])).float().mean() > 0.9999


def test_the_file_says_what_it_is_and_how_close(dynamic_onnx, fixed_onnx):
    _, path, comparison = dynamic_onnx
    description = OnnxSegmenter(str(path)).description
    assert description.classes == CLASSES and description.colors == COLORS
    assert description.max_difference == comparison.max_difference < 1e-3
    assert description.label_agreement == comparison.label_agreement > 0.9999
    graph = onnx.load(path).graph
    assert [output.name for output in graph.output] == ["logits"]
    assert [output.name for output in onnx.load(fixed_onnx[1]).graph.output] == ["labels"]
    axes = graph.input[0].type.tensor_type.shape.dim
    assert [bool(axis.dim_param) for axis in axes] == [True, False, True, True]


def test_scores_are_told_only_where_there_are_some():
    scores = Comparison(max_difference=1e-6, max_score=3.2, label_agreement=1.0, images=2)
    assert str(scores).startswith("largest difference 1.00e-06 of scores up to 3.2, same labels at")
    labels = dataclasses.replace(scores, max_difference=0.0, max_score=0.0)
    assert str(labels) == "same labels at 100.0000 % of the pixels, 2 images"


def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch, dynamic_onnx):
    bad = Comparison(max_difference=1.0, max_score=1.0, label_agreement=0.5, images=1)
    monkeypatch.setattr(offseg_d2.export.onnx_file, "compare", lambda *_: bad)
    built = onnx.load(dynamic_onnx[1])
    monkeypatch.setattr(offseg_d2.export.onnx_file, "build_onnx", lambda *_: built)
    _, graph, description = prepared("convs", size=(64, 64), batch=1)
    with pytest.raises(ExportMismatchError, match=r"model\.onnx` is not written, as it differs"):
        export_onnx(graph, description, str(tmp_path / "model.onnx"))
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_a_disagreement():
    images = torch.zeros(1, 3, 4, 4)

    def scores(value: float):
        return lambda _: (torch.full((1, 2, 4, 4), value), torch.zeros(1, 4, 4))

    assert compare(scores(1.0), scores(1.0), [images]).is_close
    assert not compare(scores(1.0), scores(torch.nan), [images]).is_close
    assert not compare(scores(1.0), scores(1.01), [images]).is_close
    assert compare(scores(1.0), scores(1.01), [images], THRESHOLDS).is_close
    assert not compare(scores(1.0), scores(1.1), [images], THRESHOLDS).is_close


@torch.no_grad()
def test_the_segmenter_predicts_images_of_any_size_as_the_model_does(dynamic_onnx):
    model, path, _ = dynamic_onnx
    segmenter = OnnxSegmenter(str(path))
    image = picture(64, 96)
    assert_close(segmenter(image), model([record(image)])[0]["sem_seg"], **ROUNDING)
    # The file takes multiples of 32 only: what the model does if told to pad so.
    padding, _, _ = prepared("convs", "TEST.SEM_SEG.SIZE_DIVISIBILITY", 32, output="logits")
    padding.load_state_dict(model.state_dict())
    image = picture(64, 90)
    scores = segmenter(image)
    assert_close(scores, padding([record(image)])[0]["sem_seg"], **ROUNDING)
    assert np.array_equal(segmenter.label_map(image), scores.argmax(0).numpy())
    large = picture(129, 181)
    assert segmenter(large).shape == (5, 129, 181)
    assert segmenter.label_map(picture(20, 9)).shape == (20, 9)


@torch.no_grad()
def test_the_segmenter_slides_as_the_model_does(dynamic_onnx, tmp_path):
    model, path, _ = dynamic_onnx
    window = {"mode": "slide", "crop_size": (64, 64), "stride": (40, 48), "test_scale": (140, 100)}
    segmenter = OnnxSegmenter(str(path))
    segmenter.description = dataclasses.replace(segmenter.description, **window)
    slides, _, _ = prepared(
        "convs",
        *("TEST.SEM_SEG.MODE", "slide", "TEST.SEM_SEG.CROP_SIZE", [64, 64]),
        *("TEST.SEM_SEG.STRIDE", [40, 48]),
        output="logits",
    )
    slides.load_state_dict(model.state_dict())
    image = picture(100, 140)
    expected = slides([record(image)])[0]["sem_seg"]
    assert_close(segmenter(image), expected, **ROUNDING)
    assert (expected - model([record(image)])[0]["sem_seg"]).abs().max() > 1e-3
    assert len(torch.cat(segmenter.network_inputs(image))) == 6


def test_a_fixed_batch_and_label_maps_work_for_single_images(fixed_onnx):
    model, path, _ = fixed_onnx
    segmenter = OnnxSegmenter(str(path))
    image = picture(70, 90)
    expected = model.predict_label_maps([record(image)])[0]["sem_seg"].numpy()
    assert np.mean(segmenter.label_map(image) == expected) > 0.9999
    labels = segmenter.label_map(np.kron(image, np.ones((2, 2, 1), dtype=np.uint8)))
    assert labels.shape == (140, 180)
    assert np.mean(labels[::2, ::2] == expected) > 0.98
    with pytest.raises(ValueError, match="must be 'logits' to give scores, but is 'labels'"):
        segmenter(image)


def test_files_of_others_are_refused(tmp_path, fixed_onnx):
    path = tmp_path / "other.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"other\.onnx` must be an ONNX model"):
        OnnxSegmenter(str(path))
    model = onnx.load(fixed_onnx[1])
    assert model.metadata_props[0].key == KEY
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"other\.onnx` must be a model by tools/export_model"):
        OnnxSegmenter(str(path))
    with pytest.raises(OSError):
        OnnxSegmenter(str(tmp_path / "absent.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("output", ["labels", "logits"])
@pytest.mark.parametrize("size", [None, (70, 90)])
@pytest.mark.parametrize(
    "name", ["offseg", "segformer", "segnext", "mobilenet_v2", "mask_query", "swin"]
)
def test_every_host_is_exported(name, size, output, tmp_path):
    if name == "swin" and size is None:
        pytest.skip("Swin is exported for one size and batch only")
    batch = 1 if name == "swin" else None
    model, graph, description = prepared(name, size=size, batch=batch, output=output)
    path = tmp_path / "model.onnx"
    assert export_onnx(graph, description, str(path)).is_close
    assert tensor_bytes(path) <= ALLOWED * weight_bytes(model) + FEW


@pytest.mark.parametrize("file", ["dynamic_onnx", "fixed_onnx"])
def test_images_of_one_size_share_a_batch(file, request, monkeypatch):
    segmenter = OnnxSegmenter(str(request.getfixturevalue(file)[1]))
    images = [picture(64, 90), picture(40, 90), picture(64, 90)[::-1].copy(), picture(64, 90)]
    one_by_one = [segmenter.label_map(image) for image in images]
    batches = []
    run = segmenter._run
    monkeypatch.setattr(segmenter, "_run", lambda x: batches.append(tuple(x.shape)) or run(x))
    together = segmenter.label_maps(images)
    assert [labels.shape for labels in together] == [image.shape[:2] for image in images]
    for labels, expected in zip(together, one_by_one, strict=True):
        assert np.mean(labels == expected) > 0.999
    assert sorted(shape[0] for shape in batches) == [1, 3]
    assert segmenter.label_maps([]) == []


def test_sliding_windows_of_several_images_hold_the_scores_of_one(dynamic_onnx, monkeypatch):
    segmenter = OnnxSegmenter(str(dynamic_onnx[1]))
    window = {"mode": "slide", "crop_size": (64, 64), "stride": (40, 48), "test_scale": (140, 100)}
    segmenter.description = dataclasses.replace(segmenter.description, **window)
    images = [picture(100, 140), picture(100, 140)[::-1].copy(), picture(140, 100)]
    one_by_one = [segmenter.label_map(image) for image in images]
    together = []

    def counted(run, batch, settings):
        together.append(len(batch))
        return predict(run, batch, settings)

    monkeypatch.setattr("offseg_d2.export.runtime.predict", counted)
    for labels, expected in zip(segmenter.label_maps(images), one_by_one, strict=True):
        assert np.array_equal(labels, expected)
    assert together == [1, 1, 1]
