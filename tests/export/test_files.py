"""Exported files: what they compute, what they say, how large they are; what is not written."""

import dataclasses
import zipfile

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import offseg_d2.export.onnx_file
from offseg_d2.export import (
    Comparison,
    ExportMismatchError,
    SegmentationGraph,
    compare,
    export_onnx,
    export_torch,
    load_torch,
    open_session,
    prepare_export,
    sample_images,
)
from offseg_d2.export.check import THRESHOLDS, Tolerance
from offseg_d2.export.description import KEY, ModelDescription
from offseg_d2.export.folding import fold
from tests.common import assert_close, offseg_config, seed_all
from tests.export.tiny import CLASSES, COLORS, METADATA, prepared

ROUNDING = {"tolerance": 1e-4, "reason": "onnxruntime sums in another order"}


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


def open_file(path):
    return open_session(path.read_bytes(), str(path))


@torch.no_grad()
@pytest.mark.parametrize("file", ["dynamic_onnx", "dynamic_torch"])
@pytest.mark.parametrize(("batch", "size"), [(1, (64, 160)), (3, (96, 64))])
def test_a_dynamic_file_is_the_model_at_other_sizes_and_batches(file, batch, size, request):
    model, path, _ = request.getfixturevalue(file)
    images = sample_images(batch, size, torch.float32, seed=7)
    expected = torch.stack([x["sem_seg"] for x in model([{"image": i} for i in images])])
    if file == "dynamic_torch":
        logits = load_torch(str(path))[0](images)
        assert_close(logits, expected)
    else:
        (logits,) = open_file(path).run(images)
        assert_close(logits, expected, **ROUNDING)
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.9999


def test_a_fixed_file_pads_inside_and_gives_the_labels_of_the_model(fixed_onnx):
    model, path, _ = fixed_onnx
    images = sample_images(2, (70, 90), torch.uint8, seed=7)
    (labels,) = open_file(path).run(images)
    expected = model.predict_label_maps([{"image": image} for image in images])
    assert labels.dtype == torch.uint8 and labels.shape == (2, 70, 90)
    assert len(labels.unique()) > 1
    assert (labels == torch.stack([x["sem_seg"] for x in expected])).float().mean() > 0.9999


@pytest.mark.parametrize("file", ["dynamic_onnx", "dynamic_torch"])
def test_the_file_says_what_it_is_and_how_close(file, request):
    _, path, comparison = request.getfixturevalue(file)
    if file == "dynamic_torch":
        _, description = load_torch(str(path))
    else:
        description = ModelDescription.from_json(open_file(path).metadata[KEY], str(path))
    assert description.classes == CLASSES and description.colors == COLORS
    assert description.max_difference == comparison.max_difference < 1e-3
    assert description.label_agreement == comparison.label_agreement > 0.9999


def test_a_file_has_one_output_and_the_axes_that_may_change(onnx, dynamic_onnx, fixed_onnx):
    graph = onnx.load(dynamic_onnx[1]).graph
    assert [output.name for output in graph.output] == ["logits"]
    assert [output.name for output in onnx.load(fixed_onnx[1]).graph.output] == ["labels"]
    axes = graph.input[0].type.tensor_type.shape.dim
    assert [bool(axis.dim_param) for axis in axes] == [True, False, True, True]


def test_scores_are_reported_only_where_there_are_some():
    scores = Comparison(max_difference=1e-6, max_score=3.2, label_agreement=1.0, images=2)
    assert str(scores).startswith("largest difference 1.00e-06 of scores up to 3.2, same labels at")
    labels = dataclasses.replace(scores, max_difference=0.0, max_score=0.0)
    assert str(labels) == "same labels at 100.0000 % of the pixels, 2 images"


@pytest.mark.parametrize("export", [export_onnx, export_torch])
def test_a_file_that_disagrees_is_not_written(export, tmp_path, monkeypatch, request):
    if export is export_onnx:  # what is built already
        built = request.getfixturevalue("onnx").load(request.getfixturevalue("dynamic_onnx")[1])
        monkeypatch.setattr(offseg_d2.export.onnx_file, "build_onnx", lambda *_: built)
    monkeypatch.setattr(SegmentationGraph, "tolerance", Tolerance(1.0, agreement=1.01))
    _, graph, description = prepared("convs", size=(64, 64), batch=1)
    with pytest.raises(ExportMismatchError, match="model` is not written, as it differs"):
        export(graph, description, str(tmp_path / "model"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "rounding", "thresholds"),
    [(1.0, True, True), (1.01, False, True), (1.1, False, False), (torch.nan, False, False)],
)
def test_scores_are_close_within_the_tolerance(other, rounding, thresholds):
    def scores(value: float):
        return lambda _: (torch.full((1, 2, 4, 4), value), torch.zeros(1, 4, 4))

    images = torch.zeros(1, 3, 4, 4)
    assert compare(scores(1.0), scores(other), [images]).is_close == rounding
    assert compare(scores(1.0), scores(other), [images], THRESHOLDS).is_close == thresholds


def spreading_graph(onnx):
    """image (256, 256) + a table read at many positions, times a transposed weight."""
    constant, make = onnx.numpy_helper.from_array, onnx.helper.make_node
    random = np.random.default_rng(0)
    initializers = [
        constant(random.random(64, dtype=np.float32), "table"),
        constant(np.arange(256)[:, None] // 8, "row"),
        constant(np.arange(256)[None] // 8, "column"),
        constant(random.random((32, 256), dtype=np.float32), "weight"),
    ]
    nodes = [
        make("Add", ["row", "column"], ["positions"]),
        make("Gather", ["table", "positions"], ["biases"]),
        make("Add", ["image", "biases"], ["biased"]),
        make("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        make("MatMul", ["biased", "turned"], ["out"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [256, columns])
        for name, columns in (("image", 256), ("out", 32))
    ]
    graph = onnx.helper.make_graph(nodes, "spreading", ends[:1], ends[1:], initializers)
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)


def test_large_results_stay_computed_and_the_rest_is_folded(onnx, monkeypatch):
    image = sample_images(1, (256, 256), torch.float32)[0, 0]
    folded = fold(spreading_graph(onnx))
    expected, result = (
        open_session(model.SerializeToString(), "x.onnx").run(image)[0]
        for model in (spreading_graph(onnx), folded)
    )
    assert torch.equal(result, expected)
    operators = [node.op_type for node in folded.graph.node]
    assert "Gather" in operators and "Transpose" not in operators
    monkeypatch.setattr("offseg_d2.export.folding.MAX_BYTES", 1 << 30)
    assert "Gather" not in [node.op_type for node in fold(spreading_graph(onnx)).graph.node]


def test_a_file_is_about_as_large_as_the_weights(onnx, dynamic_onnx, fixed_onnx):
    for model, path, _ in (dynamic_onnx, fixed_onnx):
        stored = sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)
        assert stored <= 1.15 * weight_bytes(model)


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["offseg_t", "segformer_b0", "segnext_t"])
def test_files_of_the_authors_models_are_at_most_a_fifth_larger_than_the_weights(
    onnx, name, tmp_path
):
    seed_all()
    cfg = offseg_config("MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(CLASSES), model=name)
    model = build_model(cfg).eval()
    path = tmp_path / "model.onnx"
    export_onnx(*prepare_export(model, cfg, METADATA, size=(512, 512), batch=1), str(path))
    assert path.stat().st_size <= 1.2 * weight_bytes(model)


@pytest.mark.parametrize("kind", ["text", "zip"])
def test_other_archives_are_refused_unopened(kind, tmp_path, monkeypatch):
    path = tmp_path / "other.pt2"
    path.write_bytes(b"no archive")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data/sample_inputs/model.pt", b"what would run")
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=r"other\.pt2` must be an archive by `offseg export`"):
        load_torch(str(path))
