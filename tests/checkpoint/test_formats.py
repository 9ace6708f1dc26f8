"""Recognising and converting the layouts of other projects: total, reversible, strict."""

import re

import pytest
import torch

from offseg_d2.checkpoint import backbone_tables as tables
from offseg_d2.checkpoint import convert, mask_query_tables, swin_tables
from offseg_d2.checkpoint.conversion import resize_bias_table
from offseg_d2.checkpoint.formats import FORMATS, OWN, recognise
from offseg_d2.checkpoint.key_maps import KeyMap, Packing, Rule
from tests.checkpoint import external, external_masks

SWIN_T = ("mask2former_swin_t",)
PLAIN = ("MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain")
PLAIN_ADE20K = (*PLAIN, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150)
LINEAR = (*PLAIN, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150, "MODEL.SEGFORMER.LINEAR_LEVELS", True)


def efficientformer_v2(variant: str) -> tuple:
    return ("offseg_t", "MODEL.EFFICIENTFORMER_V2.VARIANT", variant)


# Name -> (state dict in their layout, map that is right, our base model and options).
BACKBONES = {
    "EfficientFormerV2": (
        external.efficientformer_v2_imagenet,
        tables.EFFICIENTFORMER_V2,
        efficientformer_v2("s1"),
    ),
    **{
        f"timm {v}": (
            lambda v=v: external.other_state(f"timm_efficientformerv2_{v}"),
            tables.TIMM_EFFICIENTFORMER_V2,
            efficientformer_v2(v),
        )
        for v in ("s0", "s1", "s2", "l")
    },
    "MiT": (external.mit_openmmlab, tables.MIT, ("segformer_b0",)),
    "MiT of NVIDIA": (external.mit_nvidia, tables.NVIDIA_MIT, ("segformer_b0",)),
    "MiT encoder": (
        lambda: external.other_state("hf_mit_b0"),
        tables.HF_MIT_ENCODER,
        ("segformer_b0",),
    ),
    "MiT classifier": (
        lambda: external.other_state("hf_mit_b0_classifier"),
        tables.HF_MIT,
        ("segformer_b0",),
    ),
    "MSCAN": (external.mscan_openmmlab, tables.MSCAN, ("segnext_t",)),
    "MSCAN nested": (external.mscan_nested, tables.NESTED_MSCAN, ("segnext_t",)),
    "MobileNetV2": (
        external.mobilenet_v2_imagenet,
        tables.TORCHVISION_MOBILENET_V2,
        ("offseg_mobilenetv2",),
    ),
    "Swin": (external_masks.swin_imagenet, swin_tables.SWIN, SWIN_T),
    "timm Swin": (
        external_masks.swin_timm,
        swin_tables.TIMM_SWIN,
        SWIN_T,
    ),
    "Swin of OpenMMLab": (external_masks.swin_openmmlab, swin_tables.OPENMMLAB_SWIN, SWIN_T),
    "ResNet": (external_masks.resnet50_imagenet, swin_tables.RESNET, ("mask2former_r50",)),
}
WHOLE = {
    "SegFormer": (
        lambda: external.other_state("hf_segformer_b0"),
        tables.HF_SEGFORMER,
        ("segformer_b0", *LINEAR),
    ),
    "Mask2Former of mmsegmentation": (
        external_masks.authors_plain_mask2former,
        mask_query_tables.MASK2FORMER_PLAIN,
        (*SWIN_T, *PLAIN_ADE20K),
    ),
    "Mask2Former": (
        external_masks.fb_mask2former,
        mask_query_tables.FB_MASK2FORMER,
        (*SWIN_T, *PLAIN_ADE20K),
    ),
    "Mask2Former R50": (
        external_masks.fb_mask2former_r50,
        mask_query_tables.FB_MASK2FORMER,
        ("mask2former_r50", *PLAIN_ADE20K),
    ),
    "Mask2Former of Hugging Face": (
        external_masks.hf_mask2former,
        mask_query_tables.HF_MASK2FORMER,
        (*SWIN_T, *PLAIN_ADE20K),
    ),
}
# What some projects do not write: constants, and norms that only the classifier of masks has.
NOT_WRITTEN = re.compile(
    r".*(bias\.table|num_batches_tracked|relative_position_index)|backbone\.norm\d\.(weight|bias)"
)


@pytest.mark.parametrize("name", sorted(external.AUTHORS))
def test_authors_models_are_recognised(name):
    source = recognise(key for key, _, _ in external.AUTHORS[name])
    family = {"offseg": "OffSeg", "segformer": "SegFormer", "segnext": "SegNeXt"}
    family["mask2former"] = "Mask2Former"
    expected = f"the authors' {family[name.split('_')[0]]}"
    expected += " with a plain classifier" if "baseline" in name else ""
    assert source.key_map.name == expected


@pytest.mark.parametrize("name", sorted(BACKBONES | WHOLE))
def test_layout_is_recognised_and_fits_the_model(name):
    make, key_map, model = (BACKBONES | WHOLE)[name]
    state, model_state = make(), external.meta_state(*model)
    assert recognise(state).key_map is key_map
    conversion = convert(state, model_state)
    ours = conversion.state_dict
    assert {k: v.shape for k, v in ours.items()} == {k: model_state[k].shape for k in ours}
    covered = [k for k in model_state if name in WHOLE or k.startswith("backbone.")]
    lacking = set(covered) - set(ours)
    assert all(NOT_WRITTEN.fullmatch(k) for k in lacking), lacking
    assert sorted(conversion.missing) == sorted(set(model_state) - set(ours))


@pytest.mark.parametrize("name", sorted(BACKBONES | WHOLE))
def test_conversion_and_back_gives_all_but_the_dropped_entries(name):
    make, key_map, _ = (BACKBONES | WHOLE)[name]
    state = make()
    ours, dropped = key_map.from_theirs(state)
    back = key_map.to_theirs(ours)
    assert back.keys() == state.keys() - dropped.keys()
    assert all(torch.equal(back[key], state[key]) for key in back)


@pytest.mark.parametrize("name", sorted(BACKBONES | WHOLE))
def test_entry_that_the_map_does_not_know_is_an_error(name):
    make = (BACKBONES | WHOLE)[name][0]
    with pytest.raises(KeyError, match=r"1 parameter names are not known to .*: surprise\.weight"):
        convert(make() | {"surprise.weight": torch.zeros(1)})


def test_original_mit_equals_the_converted_one():
    first = convert(external.mit_openmmlab()).state_dict
    second = convert(external.mit_nvidia()).state_dict
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_both_layouts_of_mscan_are_the_same_weights():
    first = convert(external.mscan_openmmlab()).state_dict
    second = convert(external.mscan_nested()).state_dict
    assert "backbone.stages.3.blocks.1.mlp.dwconv.weight" in first
    assert first.keys() == second.keys()
    values = [{k: v for k, v in s.items() if ".mlp.dwconv." in k} for s in (first, second)]
    assert all(torch.equal(values[0][key], values[1][key]) for key in values[0])


def test_entries_are_dropped_by_name_and_for_a_reason():
    conversion = convert(external.efficientformer_v2_imagenet(), external.meta_state("offseg_t"))
    reasons = {key.split(".")[-1] for key in conversion.dropped if "attn" in key or "mixer" in key}
    assert reasons == {"attention_biases", "attention_bias_idxs"}
    assert {k for k in conversion.dropped if "head" in k or k.startswith("norm")} == {
        *("norm.weight", "norm.bias", "norm.running_mean", "head.weight", "head.bias"),
        *("dist_head.weight", "dist_head.bias"),
    }
    report = conversion.report()
    assert f"Recognised {conversion.format_name}: {len(conversion.state_dict)} entries" in report
    assert "7 dropped (belongs to the ImageNet classifier): norm.weight, norm.bias" in report
    assert "network.*.*.token_mixer.attention_biases (4)" in report
    assert f"{len(conversion.missing)} not in it keep their initial values: " in report


@pytest.mark.parametrize("name", ["EfficientFormerV2", "timm s1"])
def test_attention_biases_are_resized_on_request(name):
    make, _, model = BACKBONES[name]
    state, model_state = make(), external.meta_state(*model)
    left_out = convert(state, model_state).state_dict
    kept = convert(state, model_state, resize_attention_biases=True)
    new = {key: kept.state_dict[key] for key in kept.state_dict.keys() - left_out.keys()}
    assert {key: value.shape for key, value in new.items()} == {
        key: value.shape for key, value in model_state.items() if key.endswith("bias.table")
    }
    assert len(new) == 5
    assert not any(key.endswith("attention_biases") for key in kept.dropped)
    theirs = {
        "EfficientFormerV2": "network.4.8.token_mixer.attention_biases",
        "timm s1": "stages.2.blocks.8.token_mixer.attention_biases",
    }[name]
    table = new["backbone.stages.2.8.token_mixer.bias.table"]
    torch.testing.assert_close(table[:, 0], state[theirs][:, 0])  # distance 0
    torch.testing.assert_close(table[:, -1], state[theirs][:, -1])  # the largest


def test_resized_bias_is_linear_in_the_distance_where_the_table_is():
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    table = torch.stack([2 * rows - columns, torch.ones(7, 7)]).flatten(1)
    resized = resize_bias_table(table, 256).unflatten(1, (16, 16))
    distance = torch.arange(16.0) * 6 / 15
    torch.testing.assert_close(resized[0], 2 * distance[:, None] - distance)
    torch.testing.assert_close(resized[1], torch.ones(16, 16))
    assert torch.equal(resize_bias_table(table, 49), table)


def test_unknown_names_are_no_format():
    assert convert({"encoder.weight": torch.zeros(1)}) is None
    assert recognise([]) is None
    assert recognise(external.meta_state("segformer_b0")) is OWN


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_backbone_of_another_family_is_refused(name):
    make, key_map, _ = BACKBONES[name]
    model = "segformer_b0" if name.startswith("MSCAN") else "segnext_t"
    with pytest.raises(
        ValueError, match=r"which fits a model with `MODEL.BACKBONE.NAME` "
    ) as error:
        convert(make(), external.meta_state(model))
    assert key_map.name in str(error.value)
    assert "this model has no `backbone." in str(error.value)


def test_whole_model_of_another_family_or_classifier_is_refused():
    state = external.authors_state("segformer_b0_ade20k")
    for model, opts in [
        ("segnext_t", ()),
        ("segformer_b0", PLAIN),
    ]:
        with pytest.raises(ValueError, match="SegFormerPixelDecoder and `CLASSIFIER` offset"):
            convert(state, external.meta_state(model, *opts))
    with pytest.raises(ValueError, match=r"`MODEL.SEGFORMER.LINEAR_LEVELS` True, but this model"):
        convert(
            external.other_state("hf_segformer_b0"), external.meta_state("segformer_b0", *PLAIN)
        )


def test_variant_with_fewer_blocks_is_refused():
    with pytest.raises(ValueError, match=r"lacks `backbone.stages.0.blocks.2.* same variant"):
        convert(external.mit_openmmlab(), external.meta_state("segformer_b2"))


def test_incomplete_model_is_refused():
    state = external.authors_state("segformer_b0_ade20k")
    del state["backbone.layers.3.2.weight"]
    with pytest.raises(ValueError, match=r"lacks `backbone.stages.3.out_ln.weight` .*\(1 such"):
        convert(state, external.meta_state(*model_of("segformer_b0_ade20k")))


def model_of(name: str) -> tuple:
    model, opts = external.model_options(name)
    return (model, *opts)


def test_reset_classifier_leaves_out_what_depends_on_the_classes():
    state = external.authors_state("segformer_b0_ade20k")
    fewer = external.meta_state("segformer_b0", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11)
    conversion = convert(state, fewer, reset_classifier=True)
    classifier = "sem_seg_head.classifier."
    reset = {f"{classifier}{key}" for key in ("class_representations", "norm.weight", "norm.bias")}
    assert set(conversion.missing) == reset
    assert {k: v for k, v in conversion.dropped.items() if k in reset} == dict.fromkeys(
        reset, "the classifier is reset, as asked for"
    )
    assert f"{classifier}offset_learning.class_offset_proj.weight" in conversion.state_dict
    plain = external.meta_state("segformer_b0", *PLAIN)
    conversion = convert(state, plain, reset_classifier=True)
    assert all(key.startswith(classifier) for key in conversion.missing)
    assert not any(key.startswith(classifier) for key in conversion.state_dict)


def test_only_one_format_claims_each_layout():
    for make, key_map, _ in (BACKBONES | WHOLE).values():
        names = set(make())
        claims = [f.key_map for f in FORMATS if names.issuperset(f.markers)]
        # A whole SegFormer holds the backbone's names too, timm's Swin those of the original one;
        # the first claim decides.
        assert claims[0] is key_map
        assert claims[1:] in ([], [tables.HF_MIT], [swin_tables.SWIN])


def test_packed_parts_are_split_by_their_shares():
    packing = Packing(("{i}.q.weight", "{i}.kv.weight"), (1, 2), "{i}.qkv.weight")
    key_map = KeyMap("x", (Rule("{i}.qkv.weight", "a.{i}.w"),), packings=(packing,))
    parts = {"0.q.weight": torch.randn(4, 3), "0.kv.weight": torch.randn(8, 3)}
    ours, _ = key_map.from_theirs(parts)
    assert torch.equal(ours["a.0.w"], torch.cat(list(parts.values())))
    back = key_map.to_theirs(ours)
    assert back.keys() == parts.keys()
    assert all(torch.equal(back[key], parts[key]) for key in parts)
    with pytest.raises(KeyError, match=r"`0.kv.weight` of x is missing, but `0.q.weight` is there"):
        key_map.from_theirs({"0.q.weight": torch.zeros(4, 3)})
    with pytest.raises(KeyError, match=r"0\.kv\.weight"):
        key_map.from_theirs({"0.kv.weight": torch.zeros(4, 3)})


def test_rule_reverses_chunks_and_adds_axes_and_undoes_it():
    rule = Rule("a", "b", trailing_axes=2, reversed_chunks=3)
    theirs = torch.arange(12.0).reshape(2, 6)
    ours = rule.tensor_from_theirs(theirs)
    assert ours.shape == (2, 6, 1, 1)
    assert ours[0, :, 0, 0].tolist() == [4, 5, 2, 3, 0, 1]
    assert torch.equal(rule.tensor_to_theirs(ours), theirs)
