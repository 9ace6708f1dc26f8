"""Rule for Swin: one gather for padding, shift and windows; biases and masks made once per size.

What the usual order does to the normalised map (pad, roll, cut into windows) only moves tokens
around. Queries, keys and values are therefore computed before it, for real tokens alone, and one
gather by a table of indices does the rest; padded tokens, which are zero, have the projection's
bias. Only windows that the shift splits have masks; all others share one bias.

Shapes: B batch, C channels, h heads, H x W tokens, N = H W, w windows, n tokens of a window.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.swin import (
    PatchMerging,
    SwinTransformerBlock,
    WindowAttention,
)
from torch import Tensor, nn

from offseg_d2.deploy.mit import normalised
from offseg_d2.deploy.packed import PackedConv2d, PackedLinear
from offseg_d2.deploy.rules import rule
from offseg_d2.deploy.size_cache import SizeCache
from offseg_d2.modeling.backbone.swin import Swin

BLOCKED = -100.0  # what Swin adds to similarities across the border of a shifted map
WINDOWS_AT_ONCE = 64
ROWS_AT_ONCE = 2048  # of the feed-forward network


class WindowGroup(NamedTuple):
    """Some windows that are attended to at once.

    Attributes:
        gather: (w n,) index of each token in the map.
        padded: places among these of tokens that are not in the map; their index is 0.
        bias: (1 or w, h, n, n) added to the similarities.
    """

    gather: Tensor
    padded: Tensor
    bias: Tensor


class Windows(NamedTuple):
    """Where the tokens of a map's windows are, and where each token (N,) is among them."""

    groups: list[WindowGroup]
    scatter: Tensor


def windows_of(size: tuple[int, int], side: int, shift: int, bias: Tensor) -> Windows:
    """Cut a map that is padded to multiples of ``side`` and rolled by ``shift``.

    Args:
        size: (H, W).
        side: of a window, in tokens.
        shift: by which rows and columns are rolled up and left.
        bias: (1, h, n, n) of all windows.

    Raises:
        NotImplementedError: within ``torch.export``, which cannot follow what depends on values.
    """
    if torch.compiler.is_exporting():
        raise NotImplementedError(
            "An optimized Swin must have run at the size at which it is exported, but has not at "
            f"{size[0]} x {size[1]} tokens."
        )
    device, (height, width) = bias.device, size
    rows, columns = (
        (torch.arange(padded, device=device) + shift) % padded
        for padded in (-(-height // side) * side, -(-width // side) * side)
    )
    inside = (rows < height)[:, None] & (columns < width)
    places = torch.where(inside, rows[:, None] * width + columns, height * width)
    # The last window of an axis holds tokens from both ends of it, which must not mix.
    parts = 2 * (rows < shift)[:, None] + (columns < shift).int()
    places, parts = (
        x.unfold(0, side, side).unfold(1, side, side).flatten(2).flatten(0, 1)
        for x in (places, parts)
    )  # (w, n)
    is_split = (parts != parts[:, :1]).any(1)
    whole, split = (x.nonzero()[:, 0] for x in (~is_split, is_split))
    groups = []
    for chosen in (*whole.split(WINDOWS_AT_ONCE), *split.split(WINDOWS_AT_ONCE)):
        if not len(chosen):
            continue
        gather, part = places[chosen].flatten(), parts[chosen]
        padded = (gather == height * width).nonzero()[:, 0]
        apart = (part[:, :, None] != part[:, None])[:, None]  # (w, 1, n, n)
        added = bias + apart * BLOCKED if apart.any() else bias
        groups.append(WindowGroup(gather.masked_fill(gather == height * width, 0), padded, added))
    scatter = torch.empty(height * width + 1, dtype=torch.int64, device=device)
    scatter[places[torch.cat([whole, split])].flatten()] = torch.arange(
        places.numel(), device=device
    )
    return Windows(groups, scatter[:-1])


class FastWindowAttention(nn.Module):
    """:class:`WindowAttention` with all that the block does around it, and the residual sum."""

    def __init__(self, attention: WindowAttention, shift: int) -> None:
        super().__init__()
        self.side, self.shift = attention.window_size[0], shift
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.qkv, self.proj = PackedLinear.of(attention.qkv), PackedLinear.of(attention.proj)
        table = attention.relative_position_bias_table.detach()
        index = attention.relative_position_index
        bias = table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)
        self.bias = nn.Parameter(bias.contiguous()[None], requires_grad=False)  # (1, h, n, n)
        self._windows = SizeCache()

    def forward(self, tokens: Tensor, residual: Tensor) -> Tensor:
        """(B, H, W, C) and what is added to the result -> (B, H, W, C)."""
        size = (tokens.shape[1], tokens.shape[2])
        windows = self._windows.get(
            size, self.bias, lambda: windows_of(size, self.side, self.shift, self.bias)
        )
        projected = self.qkv(tokens).flatten(1, 2)  # (B, N, 3 C)
        read = [
            torch.cat([self._attend(image, group) for group in windows.groups])[windows.scatter]
            for image in projected
        ]
        return self.proj(torch.stack(read).view(tokens.shape), residual)

    def _attend(self, qkv: Tensor, group: WindowGroup) -> Tensor:
        """Queries, keys and values (N, 3 C) -> (w n, C)."""
        own = qkv.index_select(0, group.gather)
        if len(group.padded):  # zeros, projected
            own[group.padded] = 0 if self.qkv.bias is None else self.qkv.bias.to(own)
        own = own.view(-1, self.side**2, 3, self.num_heads, own.shape[1] // 3 // self.num_heads)
        query, key, value = own.permute(2, 0, 3, 1, 4)  # (w, h, n, C / h)
        read = F.scaled_dot_product_attention(
            query, key, value, attn_mask=group.bias.to(query), scale=self.scale
        )
        return read.transpose(1, 2).flatten(2).flatten(0, 1)


class FastBlock(nn.Module):
    """:class:`SwinTransformerBlock`."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attn = FastWindowAttention(block.attn, block.shift_size)
        self.fc1 = PackedLinear.of(block.mlp.fc1, "gelu")
        self.fc2 = PackedLinear.of(block.mlp.fc2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        tokens = self.attn(normalised(tokens, self.norm1), tokens)
        rows = tokens.flatten(0, 2)
        # The hidden layer is four times as wide: some rows at a time, so it stays in the cache.
        parts = [
            self.fc2(self.fc1(normalised(part, self.norm2)), part)
            for part in rows.split(ROWS_AT_ONCE)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(tokens.shape)


class FastPatchMerging(nn.Module):
    """:class:`PatchMerging`: 2 x 2 tokens become one of twice the width."""

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.norm = merging.norm
        self.reduction = PackedLinear.of(merging.reduction)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        height, width = tokens.shape[1:3]
        tokens = F.pad(tokens, [0, 0, 0, width % 2, 0, height % 2])
        parts = [tokens[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
        return self.reduction(normalised(torch.cat(parts, dim=3), self.norm))


class FastSwin(Backbone):
    """:class:`Swin` in evaluation."""

    def __init__(self, swin: Swin) -> None:
        super().__init__()
        self._out_features = swin._out_features
        self._out_feature_channels = swin._out_feature_channels
        self._out_feature_strides = swin._out_feature_strides
        self._divisibility = swin.size_divisibility
        self.patch_embed = PackedConv2d(swin.patch_embed.proj)
        self.patch_norm = swin.patch_embed.norm
        self.stages = nn.ModuleList(
            nn.Sequential(*map(FastBlock, layer.blocks)) for layer in swin.layers
        )
        self.merges = nn.ModuleList(
            FastPatchMerging(layer.downsample) for layer in swin.layers[:-1]
        )
        self.norms = nn.ModuleList(getattr(swin, f"norm{i}") for i in range(len(swin.layers)))

    @property
    def size_divisibility(self) -> int:
        """That of :class:`Swin`."""
        return self._divisibility

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), multiples of 32 -> "res2".."res5", channels innermost."""
        tokens = self.patch_embed(image).permute(0, 2, 3, 1)
        if self.patch_norm is not None:
            tokens = normalised(tokens, self.patch_norm)
        outputs = {}
        for i, name in enumerate(self._out_features):
            if i > 0:
                tokens = self.merges[i - 1](tokens)
            tokens = self.stages[i](tokens)
            outputs[name] = normalised(tokens, self.norms[i]).permute(0, 3, 1, 2)
        return outputs


@rule(Swin)
@torch.no_grad()
def fast_swin(swin: Swin) -> nn.Module | None:
    """Windows by index tables, merged passes."""
    return None if swin.ape else FastSwin(swin)
