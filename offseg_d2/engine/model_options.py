"""Trading memory for time, and compile time for speed, without a change to any model.

``MODEL.BACKBONE.ACTIVATION_CHECKPOINTING``, ``MODEL.CHANNELS_LAST``, ``MODEL.COMPILE``.

Activation checkpointing: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016
(arXiv:1604.06174).
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.utils.checkpoint import checkpoint

from offseg_d2.config import ConfigError

logger = logging.getLogger(__name__)

# Names of rows of blocks: here, in Swin, in timm's networks and in Detectron2's ResNet.
_ROW_OF_BLOCKS = re.compile(r"(.+\.)?(blocks(\.\d+)?|stages\.\d+|layer\d|res\d)")
_COMPILED_PARTS = ("backbone", "sem_seg_head")


def apply_model_options(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Make the model as the keys of this module say, in place.

    Names of parameters and buffers stay.

    Raises:
        ConfigError: if the backbone has no blocks that could be computed again.
    """
    if cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING:
        number = checkpoint_activations(model.get_submodule("backbone"))
        if not number:
            raise ConfigError(
                "`MODEL.BACKBONE.ACTIVATION_CHECKPOINTING` must be False for the backbone "
                f"{cfg.MODEL.BACKBONE.NAME!r}, whose blocks are not known."
            )
        logger.info("%d blocks of the backbone are computed again in the backward pass", number)
    if cfg.MODEL.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    if cfg.MODEL.COMPILE:
        for name in _COMPILED_PARTS:
            if isinstance(getattr(model, name, None), nn.Module):
                getattr(model, name).compile()
        logger.info("Compiling %s when they are first used", " and ".join(_COMPILED_PARTS))
    return model


def checkpoint_activations(backbone: nn.Module) -> int:
    """Have every block computed again in backward; blocks are what a stage is a row of.

    Returns:
        number of blocks.
    """
    blocks: list[nn.Module] = []
    inside: tuple[str, ...] = ()
    for name, module in backbone.named_modules():
        is_row = isinstance(module, nn.Sequential | nn.ModuleList)
        if is_row and _ROW_OF_BLOCKS.fullmatch(name) and not name.startswith(inside):
            inside = (*inside, f"{name}.")
            blocks += module.children()
    for block in blocks:
        # A class of its own, not a new `forward` of the object: copies of the model stay whole.
        kind = type(block)
        block.__class__ = type(f"Checkpointed{kind.__name__}", (_CheckpointedBlock, kind), {})
    return len(blocks)


class _CheckpointedBlock(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        contexts = partial(_forward_and_backward_contexts, self)
        return checkpoint(
            super().forward, *args, use_reentrant=False, context_fn=contexts, **kwargs
        )


def _forward_and_backward_contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second computation must not count for the running statistics of batch norms again."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.num_batches_tracked is not None
    ]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, number) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(number)
