"""Operations of a call, by kind: how many, what they compute, and how long they take."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from offseg_d2.analysis.mac_rules import CONVOLUTION, MATRIX, RULES
from offseg_d2.analysis.module_watch import watch_modules

LINEAR = "linear layers, 1x1 convolutions"
DENSE, DEPTHWISE = "k x k convolutions", "depth-wise convolutions"
CLASSIFIER = "matrix products of the classifier"
ATTENTION = "matrix products of attention"
RESAMPLING = "CARAFE, cosines, sampling, resizes"
SOFTMAX, NORM, REST = "softmax", "norms", "sums, activations, copies, all else"
KINDS = (LINEAR, DENSE, DEPTHWISE, CLASSIFIER, ATTENTION, RESAMPLING, SOFTMAX, NORM, REST)

_RESAMPLING = ("embedding_bag", "grid_sampler", "upsample", "im2col", "pixel_shuffle", "unfold")


@dataclass
class Work:
    """What the operations of a kind do in one call, and how long they take.

    Attributes:
        calls: operations.
        macs: multiply-adds of convolutions and products.
        gelus: values that GELU is applied to, also those in the pass of a convolution or product.
        bytes: read and written, each operation by itself.
        other_bytes: those of operations with neither multiply-adds nor GELU.
        seconds: the sum over the operations of their median times.
        best: the sum of their shortest times.
    """

    calls: int = 0
    macs: int = 0
    gelus: int = 0
    bytes: int = 0
    other_bytes: int = 0
    seconds: float = 0.0
    best: float = 0.0


class Profile(NamedTuple):
    """The work of a call by kind, and seconds of calls whose operations are not timed.

    Attributes:
        work: by kind.
        median: of the calls.
        shortest: of the calls.
    """

    work: dict[str, Work]
    median: float
    shortest: float


def kind_of(name: str, module: str, macs: dict[str, int], out: Any, args: tuple) -> str:
    """The kind of an operation.

    Args:
        name: without ``aten::``, overload and trailing underscore.
        module: dotted name of the module that calls it.
        macs: what ``mac_rules.RULES`` say of it.
        out: its result.
        args: its arguments.
    """
    is_product = macs.get(CONVOLUTION, 0) + macs.get(MATRIX, 0) > 0
    if is_product and "classifier" in module:
        return CLASSIFIER
    mixes_heads = any(part in module for part in (".head1", ".head2", "talking_head"))
    if is_product and (mixes_heads or name in ("bmm", "baddbmm")):
        return ATTENTION
    if macs.get(CONVOLUTION):
        area = _kernel_area(args)
        if area == 1:
            return LINEAR
        return DEPTHWISE if macs[CONVOLUTION] == out.numel() * area else DENSE
    if is_product:
        return LINEAR
    if "softmax" in name:
        return SOFTMAX
    if "norm" in name and "vector_norm" not in name:
        return NORM
    in_fusion = ".fusions." in module and "norm" not in module.rpartition(".")[2]
    return RESAMPLING if in_fusion or any(x in name for x in _RESAMPLING) else REST


def _kernel_area(args: tuple) -> int:
    """Of a convolution's weight, the last argument of four axes before the first list."""
    first_list = next(i for i, x in enumerate(args) if isinstance(x, (list, tuple)))
    weight = [x for x in args[:first_list] if isinstance(x, Tensor) and x.ndim >= 4][-1]
    return weight.shape[-2:].numel()


def _gelus(name: str, out: Any, args: tuple) -> int:
    """Values that an operation applies GELU to."""
    fused = name.endswith("_pointwise") and any(isinstance(x, str) and x == "gelu" for x in args)
    return out.numel() if name == "gelu" or fused else 0


class _Recorder(TorchDispatchMode):
    """Adds up what the operations do in the first call, and times each of them in later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.modules = [""]
        self.work: dict[str, Work] = defaultdict(Work)
        self._kinds: list[str] = []
        self._times: list[list[float]] = []
        self._position, self._is_repeat = 0, False

    def restart(self) -> None:
        """The next call does the same operations again, whose kinds are known by now.

        Raises:
            RuntimeError: the last one did fewer.
        """
        if self._position != len(self._kinds):
            raise RuntimeError("a later call does fewer operations than the first one.")
        self._position, self._is_repeat = 0, True

    def add_times(self) -> None:
        """Put the times of all calls into ``work``."""
        self.restart()
        for kind, times in zip(self._kinds, self._times, strict=True):
            self.work[kind].seconds += statistics.median(times)
            self.work[kind].best += min(times)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        position, self._position = self._position, self._position + 1
        if position < len(self._kinds) and self._is_repeat:
            begin = time.perf_counter()
            out = func(*args, **kwargs)
            self._times[position].append(time.perf_counter() - begin)
            return out
        if self._is_repeat:
            raise RuntimeError("a later call does more operations than the first one.")
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        macs = RULES[name](args, out) if name in RULES else {}
        kind = kind_of(name, self.modules[-1], macs, out, args)
        self._kinds.append(kind)
        self._times.append([])
        work = self.work[kind]
        work.calls += 1
        products = macs.get(CONVOLUTION, 0) + macs.get(MATRIX, 0)
        work.macs += products
        gelus = _gelus(name, out, args)
        work.gelus += gelus
        tensors = {id(x): x for x in _tensors((args, tuple(kwargs.values()), out))}
        size = sum(x.numel() * x.element_size() for x in tensors.values())
        work.bytes += size
        work.other_bytes += 0 if gelus or products else size
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def profile_kinds(model: nn.Module, call: Callable[[], Any], repeats: int) -> Profile:
    """What the operations of each kind do in one call, and how many seconds they take.

    Args:
        model: what ``call`` runs.
        call: one inference; it must do the same operations each time.
        repeats: timed calls.

    Returns:
        the work, and the seconds of ``repeats`` calls whose operations are not timed, each of
        which follows one whose operations are.

    Raises:
        RuntimeError: the calls do not do the same operations.
    """
    call()
    recorder = _Recorder()
    leave = lambda name: recorder.modules.pop()  # noqa: E731
    with watch_modules(model, recorder.modules.append, leave), recorder:
        call()
    whole = []
    for _ in range(repeats):
        recorder.restart()
        with recorder:
            call()
        begin = time.perf_counter()
        call()
        whole.append(time.perf_counter() - begin)
    recorder.add_times()
    return Profile(dict(recorder.work), statistics.median(whole), min(whole))
