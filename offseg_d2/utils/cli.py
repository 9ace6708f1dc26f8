"""Errors of the command line: a mistake of the user is reported in one line."""

import re
import sys
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 500  # of a message
# Of a terminal, which could be made to show something else; lines and tabs are harmless.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What a user can mend: keys, files, data, checkpoints, diverging training.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def printable(text: str) -> str:
    """Text that may come from a file, for people: control characters escaped, cut at a length."""
    escaped = _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
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
    except USER_ERRORS as error:
        if sys.flags.dev_mode:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
