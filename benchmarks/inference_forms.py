"""The project's models in the forms that ``inference.py`` times against each other.

Weights are random, always the same ones. Time does not depend on them, but for the label maps of
the project's own way, which are the quicker the fewer pixels lie at a boundary of classes;
:func:`open_share` tells how many do.

Shapes: B batch, K classes, H x W image.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from authors_order import authors_order, logits
from detectron2.modeling import build_model
from torch import Tensor, nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.analysis.complexity import count_macs
from offseg_d2.analysis.mac_rules import CONVOLUTION, MATRIX
from offseg_d2.config import load_config
from offseg_d2.deploy import optimize

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "ade20k"
MODELS = {
    path.stem.removesuffix("_offset_160k"): path
    for path in sorted(CONFIGS.glob("*_offset_160k.yaml"))
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTHORS, EAGER, DEPLOYED, COMPILED = "authors' order", "eager", "deployed", "deployed, compiled"
LOGITS, LABEL_MAPS = "logits", "label maps"
CELL = 4  # side of the squares of pixels that most models' logits stand for


class Way(NamedTuple):
    """Something to be timed.

    Attributes:
        run: without arguments.
        gmacs: billions of multiply-adds of convolutions and matrix products; None if not counted.
    """

    run: Callable[[], Any]
    gmacs: float | None


def make_images(batch: int, height: int, width: int) -> Tensor:
    """(B, 3, H, W) uint8: soft blobs of all colours with some grain, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 12, 16, generator=generator)
    images = F.interpolate(coarse, size=(height, width), mode="bicubic").mul_(255)
    images += 8 * torch.randn(images.shape, generator=generator)
    return images.clamp_(0, 255).byte()


def build_own(name: str) -> nn.Module:
    """A model of ``MODELS`` (150 classes) with random weights, in evaluation mode."""
    cfg = load_config(str(MODELS[name]), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.TEST.SEM_SEG.MODE = "whole"  # one pass of the network, whatever the model's windows
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    _spread(model)
    return model.requires_grad_(False)


def _spread(model: nn.Module) -> None:
    """Move the parameters that start at (almost) nothing: fresh blocks would do next to nothing."""
    for name, parameter in model.named_parameters():
        if "layer_scale" in name and parameter.abs().max() < 1e-4:
            nn.init.uniform_(parameter, 0.3, 0.7)
        elif name.endswith("bias.table") or "relative_position_bias_table" in name:
            nn.init.normal_(parameter, std=0.2)


def make_forms(
    model: nn.Module, dtype: torch.dtype, compiled: bool = False
) -> dict[str, nn.Module]:
    """The same model in all forms; under bfloat16 only the deployed ones have it in the weights."""
    own_dtype = None if dtype == torch.float32 else dtype
    forms = {
        AUTHORS: authors_order(model),
        EAGER: model,
        DEPLOYED: optimize(model, dtype=own_dtype),
    }
    if compiled:
        forms[COMPILED] = optimize(model, dtype=own_dtype, compile=True)
    return forms


def precision(form: str, dtype: torch.dtype) -> Any:
    """Context in which a form runs: autocast, unless its weights have the type already."""
    if dtype == torch.float32 or form in (DEPLOYED, COMPILED):
        return nullcontext()
    return torch.autocast("cpu", dtype=dtype)


def to_logits(model: nn.Module, images: Tensor) -> Any:
    """(B, 3, H, W) uint8 -> what the head gives."""
    return logits(model, torch.stack([model.normalise(image) for image in images]))


def to_label_maps(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> class ids (B, H, W)."""
    results = model.predict_label_maps([{"image": image} for image in images])
    return torch.stack([result["sem_seg"] for result in results])


def in_form(form: str, dtype: torch.dtype, call: Callable[..., Any], *args: Any) -> Callable:
    """``call(*args)`` in the form's precision, to be run later."""

    def run() -> Any:
        with precision(form, dtype):
            return call(*args)

    return run


class _Call(nn.Module):
    """A function as a module, for :func:`count_macs`."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self) -> Any:
        return self.run()


def count_gmacs(run: Callable[[], Any]) -> float | None:
    """Billions of multiply-adds of convolutions and matrix products; None if there are none."""
    kinds = count_macs(_Call(run), fake=False).by_kind()
    return (kinds[CONVOLUTION] + kinds[MATRIX]) / 1e9 or None


def open_share(labels: Tensor) -> float:
    """Share of the squares of 4 x 4 pixels of label maps (B, H, W) that hold several classes."""
    squares = labels.unfold(1, CELL, CELL).unfold(2, CELL, CELL).flatten(3)
    return float((squares != squares[..., :1]).any(-1).double().mean())


def largest_difference(ours: Any, theirs: Any) -> float:
    """Between two results of :func:`to_logits`.

    Raises:
        ValueError: one of them is not finite, so that nothing can be compared.
    """
    if isinstance(ours, Tensor):
        if not (ours.isfinite().all() and theirs.isfinite().all()):
            raise ValueError("Logits must be finite to be compared, but are not.")
        return float((ours.float() - theirs.float()).abs().max())
    keys = ("pred_logits", "pred_masks")
    return max(largest_difference(ours[key], theirs[key]) for key in keys)
