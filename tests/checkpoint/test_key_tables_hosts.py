"""The key maps of all per-pixel models against the names in the authors' state dicts.

``golden/manifest_names.json.gz`` holds, by model and data set, [name, shape, trainable] of every
entry of the authors' state dicts.
"""

import gzip
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.checkpoint.key_maps import KeyMap
from offseg_d2.checkpoint.key_tables import KEY_MAPS, SEGFORMER_OFFSET, SEGNEXT_OFFSET
from offseg_d2.config import load_config

ROOT = Path(__file__).parents[2]
MANIFESTS = json.loads(gzip.decompress((ROOT / "tests/golden/manifest_names.json.gz").read_bytes()))
NUM_CLASSES = {"ade20k": 150, "cityscapes": 19, "cocostuff": 171, "pascal59": 59}


@cache
def model_and_map(name: str) -> tuple[nn.Module, KeyMap]:
    """The model that a manifest is of, without memory, and the map of its family."""
    match = re.fullmatch(r"(.+?)(_baseline)?_(ade20k|cityscapes|cocostuff|pascal59)", name)
    assert match is not None
    classifier = "plain" if match[2] else "offset"
    opts = ["MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, "MODEL.DEVICE", "meta"]
    opts += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES[match[3]]]
    cfg = load_config(str(ROOT / f"configs/base/models/{match[1]}.yaml"), opts)
    with torch.device("meta"):
        model = build_model(cfg)
    return model, KEY_MAPS[cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, classifier]


def theirs(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape, _ in MANIFESTS[name]}


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_every_name_is_mapped_or_dropped_and_shapes_agree(name):
    model, key_map = model_and_map(name)
    ours, _ = key_map.from_theirs(theirs(name))
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_map_and_back_gives_all_but_the_dropped_names(name):
    _, key_map = model_and_map(name)
    source = theirs(name)
    ours, dropped = key_map.from_theirs(source)
    back = key_map.to_theirs(ours)
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in source.items() if k not in dropped
    }


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_same_tensors_are_trainable(name):
    model, key_map = model_and_map(name)
    trainable = {key for key, _, is_trainable in MANIFESTS[name] if is_trainable}
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
