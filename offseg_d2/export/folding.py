"""Constants of an ONNX model folded, batch norms merged into convolutions: by onnxruntime.

PyTorch's exporter writes every constant, and zero biases of convolutions, as results of operators;
those keep onnxruntime from merging batch norms when it loads the file, and a quantiser from seeing
a convolution as one. onnxruntime's basic level folds them within seconds and leaves standard
operators only.
"""

import os
import tempfile
from typing import Any

from offseg_d2.export.sessions import require

# A result stays computed if it is larger: positions of pixels, masks of windows, biases looked up
# in a table. A file is then about as large as the weights; loading it folds the rest in memory.
MAX_BYTES = 65536
_PASSES = 2  # constants first; what they kept from being merged is merged in the second


def fold(model: Any) -> Any:
    """An ``onnx.ModelProto`` that computes the same with fewer operators.

    Raises:
        OSError: the folder for temporary files does not take it.
    """
    onnx, onnxruntime = require("onnx"), require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    # The exporter's own way (`optimize=True`, onnxscript's optimizer) makes as small a file, but
    # takes minutes for an OffSeg model.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry(
        "optimization.constant_folding_max_output_size_in_bytes", str(MAX_BYTES)
    )
    with tempfile.TemporaryDirectory() as folder:
        for number in range(_PASSES):
            path = options.optimized_model_filepath = os.path.join(folder, f"{number}.onnx")
            try:
                onnxruntime.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # of a type that its interface does not name
                if not os.path.exists(path):
                    raise
                raise OSError(
                    f"`{folder}`, in the folder for temporary files, must take the model, but "
                    f"onnxruntime could not write it: {error}"
                ) from error
            model = onnx.load(path)
    return model
