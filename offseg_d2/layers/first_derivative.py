"""Backward passes that are written by hand and cannot be differentiated themselves."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``backward`` of an autograd function: asking for second derivatives is an error.

    PyTorch's own ``once_differentiable`` refuses only if the incoming gradient has a history;
    otherwise the second derivative would be missing without a word.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                f"The gradient of {type(ctx).__name__.removesuffix('Backward').lstrip('_')} cannot "
                "be differentiated again: `create_graph` must be False."
            )
        with torch.no_grad():
            return backward(ctx, *gradients)

    return refusing
