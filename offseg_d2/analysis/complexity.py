"""Parameters and multiply-accumulates (MACs) of a model, by part.

MACs are counted on the operations that PyTorch really runs, below autograd, so that functions with
a backward pass of their own and in-place accumulations are seen as well. fvcore's counter traces
TorchScript, which CARAFE and others do not pass; where it works, tests compare with it. The model
runs on fake tensors, which have shapes but no values: nothing is computed, and any input size is
counted at once.

What counts: the table in ``mac_rules.py``. Two sums matter:

* :attr:`Macs.as_in_paper`, *convolutions only*, with one per output value for each bias that is
  added. All six numbers that the paper (arXiv:2508.08811, table 2) prints for OffSeg come out to
  the digit, T, B, L at 512 x 512 with 150 classes and at 2048 x 1024 with 19. Without the biases
  three of them do not, and no other choice among batch, group and layer norms, ReLU, GELU and
  resizes fits all six; the norm over the class scores is too small to be told. Offset learning
  itself is a matrix product and is missing from them.
* :attr:`Macs.all`, all kinds of operations.
"""

import copy
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import parameter_count
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from offseg_d2.analysis.mac_rules import CONVOLUTION, CONVOLUTION_BIAS, KINDS, RULES
from offseg_d2.analysis.module_watch import part_of, watch_modules
from offseg_d2.layers.ms_deform_attn import has_compiled_operator

# Operations that only move, make or compare values. What is neither here nor in RULES is listed
# among the uncounted ones, so that nothing is passed over in silence.
_MOVES = frozenset(
    """
    _local_scalar_dense _to_copy _unsafe_index _unsafe_view any all arange argmax bitwise_not cat
    clone constant_pad_nd copy empty empty_like eq fill flip full full_like gather ge gt im2col
    index index_put index_select le lift_fresh linspace logical_and logical_not lt masked_fill
    max min ne new_empty new_full new_ones new_zeros ones ones_like pixel_shuffle pixel_unshuffle
    rand randn repeat roll scalar_tensor scatter sort stack topk upsample_nearest2d where zero
    zeros zeros_like
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one call.

    Attributes:
        by_module: dotted name of the innermost module ("" for the model itself) -> kind -> MACs.
        uncounted: operations that compute something and do not count -> values that they gave.
    """

    by_module: dict[str, dict[str, int]]
    uncounted: dict[str, int]

    def by_kind(self) -> dict[str, int]:
        """MACs of every kind, ``convolution bias`` among them."""
        total: Counter[str] = Counter(dict.fromkeys((*KINDS, CONVOLUTION_BIAS), 0))
        for kinds in self.by_module.values():
            total.update(kinds)
        return dict(total)

    def by_part(self, depth: int = 1) -> dict[str, "Macs"]:
        """The same for each part of the model, see :func:`part_of`."""
        parts: dict[str, dict[str, dict[str, int]]] = {}
        for name, kinds in self.by_module.items():
            parts.setdefault(part_of(name, depth), {})[name] = kinds
        return {part: Macs(modules, {}) for part, modules in parts.items()}

    @property
    def convolutions(self) -> int:
        """Convolutions without their biases."""
        return self.by_kind()[CONVOLUTION]

    @property
    def as_in_paper(self) -> int:
        """Convolutions, and one per output value where a bias is added."""
        kinds = self.by_kind()
        return kinds[CONVOLUTION] + kinds[CONVOLUTION_BIAS]

    @property
    def all(self) -> int:
        """All kinds of operations but the addition of biases."""
        kinds = self.by_kind()
        return sum(kinds[kind] for kind in KINDS)


def count_parameters(model: nn.Module, depth: int = 1) -> dict[str, int]:
    """Parameters of each part (see :func:`part_of`), and of the whole model as "".

    Parameters that two modules share are counted once.
    """
    counts = Counter({"": parameter_count(model)[""]})
    for name, parameter in model.named_parameters():
        counts[part_of(name, depth)] += parameter.numel()
    return dict(counts)


@torch.no_grad()
def count_macs(model: nn.Module, *inputs: Tensor, fake: bool = True, warm_up: bool = True) -> Macs:
    """Count the MACs of ``model(*inputs)``.

    Args:
        model: any module, in the mode in which it is to be counted; it is not changed.
        inputs: tensors; only their shapes and types matter, unless ``fake`` is off.
        fake: run without computing anything. Off for models with operations that PyTorch cannot
            imagine, whose work depends on the values, or that keep tensors outside of the model.
        warm_up: run once before the run that counts: what a model keeps for inputs of the same
            size, such as resized attention biases, is not part of a call.
    """
    model = copy.deepcopy(model)  # may keep fake values
    # What is found out there is remembered; fake tensors would give the wrong answer.
    has_compiled_operator("cpu")
    callers = [""]
    watch = watch_modules(model, callers.append, lambda name: callers.pop())
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watch, mode:
            arguments = [_like(x) for x in inputs] if fake else inputs
            if warm_up:
                model(*arguments)
            with _MacCounter(callers) as counter:
                model(*arguments)
    by_module = {name: dict(kinds) for name, kinds in counter.macs.items()}
    return Macs(by_module, dict(counter.uncounted.most_common()))


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


class _MacCounter(TorchDispatchMode):
    """Applies the rules to every operation below it.

    Args:
        callers: names of the running modules, the innermost last.
    """

    def __init__(self, callers: list[str]) -> None:
        super().__init__()
        self.callers = callers
        self.macs: dict[str, Counter[str]] = {}
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        out = func(*args, **kwargs)
        if name in RULES:
            macs = self.macs.setdefault(self.callers[-1], Counter())
            macs.update(RULES[name](args, out))
        elif not func.is_view and name not in _MOVES:
            values = [x.numel() for x in _flat(out) if isinstance(x, Tensor)]
            if values:
                self.uncounted[name] += sum(values)
        return out


def _flat(out: Any) -> tuple | list:
    return out if isinstance(out, (tuple, list)) else (out,)
