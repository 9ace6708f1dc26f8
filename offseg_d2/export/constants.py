"""Which constants of an ONNX graph stay computed, so that a file is as small as its weights.

Folding constants replaces operators on constants by their results. That makes a file large where
a result is larger than what it is made of: positions of pixels, masks of windows, biases looked up
in a table, zeros. Such operators are told apart here and given one input that may change for all
that the folding knows. Whoever loads the file folds them in memory, so that nothing is lost.
"""

from typing import Any

import numpy as np

from offseg_d2.export.requirements import require

SMALL = 4096  # bytes; results up to this size are folded in any case
_SUFFIX = "_kept"


def hold_large_results(model: Any) -> list[str]:
    """Keep operators from being folded whose constant results are larger than their inputs.

    Args:
        model: an ``onnx.ModelProto``, its operators in order; changed in place.

    Returns:
        names of the inputs added for that, to be taken away by :func:`let_go`.
    """
    onnx = require("onnx")
    graph = model.graph
    values = _constants(model)
    held: list[str] = []
    changing: set[str] = set()  # results of what is held, and what follows from them
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if not all(name in values for name in inputs) or node.output[0] not in values:
            continue
        size = sum(values[name].nbytes for name in node.output if name)
        large = size > max(SMALL, sum(values[name].nbytes for name in inputs))
        if not changing.intersection(inputs):
            if not large or not inputs:
                continue
            name = f"{node.output[0]}{_SUFFIX}"
            tensor = onnx.numpy_helper.from_array(values[inputs[0]], name)
            graph.initializer.append(tensor)
            dims = list(tensor.dims)
            graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, dims))
            node.input[list(node.input).index(inputs[0])] = name
            held.append(name)
        changing.update(node.output)
    return held


def let_go(model: Any, held: list[str]) -> None:
    """Make constants again of the inputs that :func:`hold_large_results` added."""
    names = set(held)
    for entry in [entry for entry in model.graph.input if entry.name in names]:
        model.graph.input.remove(entry)


def _constants(model: Any) -> dict[str, np.ndarray]:
    """Values of all initializers, and of all tensors that follow from them."""
    onnx = require("onnx")
    graph = model.graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    known, nodes = set(values), []
    for node in graph.node:
        if _may_be_constant(node) and all(name in known for name in node.input if name):
            known.update(node.output)
            nodes.append(node)
    made = [name for node in nodes for name in node.output if name]
    used = {name for node in nodes for name in node.input}
    part = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "constants",
            [],
            [onnx.helper.make_empty_tensor_value_info(name) for name in made],
            [t for t in graph.initializer if t.name in used],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    if made:
        session = _session(part)
        values |= dict(zip(made, session.run(made, {}), strict=True))
    return values


def _may_be_constant(node: Any) -> bool:
    """Standard operators on tensors without parts of their own or random numbers."""
    plain = node.domain == "" and not any(a.HasField("g") or a.graphs for a in node.attribute)
    return plain and "Sequence" not in node.op_type and "Random" not in node.op_type


def _session(model: Any) -> Any:
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
