"""Rule for the pixel decoder of Mask2Former: points read as bags of table rows.

Deformable attention reads 12 points of each head for each pixel, each point between four pixels:
a weighted sum of 48 rows of a table, which an embedding bag computes in one pass. In pixels, the
points are a linear function of the query plus what depends on its place alone; the latter holds
the position code as well and is made once per size. All that follows belongs to each pixel alone
and is done for some of them at a time.

Shapes: B batch, C channels, h heads, L levels, P points, S pixels of all levels, n of a chunk, T
rows of the table.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.deploy.group_norm import group_norm_of_tokens_
from offseg_d2.deploy.mit import normalised
from offseg_d2.deploy.packed import PackedConv2d, PackedLinear
from offseg_d2.deploy.rules import rule
from offseg_d2.deploy.size_cache import SizeCache
from offseg_d2.layers import MSDeformAttn
from offseg_d2.modeling.pixel_decoder.msdeformattn import (
    DeformableEncoder,
    EncoderLayer,
    MSDeformAttnPixelDecoder,
    code_of_level,
    pixel_centres,
)

PIXELS_AT_ONCE = 1024
Size = tuple[int, int]


class Table(NamedTuple):
    """The levels as rows of one table, each with a border of zeros. All tensors are (h L P,).

    Attributes:
        sizes: (height, width) of each level.
        rows: T, of all levels and some more that only weights of zero reach.
        extent: largest x and y, in two rows.
        stride: rows of the table from one line of the level to the next.
        start: row of the level's first pixel.
        head: number of the head.
        corners: (h, 4, L P), steps from a pixel to its right, lower and lower right neighbour, in
            rows of one head.
    """

    sizes: list[Size]
    rows: int
    extent: Tensor
    stride: Tensor
    start: Tensor
    head: Tensor
    corners: Tensor

    @classmethod
    def of(cls, sizes: Sequence[Size], heads: int, points: int, like: Tensor) -> "Table":
        """A table for levels of these sizes."""
        starts, rows = [], 0
        for height, width in sizes:
            starts.append(rows + width + 3)
            rows += (height + 2) * (width + 2)
        rows += max(width for _, width in sizes) + 4

        def spread(values: Sequence[int]) -> Tensor:
            """(L,) -> (h L P,)."""
            level = torch.tensor(values, dtype=like.dtype, device=like.device)
            return level.repeat_interleave(points).repeat(heads)

        stride = spread([width + 2 for _, width in sizes])
        head = torch.arange(heads, dtype=torch.int32, device=like.device)
        down = (stride.int() * heads).view(heads, -1)
        steps = [down * 0, down * 0 + heads, down, down + heads]
        return cls(
            list(sizes),
            rows,
            torch.stack([spread([w for _, w in sizes]), spread([h for h, _ in sizes])]),
            stride,
            spread(starts),
            head.repeat_interleave(len(sizes) * points),
            torch.stack(steps, dim=1),
        )

    def fill(self, values: Tensor, out: Tensor) -> None:
        """Write the levels (S, C) into ``out`` (T, C), whose other rows are zero."""
        first = 0
        areas = [height * width for height, width in self.sizes]
        for level, (height, width) in zip(values.split(areas), self.sizes, strict=True):
            last = first + (height + 2) * (width + 2)
            inner = out[first:last].view(height + 2, width + 2, -1)[1:-1, 1:-1]
            inner.copy_(level.view(height, width, -1))
            first = last


def read_points(table: Table, values: Tensor, points: Tensor) -> Tensor:
    """What queries read at their points.

    Args:
        table: where the levels are in ``values``.
        values: (T h, C / h).
        points: (n, 3, h L P): x and y in pixels of the level, and logits of the weights; changed.

    Returns:
        (n, C).
    """
    heads = len(table.corners)
    x, y, logits = points.unbind(1)  # (n, h L P)
    weights = _softmax(logits.unflatten(1, (heads, -1)))  # (n, h, L P)
    # Beyond the border is zero as the border is.
    for values_of, largest in zip((x, y), table.extent, strict=True):
        torch.minimum(values_of.clamp_(min=-1.0), largest, out=values_of)
    left, top = x.floor(), y.floor()
    right_share, lower_share = (
        share.unflatten(1, (heads, -1)) for share in (x.sub_(left), y.sub_(top))
    )
    rows = torch.addcmul(left, top, table.stride).add_(table.start).to(torch.int32)
    rows = rows.mul_(heads).add_(table.head).view(len(x), heads, 1, -1)
    shares = weights.new_empty(len(x), heads, 4, weights.shape[2])
    upper_left, upper_right, lower_left, lower_right = shares.unbind(2)
    torch.mul(weights, lower_share, out=lower_left)
    torch.sub(weights, lower_left, out=upper_left)
    torch.mul(upper_left, right_share, out=upper_right)
    torch.mul(lower_left, right_share, out=lower_right)
    upper_left.sub_(upper_right)
    lower_left.sub_(lower_right)
    read = F.embedding_bag(
        (rows + table.corners).flatten(0, 1).flatten(1),
        values,
        mode="sum",
        per_sample_weights=shares.flatten(0, 1).flatten(1),
    )
    return read.view(len(x), -1)


def _softmax(logits: Tensor) -> Tensor:
    """Over the last axis; step by step, for PyTorch's is slow on an axis as short as this."""
    shares = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
    return shares.div_(shares.sum(dim=-1, keepdim=True))


class FastEncoderLayer(nn.Module):
    """:class:`EncoderLayer`."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        attn: MSDeformAttn = layer.self_attn
        self.points_shape = attn.points_shape
        offsets = attn.sampling_offsets
        # (x or y, or weight) outermost, so that each can be worked on at once
        weight = [*offsets.weight.unflatten(0, (-1, 2)).unbind(1), attn.attention_weights.weight]
        bias = [*offsets.bias.unflatten(0, (-1, 2)).unbind(1), attn.attention_weights.bias]
        self.points = PackedLinear(torch.cat(weight), None)
        self.points_bias = nn.Parameter(torch.cat(bias), requires_grad=False)
        self.value_proj = PackedLinear.of(attn.value_proj)
        self.output_proj = PackedLinear.of(attn.output_proj)
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.linear1 = PackedLinear.of(layer.linear1, "relu")
        self.linear2 = PackedLinear.of(layer.linear2)

    def points_of_place(self, position: Tensor, reference: Tensor, table: Table) -> Tensor:
        """Points of a query that is zero but for its position code.

        Args:
            position: (S, C).
            reference: (S, 2), (x, y) in [0, 1].
            table: of the levels.

        Returns:
            (S, 3 h L P), as :func:`read_points` takes them.
        """
        points = self.points(position) + self.points_bias
        points = points.unflatten(1, (3, -1))  # (S, 3, h L P)
        points[:, :2] += reference[:, :, None] * table.extent - 0.5
        return points.flatten(1)

    def forward(self, pixels: Tensor, of_place: Tensor, table: Table, values: Tensor) -> Tensor:
        """One image's pixels (S, C) -> (S, C); ``values`` (T, C) is changed."""
        heads = self.points_shape[0]
        table.fill(self.value_proj(pixels), values)
        rows = values.view(len(values) * heads, -1)
        out = torch.empty_like(pixels)
        for part, place, result in zip(
            *(x.split(PIXELS_AT_ONCE) for x in (pixels, of_place, out)), strict=True
        ):
            points = self.points(part, place).unflatten(1, (3, -1))
            read = read_points(table, rows, points)
            part = normalised(self.output_proj(read, part), self.norm1)
            result.copy_(normalised(self.linear2(self.linear1(part), part), self.norm2))
        return out


class FastDeformableEncoder(nn.Module):
    """:class:`DeformableEncoder` on tokens."""

    def __init__(self, encoder: DeformableEncoder) -> None:
        super().__init__()
        self.level_embed = encoder.level_embed
        self.layers = nn.ModuleList(map(FastEncoderLayer, encoder.encoder["layers"]))
        self._places = SizeCache()

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """(B, H_l, W_l, C) for each level -> the same shapes."""
        sizes = [(level.shape[1], level.shape[2]) for level in levels]
        pixels = torch.cat([level.flatten(1, 2) for level in levels], dim=1)  # (B, S, C)
        table, of_places = self._places.get(
            tuple(sizes), pixels, lambda: self._of_places(sizes, pixels)
        )
        values = pixels.new_zeros(table.rows, pixels.shape[2])
        images = []
        for image in pixels:
            for layer, of_place in zip(self.layers, of_places, strict=True):
                image = layer(image, of_place, table, values)
            images.append(image)
        parts = torch.stack(images).split([height * width for height, width in sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]

    def _of_places(self, sizes: list[Size], like: Tensor) -> tuple[Table, list[Tensor]]:
        heads, _, points = self.layers[0].points_shape
        table = Table.of(sizes, heads, points, like)
        position = torch.cat(
            [code_of_level(*pair) for pair in zip(sizes, self.level_embed, strict=True)]
        )
        reference = torch.cat([pixel_centres(size, like) for size in sizes])
        return table, [layer.points_of_place(position, reference, table) for layer in self.layers]


class FastMSDeformAttnPixelDecoder(nn.Module):
    """:class:`MSDeformAttnPixelDecoder` on tokens."""

    def __init__(self, decoder: MSDeformAttnPixelDecoder) -> None:
        super().__init__()
        self.in_features = list(decoder.in_features)
        self.out_channels, self.out_stride = decoder.out_channels, decoder.out_stride
        self.num_memory_levels = decoder.num_memory_levels
        self.input_proj = nn.ModuleList(PackedLinear.of(conv) for conv, _ in decoder.input_proj)
        self.input_norms = nn.ModuleList(norm for _, norm in decoder.input_proj)
        self.transformer = FastDeformableEncoder(decoder.transformer)
        self.adapter, self.adapter_norm = PackedLinear.of(decoder.adapter_1), decoder.adapter_1.norm
        self.layer, self.layer_norm = PackedConv2d(decoder.layer_1), decoder.layer_1.norm
        self.mask_features = PackedLinear.of(decoder.mask_features)

    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        """Mask features and encoded levels, from fine to coarse, channels innermost."""
        finest, *coarse = (
            features[name].permute(0, 2, 3, 1).contiguous() for name in self.in_features
        )
        projected = [
            group_norm_of_tokens_(project(level), norm)
            for project, norm, level in zip(
                self.input_proj, self.input_norms, reversed(coarse), strict=True
            )
        ]
        memories = [x.permute(0, 3, 1, 2) for x in self.transformer(projected)[::-1]]
        lateral = group_norm_of_tokens_(self.adapter(finest), self.adapter_norm)
        lateral = lateral.permute(0, 3, 1, 2)
        lateral += F.interpolate(
            memories[0], size=lateral.shape[-2:], mode="bilinear", align_corners=False
        )
        mixed = self.layer(lateral).permute(0, 2, 3, 1)
        mixed = group_norm_of_tokens_(mixed, self.layer_norm, relu=True)
        return [self.mask_features(mixed).permute(0, 3, 1, 2), *memories]


@rule(MSDeformAttnPixelDecoder)
@torch.no_grad()
def fast_msdeformattn(decoder: MSDeformAttnPixelDecoder) -> nn.Module | None:
    """Points read as bags of rows, pixels in chunks."""
    is_known = decoder.layer_1.activation is F.relu and decoder.adapter_1.activation is None
    return FastMSDeformAttnPixelDecoder(decoder) if is_known else None
