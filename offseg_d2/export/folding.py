"""Constants of an ONNX model folded, batch norms merged into convolutions: by onnxruntime.

PyTorch's exporter writes every constant, and zero biases of convolutions as results of operators;
those keep onnxruntime from merging batch norms when it loads the file, and a quantiser from seeing
a convolution as one. PyTorch's own folding (``optimize=True``) takes minutes for these models and
fails where sizes are symbols; onnxruntime's basic level takes a second and leaves standard
operators only.
"""

import os
import tempfile

from offseg_d2.export.constants import hold_large_results, let_go
from offseg_d2.export.requirements import require

_PASSES = 2  # constants first; what they kept from being merged is merged in the second


def fold(model):
    """An ``onnx.ModelProto`` that computes the same with fewer operators.

    Results that are larger than what they are made of stay computed, see
    ``offseg_d2.export.constants``; the given model is changed for that.
    """
    onnx, onnxruntime = require("onnx"), require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    held = hold_large_results(model)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_PASSES):
            options.optimized_model_filepath = os.path.join(folder, f"{number}.onnx")
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            model = onnx.load(options.optimized_model_filepath)
    let_go(model, held)
    return model
