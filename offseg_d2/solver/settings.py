"""Hyper-parameters of a resumed optimizer: those of the configuration, not the stored ones."""

from collections import Counter
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Settings = list[dict[str, Any]]


def read_settings(optimizer: Optimizer) -> Settings:
    """Hyper-parameters of each parameter group; ``initial_lr`` stands for its learning rate."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def restore_settings(optimizer: Optimizer, scheduler: LRScheduler, settings: Settings) -> list[str]:
    """Put hyper-parameters back that a stored state has replaced, at the stored iteration.

    Args:
        optimizer: with the stored state.
        scheduler: of it, with the stored state.
        settings: of the configuration, by :func:`read_settings`.

    Returns:
        a line for each kind of change: name, stored value and new value, and how many groups it is
        of; empty if nothing changed.
    """
    changes: Counter[str] = Counter()
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        stored_lr, new_lr = group.get("initial_lr"), own.get("initial_lr")
        if stored_lr and new_lr is not None:
            group["lr"] *= new_lr / stored_lr
        for key, value in own.items():
            if group.get(key) != value and not _same_pair(group.get(key), value):
                changes[f"{key} {group.get(key)} -> {value}"] += 1
            group[key] = value
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
    return [f"{change} ({number} parameter groups)" for change, number in changes.items()]


def _same_pair(stored: Any, new: Any) -> bool:
    """True for betas that a file holds as a list."""
    is_pair = isinstance(stored, list | tuple) and isinstance(new, list | tuple)
    return is_pair and list(stored) == list(new)
