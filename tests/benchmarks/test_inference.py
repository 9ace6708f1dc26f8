"""What the inference benchmark times is what it says, and its file grows group by group."""

import argparse
import json
from pathlib import Path

import inference
import inference_forms as forms
import pytest
import torch
from peers import PEERS, build_peer, run_peer
from torch import nn

from tests.common import SMALL_OFFSEG, build_offseg

SIZE = (64, 96)
PACKAGES = {
    "SegFormer-B0": "transformers",
    "DeepLabV3 MobileNetV3-Large": "torchvision",
    "SegFormer mit_b0": "segmentation_models_pytorch",
    "EfficientFormerV2-S1, backbone alone": "timm",
}


@pytest.fixture
def small_model() -> nn.Module:
    return build_offseg(*SMALL_OFFSEG).requires_grad_(False)


@torch.inference_mode()
def test_all_forms_give_the_same_logits_and_label_maps(small_model: nn.Module) -> None:
    images = forms.make_images(2, *SIZE)
    ways = forms.make_forms(small_model, torch.float32)
    labels = {form: forms.to_label_maps(model, images) for form, model in ways.items()}
    scores = {form: forms.to_logits(model, images) for form, model in ways.items()}
    for form in (forms.EAGER, forms.DEPLOYED):
        assert forms.largest_difference(scores[form], scores[forms.AUTHORS]) < 1e-3, form
        same = (labels[form].long() == labels[forms.AUTHORS]).double().mean()
        assert same >= 0.9999, form
    assert labels[forms.AUTHORS].shape == (2, *SIZE)


def test_authors_order_needs_more_operations(small_model: nn.Module) -> None:
    images = forms.make_images(1, *SIZE)
    gmacs = {
        form: forms.count_gmacs(forms.in_form(form, torch.float32, forms.to_logits, model, images))
        for form, model in forms.make_forms(small_model, torch.float32).items()
    }
    assert gmacs[forms.AUTHORS] > gmacs[forms.EAGER] > 0


@pytest.mark.parametrize("name", PACKAGES)
@torch.inference_mode()
def test_peers_give_class_ids_at_the_size_of_the_image(name: str) -> None:
    pytest.importorskip(PACKAGES[name])
    result = run_peer(build_peer(name, SIZE), forms.make_images(1, *SIZE))
    if "backbone" in name:
        assert [level.shape[-1] for level in result] == [24, 12, 6, 3]
        return
    assert result.shape == (1, *SIZE)
    assert result.dtype == torch.int64
    assert result.min() >= 0 and result.max() < 150


def test_every_planned_group_has_its_own_key_and_models() -> None:
    assert len({tuple(group) for group in inference.PLAN}) == len(inference.PLAN)
    planned = {group[1] for group in inference.PLAN if group[0] == "--models"}
    assert planned <= set(forms.MODELS)
    assert set(inference.BESIDE_PEERS) <= set(forms.MODELS)
    assert inference.BACKBONE_ALONE in PEERS


def test_open_share_counts_squares_of_several_classes() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    assert forms.open_share(labels) == 0
    labels[0, 0, 0] = 1
    assert forms.open_share(labels) == 0.25


def test_logits_that_are_not_finite_are_not_compared() -> None:
    with pytest.raises(ValueError, match="Logits must be finite"):
        forms.largest_difference(torch.tensor([float("nan")]), torch.zeros(1))


def test_groups_of_the_same_setting_replace_each_other(tmp_path: Path) -> None:
    def group(model: str, batch: int, ms: float) -> dict:
        setting = {"size": [512, 512], "batch": batch, "dtype": "float32", "threads": 2}
        return {"model": model, **setting, "rows": [{"ms": ms}]}

    path = str(tmp_path / "inference.json")
    inference.merge_groups(
        path, [group("offseg_t", 1, 5.0), group("offseg_t", 8, 6.0)], inference.KEYS
    )
    inference.merge_groups(
        path, [group("offseg_t", 1, 7.0), group("offseg_b", 1, 8.0)], inference.KEYS
    )
    written = json.loads(Path(path).read_text())["groups"]
    assert [(x["model"], x["batch"], x["rows"][0]["ms"]) for x in written] == [
        ("offseg_t", 1, 7.0),
        ("offseg_t", 8, 6.0),
        ("offseg_b", 1, 8.0),
    ]


def test_rows_of_a_group_are_complete(
    small_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "build_own", lambda name: small_model)
    args = argparse.Namespace(
        dtype="float32", batch=1, size=SIZE, compile=False, seconds=0.01, warmup=0, min_repeats=1,
    )  # fmt: skip
    group = inference.measure_forms(args, "offseg_t")
    goals = [(row["goal"], row["form"]) for row in group["rows"]]
    every = (forms.AUTHORS, forms.EAGER, forms.DEPLOYED)
    assert goals == [(goal, form) for goal in (forms.LOGITS, forms.LABEL_MAPS) for form in every]
    assert all(row["ms"] > 0 and row["gmacs"] > 0 for row in group["rows"])
    assert group["rows"][0]["times_as_fast"] == 1
    assert group["label_agreement"] >= 0.9999


def test_share_of_the_peak_is_two_operations_per_mac_and_second() -> None:
    group = {"rows": [{"ms": 100.0, "gmacs": 5.0}, {"ms": 100.0, "gmacs": None}]}
    inference.add_peak(
        group, {"mm": 2e11, "packed": 1e11}
    )  # 10 billion operations in 0.1 s are half of it
    assert [row["share_of_gemm_peak"] for row in group["rows"]] == [0.5, None]
    assert (group["gemm_gflops"], group["gemm_way"]) == (200, "mm")
