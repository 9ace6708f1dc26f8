"""Multiply-accumulates (MACs) of PyTorch's operations, as formulas for its ``FlopCounterMode``.

A MAC is a multiplication together with the addition that goes with it: two floating-point
operations (FLOPs), which is what the formulas give.

============== ===================================================================================
kind           MACs
============== ===================================================================================
convolution    output values x kernel area x input channels of the group
matrix product rows x columns x summed length; linear layers, attention, offset learning
elementwise    one per value of a product of tensors: the taps of CARAFE, cosines, attention scale,
               layer scale, gates; squares of a norm of vectors
normalisation  batch norm in evaluation: one per value; norms that compute their statistics: two
sampling       bilinear sampling at any position: four per output value; weighted sums of
               gathered vectors: one per gathered value
resize         four (bilinear) or sixteen (bicubic) per output value; nothing where sizes are equal
============== ===================================================================================

``convolution bias`` (one per output value of a convolution with bias) is an addition only, and is
kept apart: the paper's numbers hold it. Not counted: other additions and sums, divisions,
exponentials, softmax, activations, pooling, comparisons, and whatever only moves values.

Convolutions and matrix products are counted by PyTorch's own formulas; here are the other kinds,
and the operators of a processor's libraries.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_flop_count

import offseg_d2.layers  # noqa: F401 (registers its operators)

CONVOLUTION = "convolution"
CONVOLUTION_BIAS = "convolution bias"
MATRIX = "matrix product"
ELEMENTWISE = "elementwise"
NORM = "normalisation"
SAMPLING = "sampling"
RESIZE = "resize"
# All that is summed up as "all operations".
KINDS = (CONVOLUTION, MATRIX, ELEMENTWISE, NORM, SAMPLING, RESIZE)

# Arguments of an operation, with shapes in place of tensors, and `out_shape` -> FLOPs.
Formula = Callable[..., int]


def _first(shape: Any) -> torch.Size:
    """The shape of the first result."""
    return shape if isinstance(shape, torch.Size) else shape[0]


def _per_value(macs: int) -> Formula:
    return lambda *args, out_shape, **kwargs: 2 * macs * prod(_first(out_shape))


def _power(base: torch.Size, exponent: Any, *, out_shape: torch.Size, **kwargs: Any) -> int:
    return 2 * prod(out_shape) if exponent == 2 else 0


def _vector_norm(values: torch.Size, *args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    return 2 * prod(values)


def _batch_norm(image: torch.Size, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    training = args[4]
    return 2 * (2 if training else 1) * prod(image)


def _resize(macs: int) -> Formula:
    def formula(image: torch.Size, *args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
        return 2 * macs * prod(out_shape) if image != out_shape else 0

    return formula


def _grid_sample(
    image: torch.Size, grid: torch.Size, mode: int, *args: Any, out_shape: torch.Size, **kwargs: Any
) -> int:
    corners = {0: 4, 1: 0, 2: 16}[mode]  # bilinear, nearest, bicubic
    return 2 * corners * prod(out_shape)


def _embedding_bag(
    vectors: torch.Size, indices: torch.Size, *args: Any, out_shape: Any, **kwargs: Any
) -> int:
    return 2 * prod(indices) * vectors[-1]


def _vector_product(left: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * prod(left)


def _added_product(
    summand: torch.Size, left: torch.Size, right: torch.Size, *args: Any, **kwargs: Any
) -> int:
    return 2 * prod(left) * right[-1]


def _attention(
    queries: torch.Size, keys: torch.Size, values: torch.Size, *args: Any, **kwargs: Any
) -> int:
    return sdpa_flop_count(queries, keys, values)


def _packed_linear(image: torch.Size, *args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * image[-1]


def _packed_convolution(*args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    """Of oneDNN, with a weight whose first axes may be laid out in its own way.

    Arguments are (image, weight, bias, padding, stride, dilation, groups, ...); where something is
    added to the result, that stands behind the image, or before it if it is added to in place.
    """
    padding = next(i for i, argument in enumerate(args) if isinstance(argument, list))
    added_first = padding == 4 and args[1] != out_shape
    image, groups, weight = args[1 if added_first else 0], args[padding + 3], args[padding - 2]
    return 2 * prod(out_shape) * prod(weight[-2:]) * (image[1] // groups)


def _convolution_bias(*args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    """The bias is the argument before the list of strides or paddings."""
    first_list = next(i for i, argument in enumerate(args) if isinstance(argument, list))
    return 0 if args[first_list - 1] is None else 2 * prod(out_shape)


def _carafe(
    features: torch.Size, kernels: torch.Size, *args: Any, out_shape: torch.Size, **kwargs: Any
) -> int:
    return 2 * prod(out_shape) * kernels[1]


def _similarity(
    features: torch.Size, distance: int, *args: Any, out_shape: Any, **kwargs: Any
) -> int:
    """As the PyTorch form: the squares of a norm, four directions over enlarged areas."""
    batch, channels, height, width = features
    row, rows = height * (width + distance), (height + distance) * width
    diagonals = 2 * (height + distance) * (width + distance)
    return 2 * batch * channels * (height * width + row + rows + diagonals)


def _operators(*names: str) -> list[Any]:
    """The operators of these names, in place as well; a build may lack those of a library."""
    found = []
    for name in names:
        library, _, operator = name.rpartition(".")
        group = getattr(torch.ops, library or "aten")
        found += [getattr(group, operator + suffix, None) for suffix in ("", "_")]
    return [operator for operator in found if operator is not None]


_TABLE: list[tuple[str, Formula, list[Any]]] = [
    (CONVOLUTION, _packed_convolution, _operators("mkldnn._convolution_pointwise")),
    (MATRIX, _vector_product, _operators("mv", "dot")),
    (MATRIX, _added_product, _operators("addmm", "baddbmm")),
    (MATRIX, _packed_linear, _operators("mkldnn._linear_pointwise", "mkl._mkl_linear")),
    (MATRIX, _attention, _operators("_scaled_dot_product_flash_attention_for_cpu")),
    (ELEMENTWISE, _per_value(1), _operators("mul", "addcmul", "lerp")),
    (ELEMENTWISE, _carafe, _operators("offseg_d2.carafe")),
    (ELEMENTWISE, _similarity, _operators("offseg_d2.neighbour_similarity")),
    (ELEMENTWISE, _vector_norm, _operators("linalg_vector_norm")),
    (ELEMENTWISE, _power, _operators("pow")),
    (NORM, _batch_norm, _operators("native_batch_norm", "cudnn_batch_norm")),
    (NORM, _per_value(2), _operators("native_group_norm", "native_layer_norm")),
    (SAMPLING, _grid_sample, _operators("grid_sampler_2d")),
    (SAMPLING, _embedding_bag, _operators("_embedding_bag", "_embedding_bag_forward_only")),
    (RESIZE, _per_value(0), _operators("upsample_nearest2d")),
    (RESIZE, _resize(4), _operators("upsample_bilinear2d", "_upsample_bilinear2d_aa")),
    (RESIZE, _resize(16), _operators("upsample_bicubic2d", "_upsample_bicubic2d_aa")),
]
# For `FlopCounterMode(custom_mapping=...)`: all operations, and the biases of convolutions instead.
# Overloads named as well are not decomposed into others, such as those that compute indices.
FORMULAS = {
    key: formula
    for _, formula, group in _TABLE
    for operator in group
    for key in (operator, getattr(operator, "default", operator))
}
_CONVOLUTION_OPERATORS = _operators("convolution", "_convolution", "mkldnn._convolution_pointwise")
BIAS_FORMULAS = {**FORMULAS, **dict.fromkeys(_CONVOLUTION_OPERATORS, _convolution_bias)}
_KIND_OF = {operator: kind for kind, _, group in _TABLE for operator in group}
_KIND_OF |= dict.fromkeys(_CONVOLUTION_OPERATORS, CONVOLUTION)


def kind_of(operator: Any) -> str:
    """Kind of an operator that is counted; those that only PyTorch counts are matrix products."""
    return _KIND_OF.get(operator, MATRIX)
