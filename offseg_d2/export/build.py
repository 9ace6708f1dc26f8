"""Conversion of a model and its configuration to the input of the file writers."""

import logging
import math

from detectron2.config import CfgNode
from detectron2.data import Metadata
from torch import nn

from offseg_d2.export.description import ModelDescription
from offseg_d2.export.graph import SegmentationGraph, size_multiple
from offseg_d2.modeling import InferenceSettings, Swin

logger = logging.getLogger(__name__)

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

    Label maps are those of whole images, also where the configuration slides a window: windows are
    averaged before the best class is chosen. The log says so then.

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
    graph = SegmentationGraph(
        model, reverse_channels=cfg.INPUT.FORMAT == "BGR", pad=size is not None
    )
    settings = _settings(cfg, output)
    _check_shape(graph.model, settings, size, batch)
    mean = tuple(float(value) for value in cfg.MODEL.PIXEL_MEAN)
    description = ModelDescription(
        classes=tuple(str(name) for name in metadata.stuff_classes),
        colors=tuple(tuple(color) for color in getattr(metadata, "stuff_colors", [])),
        output=output,
        input_type=input_type,
        size=size,
        multiple=math.lcm(size_multiple(graph.model), LEAST_MULTIPLE),
        batch=batch,
        test_scale=tuple(cfg.INPUT.RESIZE.SCALE_TEST),
        pixel_mean=mean if cfg.INPUT.FORMAT == "RGB" else mean[::-1],
        mode=settings.mode,
        crop_size=settings.crop_size,
        stride=settings.stride,
        max_value_16_bit=cfg.INPUT.MAX_VALUE_16_BIT,
        bands=tuple(cfg.INPUT.BANDS),
        model=type(model).__name__,
    )
    return graph, description


def _settings(cfg: CfgNode, output: str) -> InferenceSettings:
    """Settings for using the file on an image."""
    if cfg.TEST.SEM_SEG.TTA.ENABLED:
        raise ValueError("`TEST.SEM_SEG.TTA.ENABLED` must be False for an export, but is True.")
    settings = InferenceSettings.from_config(cfg)
    if settings.mode == "whole" or output == "logits":
        return settings
    logger.warning(
        "The file gives label maps of whole images. Sliding windows (`TEST.SEM_SEG.MODE`) are "
        "averaged before the best class is chosen, so only a file of logits can be used with them."
    )
    return InferenceSettings()


def _check_shape(
    model: nn.Module,
    settings: InferenceSettings,
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    """Refuse a size or batch that the model cannot be exported for."""
    if (size is None or batch is None) and isinstance(model.backbone, Swin):
        raise ValueError(
            "`size` and `batch` must be given to export a Swin backbone, whose windows and masks "
            f"are those of one input, but are {size} and {batch}."
        )
    if size is not None and min(size) < 1:
        raise ValueError(f"`size` must be two positive numbers, but is {size}.")
    if batch is not None and batch < 1:
        raise ValueError(f"`batch` must be at least 1, but is {batch}.")
    window = settings.crop_size
    if settings.mode == "slide" and size is not None and size != window:
        raise ValueError(
            f"`size` must be that of a sliding window, {window[0]} x {window[1]} pixels "
            f"(`TEST.SEM_SEG.CROP_SIZE`), but is {size[0]} x {size[1]}."
        )
