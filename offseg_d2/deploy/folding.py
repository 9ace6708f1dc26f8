"""Batch norms and channel-wise scales as part of the convolution before them.

In evaluation a batch norm is one factor and one summand per channel; the weights and the bias of
the convolution that it follows can take both in. Which norm follows which convolution is read off
a symbolic trace of each module (``torch.fx``), so it holds for networks of any library.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from detectron2.layers import Conv2d as NormedConv2d
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Detectron2's frozen norm is no subclass of PyTorch's.
BatchNorm = _BatchNorm | FrozenBatchNorm2d


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel with and then adds, in float64: two of (C,)."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


@torch.no_grad()
def affine_after(conv: nn.Conv2d, scale: Tensor, shift: Tensor | float = 0.0) -> nn.Conv2d:
    """A convolution whose result is ``scale * conv(x) + shift``.

    Args:
        conv: any 2-D convolution without norm and activation of its own.
        scale: (C_out,) or broadcastable to it.
        shift: likewise.

    Returns:
        a new ``nn.Conv2d`` with a bias; ``conv`` is not changed.
    """
    dtype, weight = conv.weight.dtype, conv.weight.double()
    scale = torch.as_tensor(scale).detach().double().flatten().expand(len(weight))
    shift = torch.as_tensor(shift, device=weight.device).detach().double().flatten()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    return _conv_like(
        conv, (weight * scale.view(-1, 1, 1, 1)).to(dtype), (bias * scale + shift).to(dtype)
    )


def fold_conv_bn(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """A convolution that does what ``conv`` followed by the batch norm ``norm`` does."""
    return affine_after(conv, *scale_and_shift(norm))


@torch.no_grad()
def side_by_side(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One ungrouped convolution with the output channels of all, which read the same input."""
    dtype = convs[0].weight.dtype
    biases = [
        conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        for conv in convs
    ]
    return _conv_like(convs[0], torch.cat([c.weight for c in convs]), torch.cat(biases).to(dtype))


def _conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    new = nn.utils.skip_init(
        nn.Conv2d,
        conv.in_channels,
        len(weight),
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        padding_mode=conv.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    new.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return new.eval()


def fold_batch_norms(model: nn.Module) -> int:
    """Fold every batch norm that directly follows a convolution into it, in place.

    Args:
        model: in evaluation mode.

    Returns:
        number of norms that were folded. Others stay: those without running statistics, after
        something else, after a convolution whose result has another use, and in modules whose
        forward cannot be traced (their children are looked at one by one).
    """
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    return _fold_own_norms(model) + sum(
        _fold_pair(module, conv, norm, uses) for module, conv, norm in _pairs(model)
    )


def _fold_own_norms(model: nn.Module) -> int:
    """Detectron2's convolution applies its norm itself."""
    count = 0
    for conv in model.modules():
        if type(conv) is NormedConv2d and _is_foldable(conv.norm):
            folded = fold_conv_bn(conv, conv.norm)
            conv.weight, conv.bias, conv.norm = folded.weight, folded.bias, None
            count += 1
    return count


def _fold_pair(module: nn.Module, conv_name: str, norm_name: str, uses: Counter) -> bool:
    conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
    if uses[id(conv)] > 1 or uses[id(norm)] > 1 or not _is_foldable(norm):
        return False
    # What a subclass does after normalising (an activation in timm's) stays.
    rest = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    if rest and type(norm).__name__ != "BatchNormAct2d":
        return False
    module.set_submodule(conv_name, fold_conv_bn(conv, norm))
    module.set_submodule(norm_name, nn.Sequential(*rest) if rest else nn.Identity())
    return True


def _is_foldable(norm: nn.Module | None) -> bool:
    return isinstance(norm, BatchNorm) and not norm.training and norm.running_mean is not None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, name of a convolution in it, name of the norm that alone uses its result)."""
    graph = _trace(module)
    if graph is None:
        for child in module.children():
            yield from _pairs(child)
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(module.get_submodule(node.target), BatchNorm):
            continue
        conv = node.args[0] if node.args else None
        if (
            isinstance(conv, fx.Node)
            and conv.op == "call_module"
            and type(module.get_submodule(conv.target)) is nn.Conv2d
            and len(conv.users) == 1
            and calls[conv.target] == calls[node.target] == 1
        ):
            yield module, conv.target, node.target


def _trace(module: nn.Module) -> fx.Graph | None:
    """The module's graph; None if its forward depends on values or shapes."""
    if not any(isinstance(child, BatchNorm) for child in module.modules()) or isinstance(
        module, BatchNorm
    ):
        return fx.Graph()  # nothing to fold in here
    # Tracing runs the module's Python code. What that may store on the module shall not stay, so
    # a copy is traced, which shares the weights.
    tensors = (*module.parameters(), *module.buffers())
    twin = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    try:
        with torch.enable_grad():
            return _Tracer().trace(twin)
    except Exception:  # whatever code does with a value that it cannot get
        return None
