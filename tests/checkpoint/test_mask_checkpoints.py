"""Mask2Former and Swin files as `MODEL.WEIGHTS`: values end up where they belong."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.modeling.backbone.swin import PatchMerging
from torch import Tensor, nn

from offseg_d2.checkpoint import CheckpointError, convert, convert_file
from offseg_d2.checkpoint.key_maps import Rule
from offseg_d2.checkpoint.mask_query_tables import (
    FB_MASK2FORMER,
    MASK2FORMER_OFFSET,
    MASK2FORMER_PLAIN,
)
from offseg_d2.engine import Trainer
from tests.checkpoint import external, external_masks
from tests.checkpoint.external_masks import SWIN_T
from tests.common import assert_close, offseg_config

PREDICTOR = "sem_seg_head.predictor"
ADE20K = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150)
OFFSET = ("mask2former_swin_t", *ADE20K)
PLAIN = (*OFFSET, "MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain")
SMALL = (  # a mask-query model that is built and saved within a second
    *("MODEL.EFFICIENTFORMER_V2.VARIANT", "s0", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.MASK_FORMER.ENC_LAYERS", 1, "MODEL.MASK_FORMER.DEC_LAYERS", 2),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32),
    *("MODEL.MASK_FORMER.ENC_DIM_FEEDFORWARD", 32, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4),
)


def write_detectron2_pickle(path, state: dict[str, Tensor]) -> str:
    """A file of Detectron2's model zoo: numpy arrays by name, read by Python 2 and 3."""
    arrays = OrderedDict((name, value.numpy()) for name, value in state.items())
    data = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(data, protocol=2))
    return str(path)


def hollow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes with one zero as the memory of each, which makes small files."""
    return {name: torch.zeros(()).expand(v.shape) for name, v in state.items()}


def merge_as_openmmlab(x: Tensor, norm: nn.LayerNorm, weight: Tensor) -> Tensor:
    """Patches (B, C, H, W) taken by unfolding, channel by channel -> (B, H W / 4, 2 C)."""
    return norm(F.unfold(x, kernel_size=2, stride=2).mT) @ weight.T


def test_converted_patch_merging_gives_the_same_features():
    theirs_norm, weight = nn.LayerNorm(24), torch.randn(12, 24)
    for parameter in theirs_norm.parameters():
        nn.init.normal_(parameter)
    rule = Rule("a", "b", patch_order=True)
    ours = PatchMerging(6)
    with torch.no_grad():
        ours.reduction.weight.copy_(rule.tensor_from_theirs(weight))
        ours.norm.weight.copy_(rule.tensor_from_theirs(theirs_norm.weight))
        ours.norm.bias.copy_(rule.tensor_from_theirs(theirs_norm.bias))
        x = torch.randn(2, 6, 8, 4)
        expected = merge_as_openmmlab(x, theirs_norm, weight)
        assert_close(ours(x.flatten(2).mT, 8, 4), expected)
    for tensor in (weight, theirs_norm.weight):
        assert torch.equal(rule.tensor_to_theirs(rule.tensor_from_theirs(tensor)), tensor)


def test_authors_and_original_layout_are_converted_to_the_same():
    authors = convert(external_masks.authors_plain_mask2former()).state_dict
    original = convert(external_masks.fb_mask2former()).state_dict
    assert authors.keys() == original.keys()
    assert all(torch.equal(authors[key], original[key]) for key in authors)


def test_offset_projections_are_all_that_the_authors_model_has_more():
    names = [key for key, _, _ in external.AUTHORS[SWIN_T]]
    projections = f"{PREDICTOR}.mask_predictor.offset_learning"
    only_theirs = {name for name in names if "offset_learning" in name}
    assert {MASK2FORMER_OFFSET.name_from_theirs(name) for name in only_theirs} == {
        f"{projections}.{part}_offset_proj.weight" for part in ("class", "feature")
    }
    for name in names:
        if name in only_theirs:
            with pytest.raises(KeyError, match="is not a parameter name of mmsegmentation's"):
                MASK2FORMER_PLAIN.name_from_theirs(name)
        else:
            ours = MASK2FORMER_PLAIN.name_from_theirs(name)
            assert MASK2FORMER_OFFSET.name_from_theirs(name) == ours


def test_detectron2_pickle_and_torch_file_give_the_same(tmp_path):
    state = external_masks.fb_mask2former()
    names = [name for name in state if "predictor" in name or "criterion" in name][:8]
    part = {name: state[name] for name in names} | {
        key: state[key]
        for key in ("criterion.empty_weight", "sem_seg_head.predictor.query_feat.weight")
    }
    first = convert_file(write_detectron2_pickle(tmp_path / "model.pkl", part))
    second = convert_file(external.write(tmp_path / "model.pth", {"model": part, "iteration": 3}))
    assert first.format_name == second.format_name == "Mask2Former"
    assert (
        first.dropped
        == second.dropped
        == {"criterion.empty_weight": "is a weight of the loss, given by the configuration"}
    )
    assert len(first.state_dict) == len(part) - 1
    for name, value in first.state_dict.items():
        assert torch.equal(value, part[name]) and torch.equal(value, second.state_dict[name])


class Command:
    def __reduce__(self):
        return np.fromfile, ("/dev/null",)


def test_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"criterion.empty_weight": Command()}}))
    with pytest.raises(CheckpointError, match=r"model\.pkl` is refused: it asks for numpy"):
        convert_file(str(path))


def test_counters_of_batch_norms_that_are_frozen_here_are_dropped():
    state = hollow(external_masks.fb_mask2former_r50("SyncBN"))
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    assert len(counters) == 53
    model = (*external_masks.R50_OPTIONS, "MODEL.SEM_SEG_HEAD.CLASSIFIER", "plain")
    conversion = convert(state, external.meta_state(*model))
    assert not conversion.missing
    assert {conversion.dropped[key] for key in counters} == {
        "counts batches for a batch norm that is frozen here"
    }
    trained = external.meta_state(*model, "MODEL.RESNETS.NORM", "BN")
    assert set(counters) <= convert(state, trained).state_dict.keys()


def test_plain_weights_are_refused_by_an_offset_model_unless_the_classifier_is_reset():
    state = external_masks.fb_mask2former()
    offset = external.meta_state(*OFFSET)
    with pytest.raises(ValueError, match=r"`CLASSIFIER` plain, but lacks .*mask_predictor.* \(2"):
        convert(state, offset)
    conversion = convert(state, offset, reset_classifier=True)
    assert {name.removeprefix(f"{PREDICTOR}.") for name in conversion.missing} == {
        *("class_embed.weight", "class_embed.bias"),
        "mask_predictor.offset_learning.class_offset_proj.weight",
        "mask_predictor.offset_learning.feature_offset_proj.weight",
    }


def test_classes_of_another_data_set_need_a_reset():
    shapes = {key: torch.empty(s, device="meta") for key, s, _ in external.AUTHORS[SWIN_T]}
    state = hollow(shapes)
    fewer = external.meta_state("mask2former_swin_t", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11)
    conversion = convert(state, fewer, reset_classifier=True)
    assert conversion.missing == [f"{PREDICTOR}.class_embed.{x}" for x in ("weight", "bias")]
    assert all(conversion.state_dict[k].shape == fewer[k].shape for k in conversion.state_dict)
    plain = external.meta_state(*PLAIN)
    conversion = convert(state, plain, reset_classifier=True)
    assert sum("offset_learning" in name for name in conversion.dropped) == 2
    with pytest.raises(ValueError, match=r"CLASSIFIER` offset, but this model has no .*mask_pred"):
        convert(state, plain)


def test_window_of_another_size_is_named_with_both_shapes(tmp_path):
    state = hollow(external_masks.swin_imagenet())
    key = "layers.0.blocks.0.attn.relative_position_bias_table"
    path = external.write(tmp_path / "swin.pth", {"model": state})
    larger = external.meta_state("mask2former_swin_t", "MODEL.SWIN.WINDOW_SIZE", 12)
    with pytest.raises(CheckpointError, match=rf"{key}` .*\(169, 3\) in the file, but \(529, 3\)"):
        convert_file(path, larger)


@pytest.mark.parametrize("classifier", ["offset", "plain"])
def test_own_file_and_original_layout_fill_the_same_small_model(tmp_path, classifier):
    cfg = offseg_config(
        *SMALL, "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, model="mask2former_offseg_t"
    )
    torch.manual_seed(1)
    source = build_model(cfg).eval()
    assert not any(name.startswith("criterion") for name in source.state_dict())
    state = FB_MASK2FORMER.to_theirs(source.state_dict())
    state["criterion.empty_weight"] = torch.ones(5)
    path = write_detectron2_pickle(tmp_path / "theirs.pkl", state)
    own = external.write(tmp_path / "own.pth", {"model": source.state_dict()})
    inputs = [{"image": torch.randint(0, 256, (3, 64, 96)).byte()}]
    with torch.no_grad():
        expected = source(inputs)[0]["sem_seg"]
        for file in (own, path) if classifier == "plain" else (own,):
            torch.manual_seed(2)
            model = build_model(cfg).eval()
            Trainer.build_checkpointer(cfg, model).load(file, checkpointables=[])
            assert torch.equal(model(inputs)[0]["sem_seg"], expected)
