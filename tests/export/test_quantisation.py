"""Int8 files: what is quantised, what the file says, what is refused."""

import numpy as np
import pytest

import offseg_d2.export.quantisation
from offseg_d2.data.datasets import ShapesParams, register_shapes
from offseg_d2.export import ExportMismatchError, calibration_images, quantise
from offseg_d2.export.check import Tolerance
from offseg_d2.inference.onnx import OnnxSegmenter
from tests.export.tiny import picture

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def inputs(dynamic_onnx):
    segmenter = OnnxSegmenter(str(dynamic_onnx[1]))
    return [x for seed in range(4) for x in segmenter.network_inputs(picture(64, 96, seed))]


def test_convolutions_become_int8_with_a_scale_per_channel(dynamic_onnx, inputs, tmp_path):
    path = tmp_path / "int8.onnx"
    comparison = quantise(str(dynamic_onnx[1]), str(path), inputs)
    graph = onnx.load(path).graph
    weights = {x.name: x for x in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    pairs = [
        [producers[x] for x in node.input[:2]] for node in graph.node if node.op_type == "Conv"
    ]
    assert {node.op_type for pair in pairs for node in pair} == {"DequantizeLinear"}
    own = [weight for _, weight in pairs if weight.input[0] in weights]
    assert len(own) >= 8  # others are cut out of one that several convolutions share
    for weight in own:
        assert weights[weight.input[0]].data_type == onnx.TensorProto.INT8
        out_channels = weights[weight.input[0]].dims[0]
        assert list(weights[weight.input[1]].dims) == [out_channels]
    assert comparison.max_difference > 0
    segmenter = OnnxSegmenter(str(path))
    assert segmenter.description.precision == "int8"
    assert segmenter.description.label_agreement == comparison.label_agreement
    image = picture(64, 96)
    reference = OnnxSegmenter(str(dynamic_onnx[1])).label_map(image)
    assert np.mean(segmenter.label_map(image) == reference) > 0.8


def test_a_broken_int8_file_is_not_written(dynamic_onnx, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(offseg_d2.export.quantisation, "INT8", Tolerance(1.0, agreement=1.01))
    with pytest.raises(ExportMismatchError, match=r"int8\.onnx` is not written, as it differs"):
        quantise(str(dynamic_onnx[1]), str(tmp_path / "int8.onnx"), inputs[:1])
    assert not list(tmp_path.iterdir())


def test_calibration_spreads_over_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_shapes("calibration", ShapesParams(num_train=5, num_val=1, size=(64, 96)))
    every = list(calibration_images("calibration_train", 9))
    chosen = list(calibration_images("calibration_train", 2))
    assert [x.shape for x in every] == [(64, 96, 3)] * 5
    assert np.array_equal(chosen, [every[0], every[2]])
    with pytest.raises(ValueError, match="`--calibration-images` must be at least 1, but is 0"):
        list(calibration_images("calibration_train", 0))
