"""Detectron2, the one requirement pip cannot name: its absence, and registering with it.

Standard library only.
"""

import importlib
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# What works without Detectron2; the rest of the package refuses to be imported.
_WITHOUT = (
    *("offseg_d2.version", "offseg_d2.doctor", "offseg_d2.__main__", "offseg_d2.commands"),
    *("offseg_d2.utils", "offseg_d2.utils.cli", "offseg_d2.layers", "offseg_d2.modeling"),
    *("offseg_d2.modeling.offset_learning", "offseg_d2.modeling.classifiers"),
    *("offseg_d2.modeling.replace_classifier", "offseg_d2.web", "offseg_d2.web.options"),
)
_WITHOUT_BELOW = ("offseg_d2.commands.", "offseg_d2.layers.")
# module of Detectron2 that holds a catalog -> what has something to register there
_ROOMS = {
    "detectron2.data": "offseg_d2.data",
    "detectron2.modeling": "offseg_d2.modeling",
    "detectron2.utils.file_io": "offseg_d2.utils.downloads",
}


def has_module(name: str) -> bool:
    """Return True if top-level module ``name`` can be found, without importing it.

    A bare folder of that name (such as a clone beside the working folder) does not count.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def detectron2_install_command() -> str:
    """The command that adds Detectron2 to the environment of the running Python."""
    return f"{sys.executable} -m offseg_d2 setup-env --detectron2-here"


def require_detectron2() -> None:
    """Raise ImportError with one sentence if Detectron2 is not installed."""
    if not has_module("detectron2"):
        raise ImportError(
            "offseg_d2 needs Detectron2, which is not installed here; install it with: "
            f"{detectron2_install_command()}",
            name="detectron2",
        ) from None


class _Finder:
    """Watches imports, so that ``import offseg_d2`` need not import Detectron2 to register with it.

    Right after Detectron2's catalogs are imported, whoever does so, the room that registers there
    is imported too. The rooms that need Detectron2 are refused in one sentence where it is absent.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.startswith("offseg_d2."):
            if name not in _WITHOUT and not name.startswith(_WITHOUT_BELOW):
                require_detectron2()
            return None
        if name not in _ROOMS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(_ROOMS[name])

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register(room: str) -> None:
    try:
        importlib.import_module(room)
    except ImportError as error:  # Detectron2 itself must not suffer from what is missing here
        warnings.warn(f"{room} could not be registered with Detectron2: {error}", stacklevel=2)


def register_with_detectron2() -> None:
    """Have models and datasets registered as soon as Detectron2's catalogs are there."""
    sys.meta_path.insert(0, _Finder)
    for catalog, room in _ROOMS.items():
        if catalog in sys.modules:
            _register(room)
