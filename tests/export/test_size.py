"""Exported files hold weights, not what follows from them."""

import numpy as np
import pytest
import torch

from offseg_d2.export.compact import compact
from offseg_d2.export.folding import fold
from offseg_d2.modeling.backbone.efficientformer_v2_attention import AttentionBias
from tests.export.tiny import tiny

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

ALLOWED = 1.15  # bytes of a file's tensors for each byte of weights
FEW = 16_384  # bytes of small constants: sizes, axes, signs


def tensor_bytes(path) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)


def weight_bytes(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def run(model, image: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"image": image})[0]


def spreading_graph():
    """image (4, 64, 64) + a table read at many places + zeros, times a transposed weight."""
    constant = onnx.numpy_helper.from_array
    random = np.random.default_rng(0)
    initializers = [
        constant(random.random((4, 16), dtype=np.float32), "table"),
        constant(np.arange(64)[:, None] // 8, "row"),
        constant(np.arange(64)[None] // 8, "column"),
        constant(np.float32(0), "zero"),
        constant(np.array([4, 64, 64]), "shape"),
        constant(random.random((64, 64), dtype=np.float32), "weight"),
    ]
    make = onnx.helper.make_node
    nodes = [
        make("Add", ["row", "column"], ["places"]),
        make("Gather", ["table", "places"], ["biases"], axis=1),
        make("Expand", ["zero", "shape"], ["zeros"]),
        make("Add", ["image", "biases"], ["biased"]),
        make("Add", ["biased", "zeros"], ["same"]),
        make("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        make("MatMul", ["same", "turned"], ["out"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 64, 64])
        for name in ("image", "out")
    ]
    graph = onnx.helper.make_graph(nodes, "spreading", ends[:1], ends[1:], initializers)
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)


def test_what_spreads_out_stays_computed_and_the_rest_is_folded():
    image = np.random.default_rng(1).random((4, 64, 64), dtype=np.float32)
    expected = run(spreading_graph(), image)
    folded = fold(spreading_graph())
    assert np.array_equal(run(folded, image), expected)
    assert [entry.name for entry in folded.graph.input] == ["image"]
    operators = [node.op_type for node in folded.graph.node]
    assert "Gather" in operators and "Transpose" not in operators
    sizes = [np.prod(tensor.dims) for tensor in folded.graph.initializer]
    assert max(sizes) == 64 * 64  # the weight


def test_places_of_attention_biases_are_worked_out_from_distances():
    model, _ = tiny("offseg")
    biases = [module for module in model.modules() if isinstance(module, AttentionBias)]
    before = [bias.indices.clone() for bias in biases]
    compact(model)
    assert len(biases) == 3
    for bias, places in zip(biases, before, strict=True):
        assert torch.equal(bias.indices, places)
        stored = sum(buffer.numel() for buffer in bias.buffers())
        assert stored**2 == places.numel()


def test_a_file_is_about_as_large_as_the_weights(dynamic_onnx, fixed_onnx):
    for model, path, _ in (dynamic_onnx, fixed_onnx):
        assert tensor_bytes(path) <= ALLOWED * weight_bytes(model)
