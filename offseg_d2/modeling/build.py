"""A model from its configuration."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_meta_architecture
from torch import nn

logger = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model of ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``, with initial weights."""
    model = build_meta_architecture(cfg)
    values = sum(parameter.numel() for parameter in model.parameters())
    logger.info("Model %s with %d parameters", cfg.MODEL.META_ARCHITECTURE, values)
    return model


def available_device(name: str) -> str:
    """``name``, or "cpu" with a warning where it asks for CUDA and there is none.

    Detectron2 stops with torch's error instead; here the same command runs on any machine.
    """
    if not name.startswith("cuda") or torch.cuda.is_available():
        return name
    logger.warning("`MODEL.DEVICE` is %r, but CUDA is not available: using the CPU.", name)
    return "cpu"
