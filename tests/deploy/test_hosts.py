"""Optimized SegFormer, SegNeXt and mask-query models are the models, only faster."""

import pytest
import torch
from torch import nn

from offseg_d2.deploy import optimize
from offseg_d2.deploy.light_ham import FastLightHamPixelDecoder
from offseg_d2.deploy.mask_query import FastMaskedAttentionDecoder
from offseg_d2.deploy.mask_scores import FastMaskSegmentor
from offseg_d2.deploy.mit import FastBlock as FastMiTBlock
from offseg_d2.deploy.mscan import FastBlock as FastMSCANBlock
from offseg_d2.deploy.msdeformattn import FastMSDeformAttnPixelDecoder
from offseg_d2.deploy.segformer_decoder import FastSegFormerPixelDecoder
from offseg_d2.deploy.swin import FastSwin
from tests.common import SMALL_OFFSEG, assert_close, build_offseg, random_batch, seed_all
from tests.deploy.test_optimize import assert_same_predictions, spread_weights
from tests.modeling.mask_query import SMALL_MASK2FORMER

PLAIN = ("MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain")
SEGFORMER = (
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
)
SEGNEXT = (*SEGFORMER, "MODEL.LIGHT_HAM.CHANNELS", 64)
CASES = {
    "segformer": ("segformer_b0", SEGFORMER),
    "segformer-plain": ("segformer_b0", (*SEGFORMER, *PLAIN)),
    "segformer-linear": ("segformer_b0", (*SEGFORMER, "MODEL.SEGFORMER.LINEAR_LEVELS", True)),
    "segnext": ("segnext_t", SEGNEXT),
    "segnext-plain": ("segnext_t", (*SEGNEXT, *PLAIN)),
    "masks": ("mask2former_offseg_t", SMALL_MASK2FORMER),
    "masks-plain": ("mask2former_offseg_t", (*SMALL_MASK2FORMER, *PLAIN)),
    "masks-class": (
        "mask2former_offseg_t",
        (*SMALL_MASK2FORMER, "MODEL.SEM_SEG_HEAD.FEATURE_OFFSET", False),
    ),
    "masks-feature": (
        "mask2former_offseg_t",
        (*SMALL_MASK2FORMER, "MODEL.SEM_SEG_HEAD.CLASS_OFFSET", False),
    ),
    "swin": ("mask2former_swin_t", SMALL_MASK2FORMER),
}


def model_of(case: str) -> nn.Module:
    """A narrow model none of whose weights is inert."""
    seed_all()
    name, opts = CASES[case]
    model = spread_weights(build_offseg(*opts, model=name))
    if "segnext" in case:  # gates multiply: with large scales float32 itself is off by 1e-4
        for key, parameter in model.named_parameters():
            if "layer_scale" in key:
                parameter.data.mul_(0.06)
    if hasattr(model.sem_seg_head, "predictor"):
        tell_queries_apart(model)
    return model


@torch.no_grad()
def tell_queries_apart(model: nn.Module) -> None:
    """Random queries are all of one class and mask: take off what they have in common."""
    decoder, found = model.sem_seg_head.predictor, {}
    layers = {"class": decoder.class_embed, "mask": decoder.mask_embed.layers[-1]}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, key=key: found.update({key: out}))
        for key, layer in layers.items()
    ]
    model.forward_network(torch.randn(1, 3, 64, 96))
    for (key, layer), hook in zip(layers.items(), hooks, strict=True):
        hook.remove()
        layer.bias -= found[key].mean((0, 1))
        layer.weight *= 10
        layer.bias *= 10


@pytest.mark.parametrize("case", CASES)
def test_optimized_hosts_give_the_models_predictions(case):
    model = model_of(case)
    fast = optimize(model)
    seen = set()
    for sizes in ([(70, 101)] * 2, [(64, 96)]):
        batch = random_batch(sizes)
        with torch.no_grad():
            for result in model.predict_label_maps(batch):
                seen |= set(result["sem_seg"].unique().tolist())
            assert_same_predictions(model, fast, batch)
    assert len(seen) > 1, "a model that sees but one class shows nothing"


def test_the_rules_were_used():
    expected = {
        "segformer": {FastMiTBlock: 8, FastSegFormerPixelDecoder: 1},
        "segnext": {FastMSCANBlock: 13, FastLightHamPixelDecoder: 1},
        "swin": {
            FastSwin: 1,
            FastMSDeformAttnPixelDecoder: 1,
            FastMaskedAttentionDecoder: 1,
            FastMaskSegmentor: 1,
        },
    }
    for case, counts in expected.items():
        fast = optimize(model_of(case))
        assert not any(isinstance(x, nn.BatchNorm2d) for x in fast.modules())
        for kind, count in counts.items():
            assert sum(type(x) is kind for x in fast.modules()) == count, kind


@pytest.mark.parametrize("case", ["segformer", "segnext", "swin"])
def test_small_bands_and_chunks_change_nothing(case, monkeypatch):
    package = "offseg_d2.deploy"
    monkeypatch.setattr(f"{package}.feed_forward.BAND_BYTES", 1)
    monkeypatch.setattr(f"{package}.segformer_decoder.BAND_BYTES", 1)
    monkeypatch.setattr(f"{package}.swin.WINDOWS_AT_ONCE", 2)
    monkeypatch.setattr(f"{package}.swin.ROWS_AT_ONCE", 50)
    monkeypatch.setattr(f"{package}.msdeformattn.PIXELS_AT_ONCE", 9)
    monkeypatch.setattr(f"{package}.mask_scores.BLOCK_BYTES", 1)
    model = model_of(case)
    assert_same_predictions(model, optimize(model), random_batch([(75, 66)]))


@pytest.mark.parametrize("case", ["segformer", "segnext", "swin"])
def test_optimized_hosts_in_double_precision_are_the_models(case):
    """Without rounding in the way, nothing is left but the mathematics."""
    model = model_of(case).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, actual = (x.forward_network(images) for x in (model, optimize(model)))
    scale = expected.abs().max()
    assert (actual - expected).abs().max() < 1e-9 * scale


COMPILED = {"offseg": ("offseg_t", SMALL_OFFSEG), **CASES}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["offseg", "segformer", "segnext", "masks"])
def test_compiled_models_give_the_models_predictions(case, monkeypatch):
    monkeypatch.setitem(CASES, case, COMPILED[case])
    torch.compiler.reset()
    model = model_of(case)
    assert_same_predictions(model, optimize(model, compile=True), random_batch([(64, 64)]))


@torch.no_grad()
def test_swin_can_be_exported_at_a_size_at_which_it_has_run():
    backbone = optimize(model_of("swin")).backbone
    image = torch.randn(1, 3, 64, 96)
    with pytest.raises(NotImplementedError, match=r"must have run .* has not at 16 x 24 tokens"):
        torch.export.export(backbone, (image,))
    expected = backbone(image)
    actual = torch.export.export(backbone, (image,)).module()(image)
    for name, level in expected.items():
        assert_close(actual[name], level, 1e-4, reason="linear layers of another library")
