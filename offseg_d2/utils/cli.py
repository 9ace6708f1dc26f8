"""Errors of the command line: a mistake of the user is reported in one line."""

import sys
from collections.abc import Callable
from typing import Any

# What a user can mend: keys, files, data, checkpoints, diverging training.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
