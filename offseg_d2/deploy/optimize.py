"""``optimize``: copies a model and makes the copy fast."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

from offseg_d2.deploy.folding import fold_batch_norms
from offseg_d2.deploy.rules import apply_rules

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)


def optimize(
    model: nn.Module,
    *,
    channels_last: bool = True,
    dtype: torch.dtype | None = None,
    compile: bool = False,
) -> nn.Module:
    """A copy of a model that gives the same results faster.

    Models of any origin work; those of this package gain most.

    Args:
        model: in evaluation mode, such as a meta-architecture of this package. It is not changed.
        channels_last: lay out the weights of convolutions with the channels innermost, which
            most convolutions prefer.
        dtype: None or float32 keep the model's type. bfloat16 is for the backbone (the whole
            model if it has none): its weights and activations are rounded, the head goes on in
            float32. Label maps then differ at class boundaries.
        compile: compile backbone and head (the whole model if it has none) with ``torch.compile``
            when they first run; each new input size is compiled anew. It takes minutes, and on the
            CPU OffSeg-T was no faster for it (docs/BENCHMARKS.md).

    Returns:
        the copy, with the interface of the model. It cannot be trained.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if it is in training mode or ``dtype`` is not supported.
    """
    _check(model, dtype)
    result = copy.deepcopy(model)
    result, replaced = apply_rules(result)
    folded = fold_batch_norms(result)
    for parameter in result.parameters():
        parameter.requires_grad_(False)
    if channels_last:
        result = result.to(memory_format=torch.channels_last)
    if dtype == torch.bfloat16:
        _lower_precision(getattr(result, "backbone", result), dtype)
    if compile:
        for module in _parts(result):
            module.compile()
    result.register_forward_pre_hook(_refuse_training)
    logger.info("Optimized: %d modules replaced, %d batch norms folded", replaced, folded)
    return result


def _check(model: Any, dtype: torch.dtype | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, but is {type(model).__name__}.")
    if model.training:
        raise ValueError("`model` must be in evaluation mode (model.eval()), but is in training.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`dtype` must be None or one of {DTYPES}, but is {dtype}.")


def _parts(model: nn.Module) -> list[nn.Module]:
    """Backbone and head, which are pure tensor programs; else the model itself."""
    parts = [getattr(model, name, None) for name in ("backbone", "sem_seg_head")]
    found = [part for part in parts if isinstance(part, nn.Module)]
    return found or [model]


def _lower_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """The module computes in ``dtype``; what goes in is converted, what comes out is float32."""
    module.to(dtype)
    module.register_forward_pre_hook(lambda _, args: _converted(args, dtype))
    module.register_forward_hook(lambda _, args, result: _converted(result, torch.float32))


def _converted(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in ``value`` (lists, tuples and dicts of them) in another type."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _converted(x, dtype) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_converted(x, dtype) for x in value)
    return value


def _refuse_training(model: nn.Module, args: tuple) -> None:
    if model.training:
        raise RuntimeError("an optimized model must be in evaluation mode; train its original.")
