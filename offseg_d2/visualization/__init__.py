"""Pictures: overlays, offsets, datasets, learning curves.

The names below are imported when they are first used, since drawing needs matplotlib.
"""

import importlib
from typing import Any

# public name -> module that defines it
_PUBLIC_NAMES = {
    **dict.fromkeys(("class_colors", "class_names", "color_map", "to_labels"), "classes"),
    **dict.fromkeys(("SemSegVisualizer", "legend", "side_by_side"), "overlay"),
}

__all__ = list(_PUBLIC_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module `{__name__}` has no attribute {name!r}.")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC_NAMES[name]}"), name)
