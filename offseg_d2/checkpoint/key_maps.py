"""Reversible maps between our parameter names and those of other projects' checkpoints.

A map is a table of rules and a list of named drops. It is *total*: a name that no line of it knows
is an error, never silently lost. The tables are in the modules ``*_tables.py``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_FIELD = re.compile(r"\{(\w+)\}")
# The pixels of a 2x2 patch, row by row -> column by column; the same backwards.
_ROWS_TO_COLUMNS = [0, 2, 1, 3]


@dataclass(frozen=True)
class Rule:
    """One line of a map: the same tensor under two names.

    Attributes:
        theirs: external name; ``{i}`` stands for a number, ``{rest}`` for any remainder.
        ours: our name, with the same fields.
        leading_axis: the external tensor has one more axis of length 1 in front.
        trailing_axes: our tensor has this many more axes of length 1 at the end, as the kernel of
            a 1x1 convolution has that is a matrix elsewhere.
        reversed_chunks: axis 1 consists of this many parts, which come in the opposite order.
        patch_order: the last axis holds the features of the four pixels of a patch: there channel
            by channel, each with the pixels row by row; here pixel by pixel, column by column, as
            the patch merging of the original Swin transformer wants it.
    """

    theirs: str
    ours: str
    leading_axis: bool = False
    trailing_axes: int = 0
    reversed_chunks: int = 1
    patch_order: bool = False

    def tensor_from_theirs(self, tensor: Tensor) -> Tensor:
        """Our form of an external tensor."""
        tensor = tensor[0] if self.leading_axis else tensor
        tensor = tensor.reshape(tensor.shape + (1,) * self.trailing_axes)
        if self.patch_order:  # (..., C, 4) -> (..., 4, C)
            tensor = tensor.unflatten(-1, (-1, 4))[..., _ROWS_TO_COLUMNS].mT.flatten(-2)
        return self._reverse(tensor)

    def tensor_to_theirs(self, tensor: Tensor) -> Tensor:
        """The external form of our tensor."""
        tensor = self._reverse(tensor)
        if self.patch_order:  # (..., 4, C) -> (..., C, 4)
            tensor = tensor.unflatten(-1, (4, -1)).mT[..., _ROWS_TO_COLUMNS].flatten(-2)
        tensor = tensor.reshape(tensor.shape[: tensor.ndim - self.trailing_axes])
        return tensor[None] if self.leading_axis else tensor

    def _reverse(self, tensor: Tensor) -> Tensor:
        if self.reversed_chunks == 1:
            return tensor
        return torch.cat(tensor.chunk(self.reversed_chunks, dim=1)[::-1], dim=1)

    @cached_property
    def theirs_pattern(self) -> re.Pattern[str]:
        return _compile(self.theirs)

    @cached_property
    def ours_pattern(self) -> re.Pattern[str]:
        return _compile(self.ours)


@dataclass(frozen=True)
class Drop:
    """External entries that have no counterpart.

    Attributes:
        pattern: regular expression that the whole external name must match.
        reason: why it is not needed.
    """

    pattern: str
    reason: str


@dataclass(frozen=True)
class Packing:
    """Several external tensors that are one here, one after the other along axis 0.

    Attributes:
        parts: external names, with fields as in :class:`Rule`.
        shares: relative lengths of the parts.
        packed: name under which the rules know the whole.
    """

    parts: tuple[str, ...]
    shares: tuple[int, ...]
    packed: str

    def pack(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Replace the parts by the whole, in place.

        Raises:
            KeyError: if some parts of one whole are missing.
        """
        first = _compile(self.parts[0])
        for match in [m for key in state_dict if (m := first.fullmatch(key))]:
            parts = [part.format(**match.groupdict()) for part in self.parts]
            missing = [part for part in parts if part not in state_dict]
            if missing:
                raise KeyError(f"`{missing[0]}` of {name} is missing, but `{parts[0]}` is there.")
            whole = torch.cat([state_dict.pop(part) for part in parts])
            state_dict[self.packed.format(**match.groupdict())] = whole

    def unpack(self, state_dict: dict[str, Tensor]) -> None:
        """Replace the whole by its parts, in place."""
        packed = _compile(self.packed)
        for match in [m for key in state_dict if (m := packed.fullmatch(key))]:
            whole = state_dict.pop(match.group())
            unit = whole.shape[0] // sum(self.shares)
            tensors = whole.split([unit * share for share in self.shares])
            for part, tensor in zip(self.parts, tensors, strict=True):
                state_dict[part.format(**match.groupdict())] = tensor


@dataclass(frozen=True)
class KeyMap:
    """The map of one family of models.

    Attributes:
        name: what the log calls the external format.
        rules: first match wins.
        drops: applied to names that no rule matches.
        packings: applied before the rules; the rules know the packed names.
    """

    name: str
    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...] = ()
    packings: tuple[Packing, ...] = ()

    def name_from_theirs(self, key: str) -> str | None:
        """Our name for an external one; None if the entry is dropped.

        Raises:
            KeyError: if no rule and no drop knows the name.
        """
        found = self._rule_for(key, "theirs_pattern")
        if found is not None:
            rule, fields = found
            return rule.ours.format(**fields)
        if self._drop_reason(key) is not None:
            return None
        raise KeyError(f"`{key}` is not a parameter name of {self.name}.")

    def name_to_theirs(self, key: str) -> str:
        """The external name of one of ours.

        Raises:
            KeyError: if no rule knows the name.
        """
        found = self._rule_for(key, "ours_pattern")
        if found is None:
            raise KeyError(f"`{key}` has no counterpart in {self.name}.")
        rule, fields = found
        return rule.theirs.format(**fields)

    def from_theirs(
        self, state_dict: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Rename a whole external state dict.

        Returns:
            our state dict, and the dropped external names with the reason of each.

        Raises:
            KeyError: naming every entry that the map does not know.
        """
        ours: dict[str, Tensor] = {}
        dropped: dict[str, str] = {}
        unknown: list[str] = []
        state_dict = dict(state_dict)
        for packing in self.packings:
            packing.pack(state_dict, self.name)
        for key, tensor in state_dict.items():
            found = self._rule_for(key, "theirs_pattern")
            reason = self._drop_reason(key)
            if found is not None:
                rule, fields = found
                ours[rule.ours.format(**fields)] = rule.tensor_from_theirs(tensor)
            elif reason is not None:
                dropped[key] = reason
            else:
                unknown.append(key)
        _refuse(unknown, self.name)
        return ours, dropped

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename our whole state dict; the inverse of :meth:`from_theirs` but for the drops.

        Raises:
            KeyError: naming every entry that the map does not know.
        """
        theirs: dict[str, Tensor] = {}
        unknown: list[str] = []
        for key, tensor in state_dict.items():
            found = self._rule_for(key, "ours_pattern")
            if found is None:
                unknown.append(key)
                continue
            rule, fields = found
            theirs[rule.theirs.format(**fields)] = rule.tensor_to_theirs(tensor)
        _refuse(unknown, self.name)
        for packing in self.packings:
            packing.unpack(theirs)
        return theirs

    def _rule_for(self, key: str, side: str) -> tuple[Rule, dict[str, str]] | None:
        for rule in self.rules:
            pattern = rule.theirs_pattern if side == "theirs_pattern" else rule.ours_pattern
            match = pattern.fullmatch(key)
            if match:
                return rule, match.groupdict()
        return None

    def _drop_reason(self, key: str) -> str | None:
        for drop in self.drops:
            if re.fullmatch(drop.pattern, key):
                return drop.reason
        return None


def _compile(template: str) -> re.Pattern[str]:
    """Template such as "a.{i}.{rest}" -> the pattern that matches it, fields as named groups."""
    parts = _FIELD.split(template)  # text, field, text, field, ..., text
    pattern = ""
    for position, part in enumerate(parts):
        if position % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += f"(?P<{part}>.+)" if part == "rest" else rf"(?P<{part}>\d+)"
    return re.compile(pattern)


def _refuse(unknown: Iterable[str], name: str) -> None:
    unknown = list(unknown)
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise KeyError(f"{len(unknown)} parameter names are not known to {name}: {shown}.")
