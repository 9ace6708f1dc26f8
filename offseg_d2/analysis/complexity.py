"""Parameters and multiply-accumulates (MACs) of a model, by part.

MACs are counted by PyTorch's ``FlopCounterMode`` on the operations that really run, below autograd,
so that functions with a backward pass of their own and in-place accumulations are seen as well. The
model runs on fake tensors, which have shapes but no values: nothing is computed, and any input size
is counted at once.

What counts: the table in ``mac_rules.py``. Two sums matter:

* :attr:`Macs.as_in_paper`, *convolutions only*, with one per output value for each bias that is
  added. All six numbers that the paper (arXiv:2508.08811, table 2) prints for OffSeg come out to
  the digit, T, B, L at 512 x 512 with 150 classes and at 2048 x 1024 with 19. Without the biases
  three of them do not, and no other choice among batch, group and layer norms, ReLU, GELU and
  resizes fits all six; the norm over the class scores is too small to be seen. Offset learning
  itself is a matrix product and is missing from them.
* :attr:`Macs.all`, all kinds of operations.
"""

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from fvcore.nn import parameter_count
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from offseg_d2.analysis.mac_rules import (
    BIAS_FORMULAS,
    CONVOLUTION,
    CONVOLUTION_BIAS,
    FORMULAS,
    KINDS,
    kind_of,
)
from offseg_d2.layers.ms_deform_attn import has_compiled_operator

# Modules that are only a frame: their children are the parts of a model.
FRAMES = ("sem_seg_head",)


def part_of(name: str, depth: int = 1) -> str:
    """The part of a model that a module or parameter belongs to.

    Args:
        name: dotted name, such as "sem_seg_head.pixel_decoder.levels.0".
        depth: 1 gives "backbone", "sem_seg_head.pixel_decoder" and so on, 2 their children.
    """
    names = name.split(".") if name else []
    frames = int(bool(names) and names[0] in FRAMES)
    return ".".join(names[: frames + depth])


def split_by_part(totals: Mapping[str, float], depth: int = 1) -> dict[str, float]:
    """Divide an amount among the parts of a model.

    Args:
        totals: dotted names of the modules that ran -> amount, with that of the modules in it;
            "" is the whole.
        depth: see :func:`part_of`.

    Returns:
        part -> amount, which add up to the whole; "" is what belongs to no part.
    """
    parts: dict[str, float] = defaultdict(float)
    for name, total in totals.items():
        parts[part_of(name, depth)] += total
        if name:
            parent = name.rpartition(".")[0]
            while parent not in totals:  # a container, which does not run itself
                parent = parent.rpartition(".")[0]
            parts[part_of(parent, depth)] -= total
    return {part: amount for part, amount in parts.items() if amount}


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one call.

    Attributes:
        by_module: dotted name ("" for the model itself) -> kind -> MACs of the module and of the
            modules in it.
    """

    by_module: dict[str, dict[str, int]]

    def by_kind(self) -> dict[str, int]:
        """MACs of every kind, ``convolution bias`` among them."""
        return {kind: self.by_module[""].get(kind, 0) for kind in (*KINDS, CONVOLUTION_BIAS)}

    def by_part(self, depth: int = 1) -> dict[str, int]:
        """:attr:`all` of each part of the model, see :func:`part_of`."""
        totals = {
            name: sum(kinds.get(kind, 0) for kind in KINDS)
            for name, kinds in self.by_module.items()
        }
        return {part: int(macs) for part, macs in split_by_part(totals, depth).items()}

    @property
    def as_in_paper(self) -> int:
        """Convolutions, and one per output value where a bias is added."""
        kinds = self.by_kind()
        return kinds[CONVOLUTION] + kinds[CONVOLUTION_BIAS]

    @property
    def all(self) -> int:
        """Sum of all kinds of operations but the addition of biases."""
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
    model = copy.deepcopy(model).requires_grad_(False)  # may keep fake values
    # What is found out there is remembered; fake tensors would give the wrong answer.
    has_compiled_operator("cpu")
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    with warnings.catch_warnings(), mode:
        warnings.simplefilter("ignore")
        arguments = [torch.empty_like(x) for x in inputs] if fake else inputs
        if warm_up:
            model(*arguments)
        counter, biases = (
            FlopCounterMode(display=False, custom_mapping=formulas)
            for formulas in (FORMULAS, BIAS_FORMULAS)
        )
        with counter, biases:
            model(*arguments)
    by_module: dict[str, dict[str, int]] = {"": {}}
    root = f"{type(model).__name__}."
    for name, operators in counter.flop_counts.items():
        if name == "Global" or name.startswith(root):
            kinds = Counter({CONVOLUTION_BIAS: 0})
            for operator, flops in operators.items():
                kinds[kind_of(operator)] += flops // 2
            for operator, flops in biases.flop_counts[name].items():
                kinds[CONVOLUTION_BIAS] += flops // 2 if kind_of(operator) == CONVOLUTION else 0
            by_module["" if name == "Global" else name.removeprefix(root)] = dict(kinds)
    return Macs(by_module)
