"""The one requirement pip cannot name: Detectron2. Standard library only."""

import importlib.util
import itertools
import sys
from pathlib import Path

_SETUP_SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "setup_env.py"


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
    if _SETUP_SCRIPT.exists():
        return f"{sys.executable} {_SETUP_SCRIPT} --detectron2-here"
    return "python tools/setup_env.py --detectron2-here (in a clone of offseg_d2)"


def require_detectron2() -> None:
    """Raise ImportError with one sentence if Detectron2 is not installed."""
    if has_module("detectron2"):
        return
    # `python -m offseg_d2.doctor` imports this package first; it reports what is missing.
    if ("-m", "offseg_d2.doctor") in itertools.pairwise(sys.orig_argv):
        return
    raise ImportError(
        "offseg_d2 needs Detectron2, which is not installed here; install it with: "
        f"{detectron2_install_command()}"
    ) from None
