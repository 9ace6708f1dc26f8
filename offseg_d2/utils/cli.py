"""Errors of the command line: a mistake of the user is reported in one line."""

import re
import sys
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 500  # of a message
# Of a terminal, which could be made to show something else.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# What a user can mend: keys, files, data, checkpoints, diverging training.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def escape_controls(text: str, keep: str = "") -> str:
    """Write control characters as ``\\x1b`` and the like, but those in ``keep``."""
    return _CONTROL.sub(
        lambda match: match[0] if match[0] in keep else f"\\x{ord(match[0]):02x}", text
    )


def printable(text: str) -> str:
    """Text that may come from a file, for people: control characters escaped, cut at a length."""
    escaped = escape_controls(text, keep="\n\t")
    return escaped if len(escaped) <= MAX_LENGTH else f"{escaped[: MAX_LENGTH - 4]} ..."


def report_user_errors(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``; turn an error of the user into one line and exit status 2.

    ``python -X dev`` shows the stack of calls instead.

    Args:
        function: any function.
        args: its arguments.

    Returns:
        what the function returns.
    """
    try:
        return function(*args)
    except (*USER_ERRORS, ImportError) as error:
        # A missing Detectron2 is one of them, too.
        lacks_detectron2 = isinstance(error, ImportError) and error.name == "detectron2"
        if sys.flags.dev_mode or not (isinstance(error, USER_ERRORS) or lacks_detectron2):
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
