"""The packages of the extra ``export``, imported when they are needed."""

import importlib
from types import ModuleType


def require(name: str) -> ModuleType:
    """Import a package of the extra ``export``.

    Args:
        name: dotted name of a module.

    Raises:
        OSError: if it is not installed; one sentence that says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise OSError(
            f"`{error.name}` must be installed to export models or to run exported ones; "
            "install it with: pip install -e '.[export]'"
        ) from None
