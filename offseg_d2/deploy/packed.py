"""Linear layers and convolutions with weights laid out for the processor.

oneDNN, which PyTorch computes convolutions with on a CPU, reads weights in blocks. PyTorch
rearranges them at every call, and computes linear layers by another library. Here the weights are
rearranged once, and GELU or a sum happens in the same pass, before the result leaves the cache.

The operators are those that ``torch.compile`` emits. Where they do not apply (another device or
type, gradients, tracing, autocast), the usual ones take their place; the values are the same.

Shapes: B batch, C channels, N rows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _is_packable(tensor: Tensor, weight: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype == weight.dtype == torch.float32
        and tensor.numel() > 0
        and not (torch.is_grad_enabled() and (tensor.requires_grad or weight.requires_grad))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


class _Packed(nn.Module):
    """Holds a weight, a bias, and the weight as the processor likes it, made when first needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = (
            None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )
        self.gelu = gelu
        self._packed: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Packed":
        self._packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        """Leave out of copies and files what can be made again."""
        return {**super().__getstate__(), "_packed": None}

    def _finished(self, out: Tensor, summand: Tensor | None) -> Tensor:
        """Apply GELU or add, where the usual operators computed ``out``."""
        if summand is not None:
            return out + summand
        return F.gelu(out) if self.gelu else out

    @property
    def _activation(self) -> tuple[str, list, str]:
        """Name, scalars and algorithm (the error function's) for the operators of oneDNN."""
        return ("gelu", [], "none") if self.gelu else ("none", [], "")


class PackedLinear(_Packed):
    """``x W^T + b``, followed by GELU or by a sum.

    Args:
        weight: (C_out, C_in), copied.
        bias: (C_out,) or None.
        gelu: apply GELU.
    """

    @classmethod
    def of(cls, layer: nn.Linear | nn.Conv2d, gelu: bool = False) -> "PackedLinear":
        """A linear layer, or a 1x1 convolution for tokens."""
        return cls(layer.weight.flatten(1), layer.bias, gelu)

    def forward(self, tokens: Tensor, summand: Tensor | None = None) -> Tensor:
        """(..., C_in) -> (..., C_out).

        Args:
            tokens: (..., C_in).
            summand: (..., C_out) added to the result, only without GELU.
        """
        assert summand is None or not self.gelu
        if not _is_packable(tokens, self.weight):
            return self._finished(F.linear(tokens, self.weight, self.bias), summand)
        if self._packed is None:
            rows = tokens.numel() // tokens.shape[-1]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), rows)
        linear = torch.ops.mkldnn._linear_pointwise
        if summand is None:
            return linear(tokens, self._packed, self.bias, *self._activation)
        return linear.binary(tokens, summand, self._packed, self.bias, "add")


class PackedConv2d(_Packed):
    """A convolution followed by GELU or by a sum.

    Args:
        conv: without norm or activation of its own, zero padding; copied.
        gelu: apply GELU.
    """

    def __init__(self, conv: nn.Conv2d, gelu: bool = False) -> None:
        super().__init__(conv.weight, conv.bias, gelu)
        assert conv.padding_mode == "zeros" and not isinstance(conv.padding, str), conv
        self.stride, self.padding = list(conv.stride), list(conv.padding)
        self.dilation, self.groups = list(conv.dilation), conv.groups

    def forward(self, features: Tensor, summand: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W), channels innermost -> (B, C_out, H', W'), channels innermost.

        Args:
            features: (B, C_in, H, W).
            summand: (B, C_out, H', W') added to the result, only without GELU.
        """
        assert summand is None or not self.gelu
        if not _is_packable(features, self.weight):
            where = (self.stride, self.padding, self.dilation, self.groups)
            return self._finished(F.conv2d(features, self.weight, self.bias, *where), summand)
        where = (self.padding, self.stride, self.dilation, self.groups)
        # Otherwise a map of one channel or one pixel counts as laid out the other way.
        features = features.contiguous(memory_format=torch.channels_last)
        if self._packed is None:
            self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
                self.weight.detach().to_mkldnn(), *where, list(features.shape)
            )
        conv = torch.ops.mkldnn._convolution_pointwise
        if summand is None:
            return conv(features, self._packed, self.bias, *where, *self._activation)
        added = (features, summand, self._packed, self.bias, *where)
        return conv.binary(*added, "add", None, None, [], None)
