"""Linear layers and convolutions with weights laid out for the processor.

oneDNN, which PyTorch computes convolutions with on a CPU, reads weights in blocks. PyTorch
rearranges them at every call, and does linear layers by another library. Here the weights are
rearranged once, and an activation or a sum happens in the same pass, before the result leaves the
cache.

The operators are those that ``torch.compile`` emits. Where they do not apply (another device or
type, gradients, tracing, autocast), the usual ones take their place; the values are the same.

Shapes: B batch, C channels, N rows.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "gelu": F.gelu,
}


def _is_packable(tensor: Tensor, weight: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype == weight.dtype
        and (tensor.dtype == torch.float32 or _is_bfloat16(tensor.dtype))
        and tensor.numel() > 0
        and not (torch.is_grad_enabled() and (tensor.requires_grad or weight.requires_grad))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


@cache
def _is_bfloat16(dtype: torch.dtype) -> bool:
    """Whether it is that type, and the processor has operations for it."""
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Packed(nn.Module):
    """Holds a weight, a bias, and the weight as the processor likes it, made when first needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {sorted(ACTIVATIONS)}, but is {activation!r}."
            )
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )
        self.activation = activation
        self._packed: Tensor | None = None

    def _forget(self) -> None:
        self._packed = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Packed":
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        """Neither copies nor files hold what can be made again."""
        return {**super().__getstate__(), "_packed": None}

    @property
    def _algorithm(self) -> str:
        return "none" if self.activation == "gelu" else ""  # GELU by the error function


class PackedLinear(_Packed):
    """``activation(x W^T + b)``, or ``x W^T + b + summand``.

    Args:
        weight: (C_out, C_in), copied.
        bias: (C_out,) or None.
        activation: a key of ``ACTIVATIONS``.
    """

    @classmethod
    def of(cls, layer: nn.Linear | nn.Conv2d, activation: str = "none") -> "PackedLinear":
        """A linear layer, or a 1x1 convolution for tokens."""
        return cls(layer.weight.flatten(1), layer.bias, activation)

    def forward(self, tokens: Tensor, summand: Tensor | None = None) -> Tensor:
        """(..., C_in) -> (..., C_out).

        Args:
            tokens: (..., C_in).
            summand: (..., C_out) added to the result, only without an activation.
        """
        assert summand is None or self.activation == "none", self.activation
        if not _is_packable(tokens, self.weight):
            out = F.linear(tokens, self.weight, self.bias)
            return ACTIVATIONS[self.activation](out) if summand is None else out + summand
        if self._packed is None:
            rows = tokens.numel() // tokens.shape[-1]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)
        linear = torch.ops.mkldnn._linear_pointwise
        if summand is None:
            return linear(tokens, self._packed, self.bias, self.activation, [], self._algorithm)
        return linear.binary(tokens, summand, self._packed, self.bias, "add")

    def extra_repr(self) -> str:
        width, dim = self.weight.shape
        return f"{dim}, {width}, activation={self.activation!r}"


class PackedConv2d(_Packed):
    """A convolution followed by an activation, or by a sum.

    Args:
        conv: without norm or activation of its own, zero padding; copied.
        activation: a key of ``ACTIVATIONS``.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none") -> None:
        super().__init__(conv.weight, conv.bias, activation)
        assert conv.padding_mode == "zeros" and not isinstance(conv.padding, str), conv
        self.stride, self.padding = list(conv.stride), list(conv.padding)
        self.dilation, self.groups = list(conv.dilation), conv.groups

    def forward(self, features: Tensor, summand: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W), channels innermost -> (B, C_out, H', W'), channels innermost.

        Args:
            features: (B, C_in, H, W).
            summand: (B, C_out, H', W') added to the result, only without an activation.
        """
        assert summand is None or self.activation == "none", self.activation
        where = (self.padding, self.stride, self.dilation, self.groups)
        if not _is_packable(features, self.weight):
            padding, stride, dilation, groups = where
            out = F.conv2d(features, self.weight, self.bias, stride, padding, dilation, groups)
            return ACTIVATIONS[self.activation](out) if summand is None else out + summand
        # Otherwise a map of one channel or one pixel counts as laid out the other way.
        features = features.contiguous(memory_format=torch.channels_last)
        if self._packed is None:
            self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.detach().to_mkldnn(), *where, list(features.shape)
            )
        conv = torch.ops.mkldnn._convolution_pointwise
        if summand is None:
            return conv(
                features, self._packed, self.bias, *where, self.activation, [], self._algorithm
            )
        return conv.binary(
            *(features, summand, self._packed, self.bias, *where),
            *("add", None, None, [], None),
        )

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, activation={self.activation!r}"


class PackedMatrix:
    """A matrix that several others are multiplied with, for use within one forward pass.

    Args:
        matrix: W (C_out, C_in).
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._packed: Tensor | None = None

    def __call__(self, rows: Tensor, summand: Tensor | None = None) -> Tensor:
        """x (N, C_in) -> x W^T (N, C_out), plus ``summand`` (N, C_out) if there is one."""
        if not _is_packable(rows, self._matrix):
            product = rows @ self._matrix.mT
            return product if summand is None else product + summand
        if self._packed is None:
            matrix = self._matrix.detach().contiguous()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix, len(rows))
        linear = torch.ops.mkldnn._linear_pointwise
        if summand is None:
            return linear(rows, self._packed, None, "none", [], "")
        return linear.binary(rows, summand, self._packed, None, "add")
