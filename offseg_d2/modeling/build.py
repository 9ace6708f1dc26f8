"""A model from its configuration."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_meta_architecture
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.layers.kernels import enable_kernels
from offseg_d2.modeling.backbone.freezing import check_freeze_at

logger = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model of ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``, with initial weights.

    ``MODEL.TRITON_KERNELS`` holds for the whole process: for all models from now on.

    Raises:
        ValueError: if a key has an impossible value, or one that the backbone does not look at.
    """
    check_freeze_at(cfg.MODEL.BACKBONE.FREEZE_AT)
    enable_kernels(cfg.MODEL.TRITON_KERNELS)
    model = build_meta_architecture(cfg)
    backbone = getattr(model, "backbone", model)
    if cfg.MODEL.BACKBONE.FREEZE_AT and all(p.requires_grad for p in backbone.parameters()):
        raise ConfigError(
            f"`MODEL.BACKBONE.FREEZE_AT` must be 0 for the backbone {cfg.MODEL.BACKBONE.NAME!r}, "
            f"which freezes no stages, but is {cfg.MODEL.BACKBONE.FREEZE_AT}."
        )
    values = sum(parameter.numel() for parameter in model.parameters())
    logger.info("Model %s with %d parameters", cfg.MODEL.META_ARCHITECTURE, values)
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        frozen = sum(p.numel() for p in backbone.parameters() if not p.requires_grad)
        logger.info(
            "`MODEL.BACKBONE.FREEZE_AT` is %d: %d of them are not trained",
            *(cfg.MODEL.BACKBONE.FREEZE_AT, frozen),
        )
    return model


def available_device(name: str) -> str:
    """``name``, or "cpu" with a warning where it asks for CUDA and there is none.

    Detectron2 stops with torch's error instead; here the same command runs on any machine.

    Raises:
        ConfigError: it names no device that PyTorch has here.
    """
    kind, _, index = name.partition(":")
    is_known = kind in ("cpu", "cuda", "mps") and (not index or index.isdecimal())
    number = torch.cuda.device_count() if kind == "cuda" else 1
    if not is_known or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ConfigError(
            f"`MODEL.DEVICE` must be 'cpu', 'cuda', 'cuda:N', or 'mps' where there is one, but is "
            f"{name!r}."
        )
    if kind == "cuda" and not torch.cuda.is_available():
        logger.warning("`MODEL.DEVICE` is %r, but CUDA is not available: using the CPU.", name)
        return "cpu"
    if index and int(index) >= number:
        raise ConfigError(
            f"`MODEL.DEVICE` must name one of the {number} devices of this machine, numbered from "
            f"0, but is {name!r}."
        )
    return name
