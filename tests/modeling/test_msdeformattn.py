"""The deformable pixel decoder: shapes, order of levels, invariants, names, initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from offseg_d2.layers import sine_position_encoding
from offseg_d2.modeling import MSDeformAttnPixelDecoder
from tests.common import assert_close, build_offseg, random_batch, spread_weights

DIMS = (8, 12, 16, 20)


def shapes(dims=DIMS) -> dict[str, ShapeSpec]:
    return {f"res{i + 2}": ShapeSpec(channels=c, stride=4 * 2**i) for i, c in enumerate(dims)}


def make(dims=DIMS, **settings) -> MSDeformAttnPixelDecoder:
    settings = {"out_channels": 32, "num_layers": 2, "feedforward_dim": 24} | settings
    return spread_weights(MSDeformAttnPixelDecoder(shapes(dims), **settings)).double().eval()


def features(batch: int = 2, size=(64, 96), dims=DIMS) -> dict[str, Tensor]:
    return {
        f"res{i + 2}": torch.randn(
            batch, c, size[0] // 4 // 2**i, size[1] // 4 // 2**i, dtype=torch.float64
        )
        for i, c in enumerate(dims)
    }


@pytest.mark.parametrize("dims", [(8, 12, 16, 20), (24, 32, 96, 1280), (5, 7, 3, 1)])
def test_mask_features_and_memories_from_fine_to_coarse_for_any_widths(dims):
    decoder = make(dims)
    maps = decoder(features(dims=dims))
    assert [tuple(x.shape) for x in maps] == [
        (2, 32, 16, 24),
        (2, 32, 8, 12),
        (2, 32, 4, 6),
        (2, 32, 2, 3),
    ]
    assert (decoder.out_channels, decoder.out_stride, decoder.num_memory_levels) == (32, 4, 3)


def slow_decoder(decoder: MSDeformAttnPixelDecoder, levels: dict[str, Tensor]) -> list[Tensor]:
    """The specification, written out; the deformable attention itself is tested elsewhere."""
    state = decoder.state_dict()

    def conv(name: str, x: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)

    def norm(name: str, x: Tensor) -> Tensor:
        group = F.group_norm if x.ndim == 4 else F.layer_norm
        size = 32 if x.ndim == 4 else (x.shape[-1],)
        return group(x, size, state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    pixels, positions, codes, sizes = [], [], [], []
    for i, name in enumerate(("res5", "res4", "res3")):
        x = norm(f"input_proj.{i}.1", conv(f"input_proj.{i}.0", levels[name]))
        height, width = x.shape[-2:]
        sizes.append((height, width))
        code = sine_position_encoding(height, width, 32, dtype=torch.float64)
        level = state["transformer.level_embed"][i]
        for y in range(height):
            for column in range(width):
                pixels.append(x[:, :, y, column])
                codes.append(code[:, y, column] + level)
                positions.append([(column + 0.5) / width, (y + 0.5) / height])
    x, position = torch.stack(pixels, 1), torch.stack(codes)
    reference = torch.tensor(positions, dtype=torch.float64)
    for i, layer in enumerate(decoder.transformer.encoder["layers"]):
        name = f"transformer.encoder.layers.{i}"
        x = norm(f"{name}.norm1", x + layer.self_attn(x + position, x, reference, sizes))
        hidden = linear(f"{name}.linear1", x).relu()
        x = norm(f"{name}.norm2", x + linear(f"{name}.linear2", hidden))
    memories, start = [], 0
    for height, width in sizes:
        part = x[:, start : start + height * width]
        memories.insert(0, part.mT.reshape(len(x), 32, height, width))
        start += height * width
    finest = norm("adapter_1.norm", conv("adapter_1", levels["res2"]))
    finest = finest + F.interpolate(memories[0], size=finest.shape[-2:], mode="bilinear")
    finest = norm("layer_1.norm", conv("layer_1", finest, padding=1)).relu()
    return [conv("mask_features", finest), *memories]


def test_maps_equal_those_of_the_specification_step_by_step():
    decoder, levels = make(), features(size=(32, 64))
    with torch.no_grad():
        for actual, expected in zip(decoder(levels), slow_decoder(decoder, levels), strict=True):
            assert_close(actual, expected, 1e-10)


def test_sizes_need_not_halve_exactly():
    decoder = make()
    sizes = {"res2": (17, 9), "res3": (9, 5), "res4": (5, 3), "res5": (3, 2)}
    levels = {
        name: torch.randn(1, c, *size, dtype=torch.float64)
        for c, (name, size) in zip(DIMS, sizes.items(), strict=True)
    }
    assert [x.shape[-2:] for x in decoder(levels)] == list(sizes.values())


def test_every_parameter_gets_a_gradient():
    # two channels per group: the norm of a single one would undo the biases of the projections
    decoder = make(out_channels=64)
    maps = decoder(features())
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


def test_two_levels_are_enough_and_layers_are_counted():
    some = {name: x for name, x in features().items() if name in ("res2", "res4")}
    decoder = MSDeformAttnPixelDecoder(
        {name: shapes()[name] for name in some}, out_channels=32, num_layers=3
    ).double()
    assert len(decoder.transformer.encoder["layers"]) == 3
    assert [x.shape[-2:] for x in decoder(some)] == [(16, 24), (4, 6)]


def test_it_serves_per_pixel_heads_as_well():
    opts = ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder")
    model = build_offseg(
        *opts, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5, "MODEL.MASK_FORMER.ENC_LAYERS", 1
    )
    with torch.no_grad():
        assert model(random_batch([(64, 64)]))[0]["sem_seg"].shape == (5, 64, 64)


def test_names_are_those_of_mask2formers_checkpoints():
    names = {n.replace(".1.", ".{i}.", 1) for n in make().state_dict() if "encoder.layers.1." in n}
    layer, ends = "transformer.encoder.layers.{i}", ("weight", "bias")
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    parts = (*(f"self_attn.{a}" for a in attention), "norm1", "norm2", "linear1", "linear2")
    assert names == {f"{layer}.{part}.{end}" for part in parts for end in ends}
    assert {n for n in make().state_dict() if "encoder" not in n} == {
        *(f"input_proj.{i}.{j}.{end}" for i in range(3) for j in range(2) for end in ends),
        *(f"{conv}.norm.{end}" for conv in ("adapter_1", "layer_1") for end in ends),
        *("adapter_1.weight", "layer_1.weight", "mask_features.weight", "mask_features.bias"),
        "transformer.level_embed",
    }


def test_weights_start_as_published():
    decoder = MSDeformAttnPixelDecoder(shapes((96, 192, 384, 768)), num_layers=1)
    parameters = dict(decoder.named_parameters())
    layer = "transformer.encoder.layers.0"
    xavier_normal = math.sqrt(2 / (256 + 1024))
    expected = {
        "input_proj.0.0.weight": math.sqrt(2 / (768 + 256)),
        "input_proj.2.0.weight": math.sqrt(2 / (192 + 256)),
        "transformer.level_embed": 1.0,
        f"{layer}.linear1.weight": xavier_normal,
        f"{layer}.linear2.weight": xavier_normal,
        f"{layer}.linear1.bias": 1 / math.sqrt(3 * 256),
        "adapter_1.weight": 1 / math.sqrt(96),
        "layer_1.weight": 1 / math.sqrt(9 * 256),
        "mask_features.weight": 1 / math.sqrt(256),
    }
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.06), name
    assert parameters[f"{layer}.linear1.weight"].abs().max() > 3 * xavier_normal  # normal
    for name in ("input_proj.0.0.bias", "mask_features.bias"):
        assert not parameters[name].any()


def test_positions_keep_their_precision_under_autocast():
    decoder = make().float()
    levels = {name: x.float() for name, x in features().items()}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rounded = decoder(levels)
    with torch.no_grad():
        exact = decoder(levels)
    for actual, expected in zip(rounded, exact, strict=True):
        error = (actual.float() - expected).norm() / expected.norm()
        assert actual.isfinite().all() and error < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            (
                {"out_channels": n},
                rf"^`MODEL.SEM_SEG_HEAD.CONVS_DIM` must be a positive multiple .*, but is {n}\.$",
            )
            for n in (40, 0, -32)
        ),
        *(
            (
                {"feedforward_dim": n},
                rf"^`MODEL.MASK_FORMER.ENC_DIM_FEEDFORWARD` must be at least 1, but is {n}\.$",
            )
            for n in (0, -1)
        ),
        ({"num_heads": 5}, r"^`MODEL.MASK_FORMER.NHEADS` must divide .* 32, but is 5\.$"),
        ({"num_layers": 0}, r"^`MODEL.MASK_FORMER.ENC_LAYERS` must be at least 1, but is 0\.$"),
        ({"dims": (8,)}, r"^`MODEL.SEM_SEG_HEAD.IN_FEATURES` of MSDeformAttn.* at least two"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_there_is_no_dropout():
    assert not any(isinstance(m, nn.modules.dropout._DropoutNd) for m in make().modules())
