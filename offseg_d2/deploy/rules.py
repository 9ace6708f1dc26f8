"""Which faster module takes the place of which module.

A rule belongs to one class of modules. It gets a module in evaluation mode, with its weights, and
returns a module that gives the same results, or None to leave this one as it is.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Rule = Callable[[nn.Module], nn.Module | None]
_AnyRule = TypeVar("_AnyRule", bound=Callable[..., nn.Module | None])

_RULES: dict[type[nn.Module], Rule] = {}


def rule(module_class: type[nn.Module]) -> Callable[[_AnyRule], _AnyRule]:
    """Decorator: the function below makes the replacement of modules of this very class.

    Subclasses are not meant: their ``forward`` may be another one. What the replacement keeps of
    the module's children is visited by the rules afterwards.

    Raises:
        ValueError: if the class has a rule already.
    """

    def register(function: _AnyRule) -> _AnyRule:
        if module_class in _RULES:
            raise ValueError(f"`rule` must be used once per class, but {module_class} has one.")
        _RULES[module_class] = function
        return function

    return register


def apply_rules(model: nn.Module) -> tuple[nn.Module, int]:
    """Replace all modules that have a rule, in place, outer ones before what is inside them.

    Returns:
        the model (another object if the model itself has a rule), and how many were replaced.
    """
    return _replaced(model, {})


def _replaced(module: nn.Module, done: dict[nn.Module, nn.Module]) -> tuple[nn.Module, int]:
    if module in done:  # a module that stands in two places goes on being one
        return done[module], 0
    count = 0
    make = _RULES.get(type(module))
    replacement = None if make is None else make(module)
    done[module] = module if replacement is None else replacement
    if replacement is not None:
        count = 1
        done[replacement] = replacement
        replacement.train(module.training)
    for name, child in list(done[module].named_children()):
        new_child, inside = _replaced(child, done)
        count += inside
        if new_child is not child:
            setattr(done[module], name, new_child)
    return done[module], count
