"""The forms that the inference benchmark times give the same label maps."""

import argparse
import json
from pathlib import Path

import inference
import inference_forms as forms
import numpy as np
import pytest
import torch
from peers import build_peer, run_peer
from torch import nn

from tests.common import SMALL_OFFSEG, offseg_config, spread_weights

SIZE = (64, 96)
PACKAGES = {
    "SegFormer-B0": "transformers",
    "DeepLabV3 MobileNetV3-Large": "torchvision",
    "SegFormer mit_b0": "segmentation_models_pytorch",
    "EfficientFormerV2-S1, backbone alone": "timm",
}
RUNTIMES = {forms.OPENVINO: "openvino", forms.ONNXRUNTIME: "onnxruntime"}


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the name, a small model."""
    monkeypatch.setattr(forms, "own_config", lambda name: offseg_config(*SMALL_OFFSEG))
    monkeypatch.setattr(forms, "_spread", spread_weights)


@pytest.mark.slow  # writes and opens ONNX files
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("form", forms.FORMS)
def test_every_form_gives_the_label_maps_of_the_model(form: str, tmp_path: Path) -> None:
    images, path = forms.make_images(2, *SIZE), str(tmp_path / "model.onnx")
    if form in RUNTIMES:
        pytest.importorskip("onnxscript")
        pytest.importorskip(RUNTIMES[form])
        forms.export_own("", path, images)
    expected = forms.label_maps(forms.build_own(""), images).numpy()
    actual = forms.open_form(form, "", images, path)()
    assert actual.shape == (2, *SIZE)
    assert len(np.unique(expected)) > 1
    assert (actual == expected).mean() >= 0.999


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
    assert planned | {name for name, _ in inference.BESIDE_PEERS} <= set(forms.MODELS)


def test_boundary_share_counts_squares_of_several_classes() -> None:
    labels = np.zeros((1, 8, 8), dtype=np.int64)
    assert forms.boundary_share(labels) == 0
    labels[0, 0, 0] = 1
    assert forms.boundary_share(labels) == 0.25


def test_groups_of_the_same_setting_replace_each_other(tmp_path: Path) -> None:
    def group(model: str, batch: int, ms: float) -> dict:
        setting = {"size": [512, 512], "batch": batch, "threads": 2}
        return {"model": model, **setting, "rows": [{"ms": ms}]}

    path = str(tmp_path / "inference.json")
    for groups in (
        [group("offseg_t", 1, 5.0), group("offseg_t", 8, 6.0)],
        [group("offseg_t", 1, 7.0), group("offseg_b", 1, 8.0)],
    ):
        inference.merge_groups(path, groups, inference.KEYS)
    written = json.loads(Path(path).read_text())["groups"]
    assert [(x["model"], x["batch"], x["rows"][0]["ms"]) for x in written] == [
        ("offseg_t", 1, 7.0),
        ("offseg_t", 8, 6.0),
        ("offseg_b", 1, 8.0),
    ]


@pytest.mark.parametrize("has_form", [True, False])
def test_rows_are_ratios_to_the_authors_order(
    has_form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ms = {form: 10.0 * (5 - i) for i, form in enumerate(forms.FORMS)}  # authors' order: 50

    def measure(given: list, args: argparse.Namespace, path: str) -> tuple:
        labels = np.zeros((1, *SIZE), dtype=np.int64)
        return np.array([[ms[form]] * 3 for form, _ in given]), [labels] * len(given)

    monkeypatch.setattr(inference, "measure", measure)
    monkeypatch.setattr(inference, "export_own", lambda *args: None)
    monkeypatch.setattr(inference, "build_own", lambda name: nn.Identity())
    monkeypatch.setattr(inference, "has_deployed_form", lambda model: has_form)
    monkeypatch.setattr(inference, "version", lambda package: "1.0")
    group = inference.measure_forms(argparse.Namespace(batch=1, size=SIZE), "offseg_t")
    rows = {row["form"]: row for row in group["rows"]}
    assert (forms.DEPLOYED in rows) == ("deployed_to_best_runtime" in group) == has_form
    assert rows[forms.ONNXRUNTIME]["times_as_fast"] == 5
    assert all(row["label_agreement"] == 1 and row["rounds"] == 3 for row in group["rows"])
    if has_form:  # 30 ms, onnxruntime 10
        assert group["deployed_to_best_runtime"] == 0.33
