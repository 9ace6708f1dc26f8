"""Key maps: fields, order, totality, and the names of OffSeg in the authors' runs."""

import gzip
import json
import re

import pytest
import torch
from detectron2.modeling import build_model

from offseg_d2.checkpoint.key_maps import Drop, KeyMap, Rule
from offseg_d2.checkpoint.key_tables import KEY_MAPS, OFFSEG_OFFSET
from offseg_d2.solver import assign_rules, rules_for_backbone
from tests.common import offseg_config
from tests.golden.make import FOLDER

MAP = KeyMap(
    "the example",
    (
        Rule("net.{i}.norm.{rest}", "stages.{i}.bn.{rest}"),
        Rule("net.{i}.{b}.{rest}", "stages.{i}.blocks.{b}.{rest}"),
        Rule("table", "head.classes", leading_axis=True),
    ),
    (Drop(r"net\.\d+\.index", "is derived"), Drop(r"unused\..+", "is never used")),
)


def test_fields_are_carried_over():
    assert MAP.name_from_theirs("net.12.3.conv.weight") == "stages.12.blocks.3.conv.weight"
    assert MAP.name_to_theirs("stages.12.blocks.3.conv.weight") == "net.12.3.conv.weight"


def test_first_rule_that_matches_decides():
    assert MAP.name_from_theirs("net.0.norm.bias") == "stages.0.bn.bias"
    doubled = KeyMap("x", (Rule("a.{rest}", "first.{rest}"), Rule("a.b", "second")))
    assert doubled.name_from_theirs("a.b") == "first.b"


def test_numbers_and_dots_are_literal():
    for name in ("net.x.norm.bias", "netx0.norm.bias", "net.0.norm.", "table2", "a.table"):
        with pytest.raises(KeyError, match=re.escape(f"`{name}` is not a parameter name of")):
            MAP.name_from_theirs(name)


def test_whole_state_dict_there_and_back():
    theirs = {
        "net.0.norm.bias": torch.randn(3),
        "net.1.4.conv.weight": torch.randn(2, 3),
        "table": torch.randn(1, 5, 6),
        "net.0.index": torch.arange(3),
        "unused.weight": torch.randn(2),
    }
    ours, dropped = MAP.from_theirs(theirs)
    assert list(ours) == ["stages.0.bn.bias", "stages.1.blocks.4.conv.weight", "head.classes"]
    assert torch.equal(ours["head.classes"], theirs["table"][0])
    assert dropped == {"net.0.index": "is derived", "unused.weight": "is never used"}
    back = MAP.to_theirs(ours)
    assert back.keys() == theirs.keys() - dropped.keys()
    for name, tensor in back.items():
        assert torch.equal(tensor, theirs[name])


def test_every_unknown_name_is_an_error_in_either_direction():
    zero = torch.zeros(1)
    with pytest.raises(KeyError, match=r"2 parameter names are not known to the example: x, y\."):
        MAP.from_theirs({"x": zero, "net.0.norm.bias": zero, "y": zero})
    with pytest.raises(KeyError, match=r"1 parameter names are not known to the example: x\."):
        MAP.to_theirs({"x": zero, "stages.0.bn.bias": zero})
    with pytest.raises(KeyError, match=r"`x` has no counterpart in the example"):
        MAP.name_to_theirs("x")


def test_a_dropped_name_has_no_counterpart():
    assert MAP.name_from_theirs("net.0.index") is None


def test_given_tensors_are_not_changed():
    theirs = {"table": torch.randn(1, 2, 3)}
    before = dict(theirs)
    MAP.to_theirs(MAP.from_theirs(theirs)[0])
    assert theirs == before and theirs["table"].shape == (1, 2, 3)


# ------------------------------------------------------------ OffSeg's maps


@pytest.mark.parametrize("key_map", list(dict.fromkeys(KEY_MAPS.values())), ids=lambda m: m.name)
def test_every_drop_has_a_reason_and_every_rule_both_names(key_map):
    assert all(len(drop.reason.split()) > 2 for drop in key_map.drops)
    for rule in key_map.rules:
        fields = [sorted(re.findall(r"{(\w+)}", name)) for name in (rule.theirs, rule.ours)]
        assert fields[0] == fields[1], rule


def test_class_representations_have_one_more_axis_at_the_authors():
    ours = {"sem_seg_head.classifier.class_representations": torch.randn(5, 8)}
    theirs = OFFSEG_OFFSET.to_theirs(ours)
    assert {k: v.shape for k, v in theirs.items()} == {
        "decode_head.offset_learning.cls_repr": (1, 5, 8)
    }


@pytest.mark.parametrize(
    "name",
    [
        "decode_head.conv_seg.weight",
        "backbone.network.4.7.token_mixer.attention_biases",
        "backbone.network.5.attn.attention_bias_idxs",
        "backbone.network.5.attn.attention_bias_idxs_seg",
        "decode_head.freqfusions.2.hamming_lowpass",
        "decode_head.freqfusions.0.dysampler.init_pos",
    ],
)
def test_what_is_derived_or_never_used_is_dropped(name):
    assert OFFSEG_OFFSET.name_from_theirs(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "decode_head.auxiliary.weight",
        "backbone.network.7.0.mlp.fc1.weight",
        "backbone.patch_embed.5.weight",
        "decode_head.freqfusions.0.dysampler.other.weight",
        "auxiliary_head.conv_seg.weight",
        "backbone.network.4.7.token_mixer.attention_biases_seg2",
    ],
)
def test_names_of_other_models_are_refused(name):
    with pytest.raises(KeyError, match=re.escape(name)):
        OFFSEG_OFFSET.from_theirs({name: torch.zeros(1)})


def test_learned_bias_tables_are_kept_though_their_namesakes_are_dropped():
    name = "backbone.network.4.7.token_mixer.attention_biases_seg"
    assert OFFSEG_OFFSET.name_from_theirs(name) == "backbone.stages.2.7.token_mixer.bias.table"
    name = "backbone.network.5.attn.attention_biases_seg"
    assert OFFSEG_OFFSET.name_from_theirs(name) == "backbone.downsamples.2.attn.bias.table"


# --------------------------------------------- optimizer groups of the runs

GROUPS = json.loads((FOLDER / "optim_groups.json").read_text())
MANIFESTS = json.loads(gzip.decompress((FOLDER / "manifest_names.json.gz").read_bytes()))
# Tensors without weight decay, and fast ones; the authors' never-used classifier left out.
COUNTS = {"offseg_t": (282, 130, 96), "offseg_b": (427, 172, 112), "offseg_l": (572, 214, 128)}


@pytest.mark.parametrize("model", sorted(COUNTS))
def test_optimizer_groups_are_exactly_those_of_the_authors_run(model):
    cfg = offseg_config("MODEL.DEVICE", "meta", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150, model=model)
    with torch.device("meta"):
        names = [name for name, _ in build_model(cfg).named_parameters()]
    decided = assign_rules(names, rules_for_backbone(cfg.MODEL.BACKBONE.NAME))
    ours: list[set[str]] = [set(), set(), set()]
    for name, rule in decided.items():
        is_fast = rule is not None and rule.lr_factor != 1.0
        is_undecayed = rule is not None and rule.weight_decay == 0.0
        assert not (is_fast and is_undecayed)
        ours[2 * is_fast + is_undecayed].add(OFFSEG_OFFSET.name_to_theirs(name))
    theirs: list[set[str]] = [set(), set(), set()]
    manifest = f"{model}_ade20k"
    trainable = [name for name, _, is_trainable in MANIFESTS[manifest] if is_trainable]
    for name, group in zip(trainable, GROUPS[manifest], strict=True):
        theirs[int(group)].add(name)
    theirs[2] -= {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert ours == theirs
    assert tuple(len(group) for group in ours) == COUNTS[model]
