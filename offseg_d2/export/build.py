"""From a model and its configuration to what the writers of files take."""

import dataclasses
import math

from detectron2.config import CfgNode
from detectron2.data import Metadata
from torch import nn

from offseg_d2.export.description import ModelDescription, describe
from offseg_d2.export.graph import SegmentationGraph, exportable_copy, size_multiple
from offseg_d2.modeling import Swin

LEAST_MULTIPLE = 32  # sizes that may change are multiples of the coarsest stride at least


def prepare_export(
    model: nn.Module,
    cfg: CfgNode,
    metadata: Metadata,
    *,
    output: str = "labels",
    input_type: str = "float32",
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> tuple[SegmentationGraph, ModelDescription]:
    """Check what is asked for and build the graph and its description.

    Args:
        model: meta-architecture of this package in evaluation mode; it is copied.
        cfg: its configuration.
        metadata: of its dataset, with "stuff_classes".
        output: "labels" or "logits".
        input_type: "float32" or "uint8".
        size: (height, width) of all images; None lets it change from call to call.
        batch: images at once; None lets it change.

    Raises:
        TypeError, ValueError: if the model cannot be exported that way.
    """
    slides = cfg.TEST.SEM_SEG.MODE == "slide"
    window = tuple(cfg.TEST.SEM_SEG.CROP_SIZE)
    if (size is None or batch is None) and isinstance(getattr(model, "backbone", None), Swin):
        raise ValueError(
            "`size` and `batch` must be given to export a Swin backbone, whose windows and masks "
            f"are those of one input, but are {size} and {batch}."
        )
    if size is not None and min(size) < 1:
        raise ValueError(f"`size` must be two positive numbers, but is {size}.")
    if batch is not None and batch < 1:
        raise ValueError(f"`batch` must be at least 1, but is {batch}.")
    if slides and size is not None and size != window:
        raise ValueError(
            f"`size` must be that of a sliding window, {window[0]} x {window[1]} pixels "
            f"(`TEST.SEM_SEG.CROP_SIZE`), but is {size[0]} x {size[1]}."
        )
    graph = SegmentationGraph(
        exportable_copy(model), reverse_channels=cfg.INPUT.FORMAT == "BGR", pad=size is not None
    )
    multiple = size_multiple(model)
    description = describe(
        cfg,
        metadata,
        output=output,
        input_type=input_type,
        size=size,
        multiple=math.lcm(multiple, LEAST_MULTIPLE),
        batch=batch,
    )
    return graph, dataclasses.replace(description, model=type(model).__name__)
