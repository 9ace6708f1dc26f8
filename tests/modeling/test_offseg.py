"""The OffSeg pixel decoder, and OffSeg-T, B and L as wholes."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from offseg_d2.modeling import OffSegPixelDecoder
from offseg_d2.modeling.pixel_decoder.offseg import interleave_channels
from tests.common import (
    SMALL_OFFSEG,
    assert_close,
    build_offseg,
    random_batch,
    spread_weights,
)

LEVELS = (32, 32, 32, 64)
SHAPES = {
    f"res{i + 2}": ShapeSpec(channels=c, stride=4 * 2**i) for i, c in enumerate((8, 12, 16, 20))
}


def pyramid(batch: int, height: int, width: int) -> dict[str, Tensor]:
    """Levels of an image of ``height`` x ``width``."""
    return {
        name: torch.randn(batch, s.channels, height // s.stride, width // s.stride).double()
        for name, s in SHAPES.items()
    }


def make_decoder() -> OffSegPixelDecoder:
    decoder = OffSegPixelDecoder(SHAPES, level_channels=LEVELS, out_channels=32)
    return spread_weights(decoder).double()


@pytest.mark.parametrize(
    ("model", "compressed", "aligned"),
    [("offseg_t", [48, 56, 64], 256), ("offseg_b", [96, 112, 120], 480)],
)
def test_fusions_have_the_published_widths(model, compressed, aligned):
    decoder = build_offseg(model=model).sem_seg_head.pixel_decoder
    assert [f.hr_channel_compressor.out_channels for f in decoder.fusions] == compressed
    assert [f.sampler.hr_norm.num_groups for f in decoder.fusions] == [c // 8 for c in compressed]
    assert decoder.align.in_channels == aligned


def test_channels_are_interleaved_in_four_groups():
    first, second = torch.arange(8).view(1, 8, 1, 1), torch.arange(100, 112).view(1, 12, 1, 1)
    joined = interleave_channels(first, second).flatten().tolist()
    expected = [*(0, 1, 100, 101, 102), *(2, 3, 103, 104, 105)]
    expected += [*(4, 5, 106, 107, 108), *(6, 7, 109, 110, 111)]
    assert joined == expected


def test_levels_are_fused_from_coarse_to_fine():
    decoder, features = make_decoder(), pyramid(2, 64, 96)
    with torch.no_grad():
        levels = [decoder.reduce[i](features[f"res{i + 2}"]) for i in range(4)]
        fused = levels[3]
        for step, level in enumerate((2, 1, 0)):
            sharpened, upsampled = decoder.fusions[step](levels[level], fused)
            groups = zip(sharpened.chunk(4, dim=1), upsampled.chunk(4, dim=1), strict=True)
            fused = torch.cat([part for pair in groups for part in pair], dim=1)
        expected = decoder.align(fused)
        (actual,) = decoder(features)
    assert actual.shape == (2, 32, 16, 24)
    assert_close(actual, expected, 1e-12)
    assert decoder.out_stride == 4 and decoder.out_channels == 32


def test_reduction_is_convolution_without_bias_norm_of_32_groups_and_relu():
    decoder = make_decoder()
    for block in (*decoder.reduce, decoder.align):
        assert block.bias is None and block.kernel_size == (1, 1)
        assert (block.norm.num_groups, block.norm.eps) == (32, 1e-5)
        features = torch.randn(2, block.in_channels, 3, 3).double()
        convolved = torch.einsum("oi,bihw->bohw", block.weight[:, :, 0, 0], features)
        grouped = convolved.reshape(2, 32, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        normed = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        scale, shift = (p[:, None, None] for p in (block.norm.weight, block.norm.bias))
        expected = (normed.reshape(convolved.shape) * scale + shift).clamp_min(0)
        assert_close(block(features), expected, 1e-10)


def test_weights_start_as_published():
    decoder = build_offseg().sem_seg_head.pixel_decoder
    # Kaiming-normal, fan out: sqrt(2 / out_channels)
    expected = [0.255691, 0.247392, 0.176448, 0.124925]
    for block, std in zip(decoder.reduce, expected, strict=True):
        tolerance = max(0.02, 5 / math.sqrt(2 * block.weight.numel()))
        assert block.weight.std().item() == pytest.approx(std, rel=tolerance)
        assert block.norm.weight.eq(1).all() and not block.norm.bias.any()
    assert decoder.align.weight.std().item() == pytest.approx(0.088745, rel=0.02)


@pytest.mark.parametrize("switches", [(True, False), (False, True), (False, False)])
def test_offsets_that_are_switched_off_have_no_parameters_and_the_others_learn(switches):
    opts = ["MODEL.SEM_SEG_HEAD.CLASS_OFFSET", switches[0]]
    opts += ["MODEL.SEM_SEG_HEAD.FEATURE_OFFSET", switches[1]]
    model = build_offseg(*SMALL_OFFSEG, *opts).train()
    model(random_batch([(64, 64), (64, 64)]))["loss_sem_seg"].backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    offsets = [p for name, p in model.named_parameters() if "_offset_proj" in name]
    assert len(offsets) == sum(switches)
    assert all(parameter.grad.abs().max() > 0 for parameter in offsets)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("MODEL.OFFSEG.LEVEL_CHANNELS", [32, 32]),
            r"^`MODEL.OFFSEG.LEVEL_CHANNELS` must have one entry for each of "
            r"\['res2', 'res3', 'res4', 'res5'\], but is \[32, 32\]\.$",
        ),
        (
            ("MODEL.OFFSEG.LEVEL_CHANNELS", [32, 48, 64, 128]),
            r"^`MODEL.OFFSEG.LEVEL_CHANNELS` must be multiples of 32, but is "
            r"\[32, 48, 64, 128\]\.$",
        ),
        (
            (
                *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res5"]),
                *("MODEL.OFFSEG.LEVEL_CHANNELS", [32, 32, 64]),
            ),
            r"^`MODEL.SEM_SEG_HEAD.IN_FEATURES` of OffSegPixelDecoder must have strides that "
            r"double from level to level, but they are \[4, 8, 32\]\.$",
        ),
        (
            ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 100),
            r"^`MODEL.SEM_SEG_HEAD.CONVS_DIM` must be a multiple of 32, but is 100\.$",
        ),
        (
            ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN"),
            r"^`MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME` must be one of \[.*'OffSegPixelDecoder'"
            r".*\], but is 'FPN'\.$",
        ),
    ],
)
def test_unusable_settings_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build_offseg(*opts)
