"""Optimizer, learning-rate schedule and gradient clipping from the configuration.

Detectron2's own keys for norms and biases (``SOLVER.WEIGHT_DECAY_NORM``, ``WEIGHT_DECAY_BIAS``,
``BIAS_LR_FACTOR``) have no effect here: the table in :mod:`.param_groups` decides.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from torch import Tensor, nn

from .lr_schedule import WarmupPolyLR
from .param_groups import build_param_groups, offset_rule, rules_of

# Clips the gradients of parameters in place; returns their total norm before clipping, or None
# where the kind of clipping does not need it.
GradientClipper = Callable[[Iterable[Tensor]], Tensor | None]

# Device types on which torch has a fused AdamW: one pass over all tensors instead of one each.
_FUSED_DEVICES = ("cpu", "cuda")
# Parameters that only a mask-query model has.
_QUERIES = "sem_seg_head.predictor.query_feat"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer ``SOLVER.OPTIMIZER`` over the parameter groups ``SOLVER.PARAM_GROUPS``.

    Raises:
        ValueError: if the optimizer or the table of groups is unknown, a number is out of range or
            the table does not fit the model.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in _OPTIMIZERS:
        raise ValueError(
            f"`SOLVER.OPTIMIZER` must be one of {sorted(_OPTIMIZERS)}, but is {solver.OPTIMIZER!r}."
        )
    if solver.BASE_LR < 0:
        raise ValueError(f"`SOLVER.BASE_LR` must be at least 0, but is {solver.BASE_LR!r}.")
    return _OPTIMIZERS[solver.OPTIMIZER](cfg, _build_groups(cfg, model))


def _build_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    solver = cfg.SOLVER
    table = solver.PARAM_GROUPS
    rules = rules_of(table, cfg.MODEL.BACKBONE.NAME)
    has_queries = any(name.startswith(_QUERIES) for name, _ in model.named_parameters())
    # Its rules would fit, but speed the head up instead of slowing the backbone down.
    if table == "per_pixel" and has_queries:
        raise ValueError(
            "`SOLVER.PARAM_GROUPS` must be 'mask_query' for a mask-query model, one with "
            f"`{_QUERIES}`, but is {table!r}."
        )
    if solver.OFFSET_LR_FACTOR < 0:
        raise ValueError(
            f"`SOLVER.OFFSET_LR_FACTOR` must be at least 0, but is {solver.OFFSET_LR_FACTOR!r}."
        )
    if solver.OFFSET_LR_FACTOR != 1:  # a group of its own only where it is needed
        head = solver.HEAD_LR_FACTOR if table == "per_pixel" else 1.0
        rules = (offset_rule(head * solver.OFFSET_LR_FACTOR), *rules)
    try:
        return build_param_groups(
            model,
            rules,
            base_lr=solver.BASE_LR,
            weight_decay=solver.WEIGHT_DECAY,
            lr_factors=solver,
        )
    except ValueError as error:
        raise ValueError(
            f"`SOLVER.PARAM_GROUPS` must fit the model of `MODEL.META_ARCHITECTURE` "
            f"{cfg.MODEL.META_ARCHITECTURE!r}, but is {table!r}: {error}"
        ) from error


def _build_adamw(cfg: CfgNode, groups: list[dict]) -> torch.optim.AdamW:
    fused = all(p.device.type in _FUSED_DEVICES for group in groups for p in group["params"])
    return torch.optim.AdamW(
        groups,
        lr=cfg.SOLVER.BASE_LR,
        betas=tuple(cfg.SOLVER.BETAS),
        eps=1e-8,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        fused=fused or None,  # None: torch picks the grouped (foreach) form where it has one
    )


_OPTIMIZERS = {"ADAMW": _build_adamw}


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Schedule ``SOLVER.LR_SCHEDULER_NAME``: ``"WarmupPoly"``, or any of Detectron2's own."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPoly":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer,
        max_iter=solver.MAX_ITER,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        power=solver.POLY_LR_POWER,
        end_iter=solver.POLY_END_ITER,
    )


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper | None:
    """Gradient clipping ``SOLVER.CLIP_GRADIENTS``, or None if it is not enabled.

    ``CLIP_TYPE`` is ``"full_model"`` (norm over all parameters together, as Mask2Former does),
    ``"norm"`` (norm of each parameter tensor) or ``"value"`` (each element).

    Raises:
        ValueError: if the type is unknown or the limit is not positive.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    if clip.CLIP_TYPE not in _CLIPPERS:
        raise ValueError(
            f"`SOLVER.CLIP_GRADIENTS.CLIP_TYPE` must be one of {sorted(_CLIPPERS)}, "
            f"but is {clip.CLIP_TYPE!r}."
        )
    if clip.CLIP_VALUE <= 0:
        raise ValueError(
            f"`SOLVER.CLIP_GRADIENTS.CLIP_VALUE` must be above 0, but is {clip.CLIP_VALUE!r}."
        )
    clip_gradients = _CLIPPERS[clip.CLIP_TYPE]
    limit, norm_type = float(clip.CLIP_VALUE), float(clip.NORM_TYPE)
    return lambda parameters: clip_gradients(list(parameters), limit, norm_type)


def _clip_full_model(parameters: list[Tensor], limit: float, norm_type: float) -> Tensor:
    return nn.utils.clip_grad_norm_(parameters, limit, norm_type)


def _clip_each_norm(parameters: list[Tensor], limit: float, norm_type: float) -> None:
    for parameter in parameters:
        nn.utils.clip_grad_norm_(parameter, limit, norm_type)


def _clip_each_value(parameters: list[Tensor], limit: float, norm_type: float) -> None:
    nn.utils.clip_grad_value_(parameters, limit)


_CLIPPERS = {"full_model": _clip_full_model, "norm": _clip_each_norm, "value": _clip_each_value}
