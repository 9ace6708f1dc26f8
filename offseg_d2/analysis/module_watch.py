"""Following a model module by module while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Modules that are only a frame: their children are the parts of a model.
FRAMES = ("sem_seg_head",)


@contextmanager
def watch_modules(
    model: nn.Module, enter: Callable[[str], Any], leave: Callable[[str], Any]
) -> Iterator[None]:
    """Call ``enter`` and ``leave`` with its dotted name around every module that runs."""
    handles = []
    for name, module in model.named_modules():

        def before(module: nn.Module, args: Any, name: str = name) -> None:
            enter(name)

        def after(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
            leave(name)

        handles.append(module.register_forward_pre_hook(before, prepend=True))
        handles.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def part_of(name: str, depth: int = 1) -> str:
    """The part of a model that a module or parameter belongs to.

    Args:
        name: dotted name, such as "sem_seg_head.pixel_decoder.levels.0".
        depth: 1 gives "backbone", "sem_seg_head.pixel_decoder" and so on, 2 their children.
    """
    names = name.split(".") if name else []
    framing = 0
    while framing < len(names) and names[framing] in FRAMES:
        framing += 1
    return ".".join(names[: framing + depth])
