"""The key maps of all models against the names in the authors' state dicts."""

from functools import cache

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from offseg_d2.checkpoint.key_maps import KeyMap
from offseg_d2.checkpoint.key_tables import KEY_MAPS, SEGFORMER_OFFSET, SEGNEXT_OFFSET
from tests.checkpoint.external import AUTHORS, model_options
from tests.common import offseg_config


@cache
def model_and_map(name: str) -> tuple[nn.Module, KeyMap]:
    """The model that a manifest is of, without memory, and the map of its family."""
    base, opts = model_options(name)
    cfg = offseg_config(*opts, "MODEL.DEVICE", "meta", model=base)
    with torch.device("meta"):
        model = build_model(cfg)
    head = cfg.MODEL.SEM_SEG_HEAD
    return model, KEY_MAPS[head.PIXEL_DECODER_NAME, head.CLASSIFIER]


def theirs(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape, _ in AUTHORS[name]}


@pytest.mark.parametrize("name", sorted(AUTHORS))
def test_every_name_is_mapped_or_dropped_and_shapes_agree(name):
    model, key_map = model_and_map(name)
    ours, _ = key_map.from_theirs(theirs(name))
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("name", sorted(AUTHORS))
def test_map_and_back_gives_all_but_the_dropped_names(name):
    _, key_map = model_and_map(name)
    source = theirs(name)
    ours, dropped = key_map.from_theirs(source)
    back = key_map.to_theirs(ours)
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in source.items() if k not in dropped
    }


@pytest.mark.parametrize("name", sorted(AUTHORS))
def test_same_tensors_are_trainable(name):
    model, key_map = model_and_map(name)
    trainable = {key for key, _, is_trainable in AUTHORS[name] if is_trainable}
    unused = {k for k in trainable if key_map.name_from_theirs(k) is None}
    assert unused <= {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    ours = {key_map.name_to_theirs(k) for k, _ in model.named_parameters()}
    assert ours == trainable - unused


@pytest.mark.parametrize("key_map", [SEGFORMER_OFFSET, SEGNEXT_OFFSET], ids=lambda m: m.name)
def test_only_the_unused_classifier_is_dropped(key_map):
    assert key_map.name_from_theirs("decode_head.conv_seg.weight") is None
    for name in ("backbone.patch_embed9.proj.weight", "decode_head.linear.weight", "head.weight"):
        with pytest.raises(KeyError, match="is not a parameter name"):
            key_map.name_from_theirs(name)
