"""Helpers of all tests: one seed helper, one comparison, one small OffSeg model."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config

ROOT = Path(__file__).resolve().parents[1]
MODEL_CONFIGS = ROOT / "configs" / "base" / "models"
DEFAULT_TOLERANCE = 1e-5

# OffSeg-T with the smallest backbone and narrow levels: fast, but no part is missing.
SMALL_OFFSEG: tuple[Any, ...] = (
    *("MODEL.EFFICIENTFORMER_V2.VARIANT", "s0"),
    *("MODEL.OFFSEG.LEVEL_CHANNELS", [32, 32, 32, 64]),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 64),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
)


def seed_all(seed: int = 0) -> None:
    """Seed every global generator that the project draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def assert_close(
    actual: Tensor, expected: Tensor, tolerance: float = DEFAULT_TOLERANCE, *, reason: str = ""
) -> None:
    """Same shape and type, and differences below ``tolerance`` times (1 + the expected value).

    Args:
        actual: what the code gives.
        expected: what is right.
        tolerance: absolute and relative tolerance.
        reason: why a tolerance looser than the default is right; required then.
    """
    if tolerance > DEFAULT_TOLERANCE and not reason:
        raise TypeError(f"a tolerance looser than {DEFAULT_TOLERANCE:g} needs a reason")
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def offseg_config(*opts: Any, model: str = "offseg_t") -> CfgNode:
    """Configuration of a model of ``configs/base/models`` on the CPU, with KEY VALUE changes."""
    return load_config(str(MODEL_CONFIGS / f"{model}.yaml"), ["MODEL.DEVICE", "cpu", *opts])


def build_offseg(*opts: Any, model: str = "offseg_t") -> nn.Module:
    """The model of :func:`offseg_config`, in evaluation mode."""
    return build_model(offseg_config(*opts, model=model)).eval()


def spread_weights(model: nn.Module) -> nn.Module:
    """Move every parameter away from its initial value, so that none is inert.

    A fresh model hides mistakes: its layer scales are 1e-5, its attention biases and norm biases
    zero, its kernel encoders nearly zero.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter.uniform_(0.3, 0.7)
            elif parameter.ndim > 1 and "class_representations" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def spread_norms(module: nn.Module) -> nn.Module:
    """Weights and batch norm statistics that matter; float64, evaluation mode."""
    spread_weights(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.8, 1.2)
    return module.double().eval()


def random_batch(
    sizes: list[tuple[int, int]], num_classes: int = 5, **extra: Any
) -> list[dict[str, Any]]:
    """Inputs of the meta-architecture: uint8 noise images and labels of these (height, width)."""
    return [
        {
            "image": torch.randint(0, 256, (3, height, width)).byte(),
            "sem_seg": torch.randint(0, num_classes, (height, width)),
            **extra,
        }
        for height, width in sizes
    ]
