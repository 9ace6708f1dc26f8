"""What counts as a multiply-accumulate (MAC), operation by operation.

A MAC is a multiplication together with the addition that goes with it; two floating-point
operations. Rules read the arguments and the result of a PyTorch operation (``torch.ops.aten``).

============== ===================================================================================
kind           counted
============== ===================================================================================
convolution    output values x kernel area x input channels of the group
matrix product rows x columns x summed length; linear layers, attention, offset learning
elementwise    one per value of a product of tensors: the taps of CARAFE, cosines, attention scale,
               layer scale, gates; squares of a norm of vectors
normalisation  batch norm in evaluation: one per value; norms that compute their statistics: two
sampling       bilinear sampling at free positions: four per output value; weighted sums of
               gathered vectors: one per gathered value
resize         four (bilinear) or sixteen (bicubic) per output value; nothing where sizes are equal
============== ===================================================================================

``convolution bias`` (one per output value of a convolution with bias) is an addition only, and is
kept apart: the paper's numbers hold it. Not counted: other additions and sums, divisions,
exponentials, softmax, activations, pooling, comparisons, and whatever only moves values.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor

CONVOLUTION = "convolution"
CONVOLUTION_BIAS = "convolution bias"
MATRIX = "matrix product"
ELEMENTWISE = "elementwise"
NORM = "normalisation"
SAMPLING = "sampling"
RESIZE = "resize"
# All that is summed up as "all operations".
KINDS = (CONVOLUTION, MATRIX, ELEMENTWISE, NORM, SAMPLING, RESIZE)
COUNTED = {
    CONVOLUTION: "output values x kernel area x input channels of the group",
    MATRIX: "rows x columns x summed length",
    ELEMENTWISE: "1 per value of a product of tensors (CARAFE's taps, cosines, scales, gates)",
    NORM: "1 per value, 2 where mean and variance are computed",
    SAMPLING: "4 per bilinearly sampled value, 1 per value of a weighted sum of gathered vectors",
    RESIZE: "4 (bilinear) or 16 (bicubic) per value",
}

# (arguments, result) of an operation -> MACs by kind
Rule = Callable[[tuple, Any], dict[str, int]]


def convolution_macs(
    image: Tensor, weight: Tensor, out: Tensor, *, transposed: bool = False
) -> int:
    """MACs of a convolution.

    Args:
        image: (B, C_in, ...).
        weight: (C_out, C_in / groups, kernel...), transposed: (C_in, C_out / groups, kernel...).
        out: (B, C_out, ...).
    """
    # Each output value sums over the weights of its channel; transposed, each input value goes
    # to as many output values.
    return (image if transposed else out).numel() * prod(weight.shape[1:])


def _convolution(args: tuple, out: Tensor) -> dict[str, int]:
    image, weight, bias = args[:3]
    transposed = len(args) > 6 and bool(args[6])
    macs = convolution_macs(image, weight, out, transposed=transposed)
    return {CONVOLUTION: macs, CONVOLUTION_BIAS: out.numel() if bias is not None else 0}


def _packed_convolution(args: tuple, out: Tensor) -> dict[str, int]:
    """Of oneDNN, with a weight whose first axes may be laid out in its own way.

    Arguments are (image, weight, bias, padding, stride, dilation, groups, ...); where something is
    added to the result, that stands behind the image, or before it if it is added to in place.
    """
    padding = next(i for i, argument in enumerate(args) if isinstance(argument, list))
    added_first = padding == 4 and args[1].shape != out.shape
    image, groups = args[1 if added_first else 0], args[padding + 3]
    weight, bias = args[padding - 2 : padding]
    macs = out.numel() * weight.shape[-2:].numel() * (image.shape[1] // groups)
    return {CONVOLUTION: macs, CONVOLUTION_BIAS: out.numel() if bias is not None else 0}


def _product(left: int, right: int) -> Rule:
    """Matrix product of the arguments at these positions."""

    def rule(args: tuple, out: Tensor) -> dict[str, int]:
        length = args[left].shape[-1]
        assert length == args[right].shape[-2 if args[right].ndim > 1 else -1]
        return {MATRIX: out.numel() * length}

    return rule


def _linear(args: tuple, out: Tensor) -> dict[str, int]:
    return {MATRIX: out.numel() * args[0].shape[-1]}


def _attention(args: tuple, out: Any) -> dict[str, int]:
    """Queries (..., Nq, d), keys (..., Nk, d), values (..., Nk, d_v)."""
    queries, keys, values = args[:3]
    pairs = queries.shape[:-1].numel() * keys.shape[-2]
    return {MATRIX: pairs * (queries.shape[-1] + values.shape[-1])}


def _per_value(kind: str, macs: int) -> Rule:
    return lambda args, out: {kind: macs * _first(out).numel()}


def _of_input(args: tuple, out: Any) -> dict[str, int]:
    return {ELEMENTWISE: args[0].numel()}


def _power(args: tuple, out: Tensor) -> dict[str, int]:
    is_square = isinstance(args[1], (int, float)) and args[1] == 2
    return {ELEMENTWISE: out.numel() if is_square else 0}


def _batch_norm(training: int | None) -> Rule:
    """Batch norm with the flag ``training`` at this position; None: never training."""

    def rule(args: tuple, out: Any) -> dict[str, int]:
        computed = training is not None and args[training]
        return {NORM: (2 if computed else 1) * _first(out).numel()}

    return rule


def _resize(macs: int) -> Rule:
    def rule(args: tuple, out: Tensor) -> dict[str, int]:
        return {RESIZE: macs * out.numel() if args[0].shape != out.shape else 0}

    return rule


def _grid_sample(args: tuple, out: Tensor) -> dict[str, int]:
    bilinear, nearest = 0, 1
    mode = args[2]
    corners = 2 ** args[1].shape[-1]
    return {SAMPLING: out.numel() * (corners if mode == bilinear else 0 if mode == nearest else 16)}


def _embedding_bag(args: tuple, out: Any) -> dict[str, int]:
    vectors, places = args[:2]
    return {SAMPLING: places.numel() * vectors.shape[-1]}


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, (tuple, list)) else out


# Name of the operation without overload (with name space, unless that is aten); a trailing
# underscore (in place) is taken off before.
RULES: dict[str, Rule] = {
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot"), _product(0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _product(1, 2)),
    "mkldnn::_convolution_pointwise": _packed_convolution,
    **dict.fromkeys(("linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear"), _linear),
    **dict.fromkeys(
        ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
         "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
         "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math",
         "_scaled_dot_product_fused_attention_overrideable"), _attention
    ),
    **dict.fromkeys(("mul", "addcmul", "lerp", "square"), _per_value(ELEMENTWISE, 1)),
    "linalg_vector_norm": _of_input,
    "pow": _power,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _batch_norm(5)
    ),
    "_native_batch_norm_legit_no_training": _batch_norm(None),
    "_batch_norm_no_update": _batch_norm(None),
    **dict.fromkeys(("native_group_norm", "native_layer_norm"), _per_value(NORM, 2)),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), _grid_sample),
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), _embedding_bag),
    **dict.fromkeys(("upsample_bilinear2d", "_upsample_bilinear2d_aa"), _resize(4)),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), _resize(16)),
}  # fmt: skip
