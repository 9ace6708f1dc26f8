"""A step on a pretended GPU: which operations it starts, what they move, and when it would wait.

Tensors are stand-ins (``FakeTensorMode``): they have a shape, a type and the device ``cuda``, but
no values, so that no GPU is needed. An operation that has to know a value on the host is one that
waits for the device. :class:`DeviceLog` writes all of them down, or refuses the first.

Counted is what PyTorch dispatches: an operation is one kernel, also where CUDA needs two. Views and
allocations are none.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Of the operations on lists of tensors: tensors that one kernel takes.
_TENSORS_PER_KERNEL = 32
_NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
        *("_unsafe_view", "_reshape_alias", "detach", "detach_", "alias", "lift_fresh", "set_"),
        *("as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_", "is_pinned"),
    )
)
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::_foreach_copy_")


class WaitError(RuntimeError):
    """An operation asks the device for a value."""


@dataclass
class Cost:
    """What a piece of work asks of the device.

    Attributes:
        kernels: how often each operation that does work was called.
        moved: bytes that operations read and write.
        waits: operations that wait for the device.
        flops: floating-point operations of convolutions, products and attentions.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    waits: list[str] = field(default_factory=list)
    flops: int = 0


class DeviceLog(TorchDispatchMode):
    """Counts the operations on a pretended device; to be entered inside of a ``FakeTensorMode``.

    Args:
        device: type of the device that is counted.
        refuse: raise :class:`WaitError` at the first wait beyond ``allowed``.
        allowed: number of waits that are not refused.
    """

    def __init__(self, device: str = "cuda", *, refuse: bool = False, allowed: int = 0) -> None:
        super().__init__()
        self.cost = Cost()
        self.device, self.refuse, self.allowed = device, refuse, allowed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        read = _tensors((args, kwargs))
        on_device = [tensor for tensor in read if tensor.device.type == self.device]
        try:
            out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self._wait(name)
            out = _made_up(name, args)
        if not isinstance(out, Tensor | list | tuple | None):  # None: works in place on lists
            return out
        written = [t for t in _tensors(out) if t.device.type == self.device]
        if not on_device and not written:
            return out
        self._look_for_copies(name, read, _tensors(out), args, kwargs)
        if name not in _NO_KERNEL and not func.is_view:
            tensors = max([len(a) for a in args if isinstance(a, list | tuple)] + [0])
            lists = name.startswith(("aten::_foreach", "aten::_fused", "aten::_amp"))
            self.cost.kernels[name] += math.ceil(tensors / _TENSORS_PER_KERNEL) if lists else 1
            changed = [t for t in _changed(func, args) if t.device.type == self.device]
            self.cost.moved += sum(map(_size, on_device)) + sum(map(_size, changed or written))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.cost.flops += count(*args, **kwargs, out_val=out)
        return out

    def _look_for_copies(
        self, name: str, read: list[Tensor], out: list[Tensor], args: Any, kwargs: dict[str, Any]
    ) -> None:
        """A copy between host and device waits, unless it is one that was asked not to."""
        if name in _COPIES:
            ends = [*read, *out]
            asynchronous = kwargs.get("non_blocking", False) or (
                name == "aten::copy_" and len(args) > 2 and args[2]
            )
            crosses = len({t.device.type for t in ends}) > 1
            # A number in memory of the host's is an argument of a kernel, no copy.
            is_number = name == "aten::copy_" and read[-1].is_cpu and read[-1].ndim == 0
            if crosses and not asynchronous and not is_number:
                self._wait(f"{name} {ends[0].device.type}->{ends[-1].device.type}")
        elif any(t.is_cpu and t.ndim > 0 for t in read) and len(read) > 1:
            self._wait(f"{name} with a tensor of the host")

    def _wait(self, name: str) -> None:
        self.cost.waits.append(name)
        if self.refuse and len(self.cost.waits) > self.allowed:
            raise WaitError(f"{name} waits for the device.")


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _changed(func: Any, args: Any) -> list[Tensor]:
    """Tensors and lists of tensors that an operation changes in place."""
    infos = [argument.alias_info for argument in func._schema.arguments]
    return _tensors([a for a, info in zip(args, infos, strict=False) if info and info.is_write])


def _size(tensor: Tensor) -> int:
    """Bytes that hold the values; those of an expanded axis are there once."""
    lengths = [
        length for length, step in zip(tensor.shape, tensor.stride(), strict=True) if step != 0
    ]
    return math.prod(lengths) * tensor.element_size()


def _made_up(name: str, args: Any) -> Any:
    """Something in place of a value that no one knows, so that the count can go on."""
    tensor = args[0]
    if name == "aten::nonzero":
        return tensor.new_empty(tensor.numel(), tensor.ndim, dtype=torch.int64)
    if name == "aten::_local_scalar_dense":
        return 1.0 if tensor.dtype.is_floating_point else 1
    if name == "aten::equal":
        return False
    raise WaitError(f"{name} waits for the device.")


def pretend(module: nn.Module, mode: FakeTensorMode, device: str = "cuda") -> nn.Module:
    """Replace all parameters and buffers by stand-ins on the device, in place."""
    known: dict[int, Tensor] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            with mode:
                fake = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
                )
            known[id(tensor)] = (
                nn.Parameter(fake, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else fake
            )
        return known[id(tensor)]

    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = stand_in(tensor)
    return module


@contextlib.contextmanager
def pretended_device(mode: FakeTensorMode, **options: Any) -> Iterator[Cost]:
    """Context in which tensors have no values and the work on ``cuda`` is counted.

    Args:
        mode: the one that the stand-ins come from.
        options: of :class:`DeviceLog`.
    """
    log = DeviceLog(**options)
    with (
        mock.patch("torch.autograd.backward", _backward),
        # Lists of stand-ins, too, are taken by one operation.
        mock.patch("torch.utils._foreach_utils._foreach_supported_types", [Tensor, FakeTensor]),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused_attention),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
        mode,
        log,
    ):
        yield log.cost


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """The form of CUDA; without a driver PyTorch would take the one of single operations."""
    bias = attn_mask
    if bias is not None:
        if bias.dtype is torch.bool:
            bias = query.new_zeros(bias.shape).masked_fill_(~bias, -math.inf)
        bias = bias.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled()
    )[0]


@torch.no_grad()
def _backward(root: Tensor, gradient: Tensor | None = None, *_: Any, **__: Any) -> None:
    """As ``torch.autograd.backward``, whose engine asks the driver for the device."""
    assert root.grad_fn is not None, "the loss needs a gradient"
    first = torch.ones_like(root) if gradient is None else gradient
    gradients: dict[Any, dict[int, Tensor]] = {root.grad_fn: {root.output_nr: first}}
    for node in _nodes(root.grad_fn):
        own = gradients.pop(node, None)
        if own is None:
            continue
        if hasattr(node, "variable"):  # a parameter
            before = node.variable.grad
            node.variable.grad = own[0].detach() if before is None else before + own[0]
            continue
        inputs = [own.get(i) for i in range(len(node._input_metadata))]
        results = node.apply(*inputs) if hasattr(node, "apply") else node(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        for (following, number), result in zip(node.next_functions, results, strict=False):
            if following is not None and result is not None:
                wanted = following._input_metadata[number]
                result = result.sum_to_size(wanted.shape).to(wanted.dtype)
                slots = gradients.setdefault(following, {})
                slots[number] = slots[number] + result if number in slots else result


def _nodes(root: Any) -> list[Any]:
    """Nodes of a graph of derivatives, each before those that it passes gradients to."""
    order, seen, stack = [], {root}, [(root, iter(root.next_functions))]
    while stack:
        node, following = stack[-1]
        for child, _ in following:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    return order[::-1]
