"""Equivalent, faster models for prediction: ``optimize(model)``.

Batch norms become part of convolutions, convolutions of one input are merged, and modules are
replaced by faster formulations of the same mathematics, for the CPU. Results are those of the model
up to rounding. On 2 cores it is 1.4 times as fast as the best runtime on the model's ONNX file; the
other models gained less than 1.2 times so, and are exported instead (docs/BENCHMARKS.md).
"""

from offseg_d2.deploy.optimize import has_deployed_form, optimize

__all__ = ["has_deployed_form", "optimize"]
