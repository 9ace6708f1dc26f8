"""Models as files for other runtimes: ONNX, int8 ONNX, ``torch.export``."""

from offseg_d2.export.build import prepare_export
from offseg_d2.export.check import Comparison, ExportMismatchError, compare, sample_images
from offseg_d2.export.description import INPUT_TYPES, OUTPUTS, ModelDescription
from offseg_d2.export.graph import SegmentationGraph
from offseg_d2.export.onnx_file import export_onnx
from offseg_d2.export.quantisation import calibration_inputs, quantise
from offseg_d2.export.runtime import OnnxSegmenter
from offseg_d2.export.torch_program import export_torch, load_torch

__all__ = [
    "INPUT_TYPES",
    "OUTPUTS",
    "Comparison",
    "ExportMismatchError",
    "ModelDescription",
    "OnnxSegmenter",
    "SegmentationGraph",
    "calibration_inputs",
    "compare",
    "export_onnx",
    "export_torch",
    "load_torch",
    "prepare_export",
    "quantise",
    "sample_images",
]
