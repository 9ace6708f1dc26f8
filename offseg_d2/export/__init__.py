"""Models as files for other runtimes: ONNX, int8 ONNX, ``torch.export``."""

from offseg_d2.export.build import prepare_export
from offseg_d2.export.check import Comparison, ExportMismatchError, compare, sample_images
from offseg_d2.export.description import INPUT_TYPES, OUTPUTS, ModelDescription
from offseg_d2.export.graph import SegmentationGraph
from offseg_d2.export.onnx_file import export_onnx
from offseg_d2.export.quantisation import calibration_images, quantise
from offseg_d2.export.sessions import RUNTIMES, open_session
from offseg_d2.export.torch_program import export_torch, load_torch

__all__ = [
    "INPUT_TYPES",
    "OUTPUTS",
    "RUNTIMES",
    "Comparison",
    "ExportMismatchError",
    "ModelDescription",
    "SegmentationGraph",
    "calibration_images",
    "compare",
    "export_onnx",
    "export_torch",
    "load_torch",
    "open_session",
    "prepare_export",
    "quantise",
    "sample_images",
]
