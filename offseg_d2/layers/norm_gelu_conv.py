"""Batch norm, GELU and convolution in a row, in training with a third of the memory.

Each of the three keeps its own input for the backward pass, all of one size. The inputs of GELU and
convolution follow from that of the norm and from its statistics by a few cheap operations; here
they are computed again instead of kept. The chain is most of what an inverted bottleneck stores.

Shapes: B batch, C channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.layers.first_derivative import first_derivative_only


def norm_gelu_conv(features: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    """``conv(gelu(norm(features)))``, with the same results and the same running statistics.

    Args:
        features: (B, C, H, W).
        norm: any norm over C channels; only ``nn.BatchNorm2d`` itself saves memory.
        conv: zero-padded convolution of C channels.

    Returns:
        (B, C', H', W').
    """
    if not _can_be_one(features, norm, conv):
        return conv(F.gelu(norm(features)))
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
    return _NormGeluConv.apply(
        features,
        norm.weight,
        norm.bias,
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        (norm.training, norm.momentum, norm.eps),
        (conv.stride, conv.padding, conv.dilation, conv.groups),
    )


def _can_be_one(features: Tensor, norm: nn.Module, conv: nn.Module) -> bool:
    """True if gradients are wanted and the modules are just what their types say."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # the compiler decides on its own what to keep
        and not torch.is_autocast_enabled(features.device.type)
        and type(norm) is nn.BatchNorm2d
        and type(conv) is nn.Conv2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not any(_has_hooks(module) for module in (norm, conv))
        and (not norm.training or features.numel() > features.shape[1])  # else the norm refuses
    )


def _has_hooks(module: nn.Module) -> bool:
    """True if a hook is called with the module, forward or backward."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


class _NormGeluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        norm: tuple[bool, float, float],
        conv: tuple,
    ) -> Tensor:
        training, momentum, eps = norm
        if training:
            normalised, mean, inverse_std = torch.ops.aten.native_batch_norm(
                features, gamma, beta, running_mean, running_var, True, momentum, eps
            )
        else:  # copies: the statistics may change before the backward pass
            mean, inverse_std = running_mean.clone(), (running_var + eps).rsqrt()
            normalised = _affine(features, gamma, beta, mean, inverse_std)
        activated = torch.ops.aten.gelu_(normalised)
        ctx.save_for_backward(features, gamma, beta, weight, mean, inverse_std)
        ctx.norm, ctx.conv, ctx.has_bias = norm, conv, bias is not None
        stride, padding, dilation, groups = conv
        return F.conv2d(activated, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        features, gamma, beta, weight, mean, inverse_std = ctx.saved_tensors
        training, _, eps = ctx.norm
        stride, padding, dilation, groups = ctx.conv
        normalised = _affine(features, gamma, beta, mean, inverse_std)
        activated = F.gelu(normalised)
        needed = [True, ctx.needs_input_grad[3], ctx.has_bias]
        grad, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            *(grad_out, activated, weight, weight.shape[:1] if ctx.has_bias else None),
            *(stride, padding, dilation, False, (0, 0), groups, needed),
        )
        del activated
        grad = torch.ops.aten.gelu_backward(grad, normalised)
        del normalised
        # In evaluation the operator asks for the running statistics: those of the forward pass.
        variance = None if training else inverse_std.pow(-2) - eps
        grad, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
            *(grad, features, gamma, None if training else mean, variance),
            *(mean, inverse_std, training, eps, [True, True, True]),
        )
        return grad, grad_gamma, grad_beta, grad_weight, grad_bias, None, None, None, None


def _affine(
    features: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, inverse_std: Tensor
) -> Tensor:
    """Batch norm of known statistics."""
    factor = gamma * inverse_std
    shift = (beta - mean * factor)[:, None, None]
    return torch.addcmul(shift, features, factor[:, None, None])
