"""The parity report: verdicts, exit status, unknown and broken cases."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offseg_d2.layers import NMF2D
from tests import parity_report
from tests.common import ROOT
from tests.golden import parity_rules
from tests.golden.make import FOLDER, Cut, cut_case
from tests.parity import mask2former
from tests.parity.case import DEFAULT_TOLERANCE, ParityCase, Row, SkipCase
from tests.parity.models import build_case_model
from tests.parity_report import run_case

SMALL = "A_offset_learning_small"


def copy_case(folder, name: str = SMALL, **changes: np.ndarray):
    """A golden case in another folder, with some entries changed."""
    with np.load(FOLDER / f"{name}.npz") as data:
        entries = dict(data)
    assert changes.keys() <= entries.keys()
    np.savez(folder / f"{name}.npz", **(entries | changes))
    return folder / f"{name}.npz"


def report(folder, monkeypatch, capsys, *options: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["parity_report", str(folder), *options])
    status = parity_report.main()
    return status, capsys.readouterr().out


def line_of(output: str, tensor: str) -> str:
    return next(line for line in output.splitlines() if f" {tensor} " in line)


def verdicts(output: str) -> dict[str, set[str]]:
    """Case name -> its verdicts."""
    found: dict[str, set[str]] = {}
    for line in output.splitlines()[1:-1]:
        words = set(line.split())
        found.setdefault(line.split()[0], set()).update(words & {"PASS", "FAIL", "SKIP"})
    return found


def test_prints_one_line_per_tensor_with_difference_tolerance_and_verdict(
    tmp_path, monkeypatch, capsys
):
    copy_case(tmp_path)
    status, output = report(tmp_path, monkeypatch, capsys)
    assert status == 0
    case, tensor, difference, tolerance, verdict = line_of(output, "grad_x").split()
    assert (case, tensor, verdict) == (SMALL, "grad_x", "PASS")
    assert 0 <= float(difference) <= float(tolerance) < 1e-5


def test_a_wrong_number_fails_its_line_alone_and_sets_the_exit_status(
    tmp_path, monkeypatch, capsys
):
    with np.load(FOLDER / f"{SMALL}.npz") as data:
        sample = data["out__sample"].copy()
    sample[3] += 1e-4
    copy_case(tmp_path, out__sample=sample)
    status, output = report(tmp_path, monkeypatch, capsys)
    assert status == 1
    assert "FAIL" in line_of(output, "out")
    assert output.count("FAIL") == 1


def test_a_not_a_number_fails(tmp_path):
    with np.load(FOLDER / f"{SMALL}.npz") as data:
        sample = np.full_like(data["out__sample"], np.nan)
    rows = run_case(copy_case(tmp_path, out__sample=sample))
    assert [row.tensor for row in rows if not row.passed] == ["out"]
    assert not Row("case", "tensor", float("nan"), 1.0).passed


def test_a_tensor_of_another_shape_fails(tmp_path):
    case = ParityCase(copy_case(tmp_path))
    row = case.compare("out", torch.zeros(1, 19, 240))
    assert not row.passed and "shape" in row.remark


def test_tolerance_is_three_times_the_recorded_noise_and_a_fixed_one_without(tmp_path):
    case = ParityCase(copy_case(tmp_path))
    assert case.tolerance("out") == 3 * float(case.data["out__fp64diff"])
    carafe = ParityCase(FOLDER / "B_carafe.npz")
    assert carafe.tolerance("case0") == DEFAULT_TOLERANCE == 2e-5


def test_a_wrong_layer_norm_epsilon_does_not_pass(monkeypatch):
    # The tolerances are meant to be that tight.
    epsilon = torch.nn.LayerNorm.__init__

    def looser(self, *args, **kwargs):
        epsilon(self, *args, **kwargs)
        self.eps = 1e-4

    monkeypatch.setattr(torch.nn.LayerNorm, "__init__", looser)
    rows = {row.tensor: row for row in run_case(FOLDER / f"{SMALL}.npz")}
    assert not rows["out"].passed


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("G_mask2former_swin_q_ade20k_512x512", "mask2former_swin_q is not built yet"),
        ("D_offseg_x_ade20k_512x512", "offseg_x is not built yet"),
        ("Z_something", "no comparison is written for this kind of case"),
        ("C_efficientformerv2_S9_512x512", "names no EfficientFormerV2 variant"),
    ],
)
def test_a_model_that_is_not_built_is_skipped_with_its_name(
    tmp_path, monkeypatch, capsys, name, reason
):
    np.savez(tmp_path / f"{name}.npz", image_crc32=np.int64(0))
    with pytest.raises(SkipCase, match=reason):
        run_case(tmp_path / f"{name}.npz")
    status, output = report(tmp_path, monkeypatch, capsys)
    assert status == 0 and reason in output
    assert verdicts(output) == {name: {"SKIP"}}


def test_a_broken_case_fails_and_the_others_are_still_reported(tmp_path, monkeypatch, capsys):
    (tmp_path / "A_offset_learning.npz").write_bytes(b"not a zip file")
    copy_case(tmp_path)
    status, output = report(tmp_path, monkeypatch, capsys)
    assert status == 1
    assert verdicts(output) == {"A_offset_learning": {"FAIL"}, SMALL: {"PASS"}}


def test_an_image_that_is_not_the_references_is_noticed(tmp_path):
    name = "C_efficientformerv2_S1_512x512"
    path = copy_case(tmp_path, name, image_crc32=np.int64(1))
    with pytest.raises(ValueError, match="differs from the reference's"):
        run_case(path)


def test_sizes_are_read_from_the_file(tmp_path):
    names = {"cls_offset_proj.weight", "feat_offset_proj.weight", "mask_norm.weight"}
    shapes = {f"grad.{name}": (32, 32) for name in names}
    shapes |= {"out": (1, 7, 5, 6), "grad_x": (1, 32, 5, 6), "grad.cls_repr": (1, 7, 32)}
    shapes |= {"grad.mask_norm.weight": (7,), "grad.mask_norm.bias": (7,)}
    entries = {}
    for key, shape in shapes.items():
        entries[f"{key}__shape"] = np.array(shape)
        entries[f"{key}__step"] = np.int64(1)
        entries[f"{key}__sample"] = np.zeros(int(np.prod(shape)))
    np.savez(tmp_path / "A_offset_learning_k7.npz", **entries)
    rows = {row.tensor: row for row in run_case(tmp_path / "A_offset_learning_k7.npz")}
    assert rows.keys() == shapes.keys()
    assert not any(row.remark for row in rows.values())  # no complaint about a shape


def write_case(folder, name: str, tensors: dict, batch: int = 1, **others) -> ParityCase:
    """A case of every entry of ``tensors``, with the checksums of its image or ``batch`` images."""
    entries = {}
    for key, tensor in tensors.items():
        entries[f"{key}__shape"], entries[f"{key}__step"] = np.array(tensor.shape), np.int64(1)
        entries[f"{key}__sample"] = tensor.detach().numpy().reshape(-1)
    np.savez(folder / f"{name}.npz", image_crc32=np.zeros(batch, np.int64), **entries, **others)
    height, width = ParityCase(folder / f"{name}.npz").size()
    names = [f"{name}/img{i}" for i in range(batch)] if batch > 1 else [name]
    sums = [parity_rules.crc(parity_rules.image(x, height, width)) for x in names]
    checksums = np.array(sums if batch > 1 else sums[0])
    np.savez(folder / f"{name}.npz", image_crc32=checksums, **entries, **others)
    return ParityCase(folder / f"{name}.npz")


def check_with_a_disturbed_value(case: ParityCase, key: str) -> None:
    """All rows pass but those of ``key``, of which a value is made 0.01 larger."""
    entries = dict(case.data)
    entries[f"{key}__sample"] = entries[f"{key}__sample"].copy()
    entries[f"{key}__sample"][7] += 1e-2
    np.savez(case.path, **entries)
    failed = [row for row in run_case(case.path) if not row.passed]
    assert {row.tensor for row in failed} == {key}
    assert all(abs(row.difference - 1e-2) < 1e-3 for row in failed)  # nothing else is wrong in it


def test_images_of_a_batch_get_nmf_bases_of_their_own(tmp_path):
    name = "F_segnext_t_ade20k_64x96"
    case = write_case(tmp_path, name, {}, batch=2)
    model = build_case_model(case).model
    (ham,) = (m for m in model.modules() if isinstance(m, NMF2D))
    bases = torch.from_numpy(parity_rules.uniform("nmf_bases", (2, ham.channels, ham.rank)))
    ham.injected_bases = bases / bases.norm(dim=1, keepdim=True)
    pixels = torch.stack([model.normalise(image) for image in case.images()])
    with torch.no_grad():
        logits = model.sem_seg_head(model.backbone(pixels))
    assert logits.shape == (2, 150, 8, 12)
    labels = logits.argmax(1).numpy().astype(np.uint8)
    tensors = {"input": pixels, "logits": logits}
    check_with_a_disturbed_value(
        write_case(tmp_path, name, tensors, 2, logits_argmax=labels), "logits"
    )


def test_training_case_takes_sizes_from_its_input(tmp_path):
    name, size = "I_segnext_t_ade20k_train", (64, 96)
    labels = [parity_rules.labels(f"{name}/lab{i}", *size, 150) for i in range(2)]
    others = {
        "label_crc32": np.array([parity_rules.crc(x) for x in labels]),
        "loss__decode.acc_seg": np.float64(0),
        "grad_names": np.array([], str),
        "grad_norms_fp64": np.array([]),
    }
    pixels = {"input": torch.zeros(2, 3, *size)}
    case = write_case(tmp_path, name, pixels, 2, loss_fp64=np.float64(5), **others)
    rows = {row.tensor: row for row in run_case(case.path)}
    assert rows["parameters without gradient"].passed and 0 < rows["loss_fp64"].difference < 0.5


def test_mask_query_host_is_compared_at_the_size_of_the_case(tmp_path):
    name = "G_mask2former_swin_t_ade20k_64x96"
    case = write_case(tmp_path, name, {}, batch=2)
    model = build_case_model(case, torch.float64).model
    found = mask2former.record(model)
    with torch.no_grad():
        results = model([{"image": image} for image in case.images()])
    found["sem_seg"] = torch.stack([result["sem_seg"] for result in results])
    assert found["sem_seg"].shape == (2, 150, 64, 96)
    keys = ("input", "backbone3", "cls_pred1", "mask_pred9", "sem_seg")
    tensors = {key: found[key] for key in keys}
    noise = {f"{key}__fp64diff": np.float64(1e-4) for key in keys}
    check_with_a_disturbed_value(write_case(tmp_path, name, tensors, 2, **noise), "sem_seg")


def test_mask_query_pipeline_reads_both_sizes_from_the_case(tmp_path):
    name = "H_mask2former_swin_t_ade20k_whole_50x90_to_33x60"
    case = write_case(tmp_path, name, {})
    (image,) = case.images()
    model = build_case_model(case, torch.float64).model
    with torch.no_grad():
        scores = model([{"image": image, "height": 33, "width": 60}])[0]["sem_seg"]
    tensors = {"input": F.pad(model.normalise(image)[None], [0, 6, 0, 14]), "seg_logits": scores}
    label_map = scores.argmax(0).numpy().astype(np.uint8)
    case = write_case(tmp_path, name, tensors, label_map=label_map)
    check_with_a_disturbed_value(case, "seg_logits")


def test_a_tensor_that_is_not_computed_here_fails_without_hiding_the_others(tmp_path):
    name = "C_efficientformerv2_S0_32x64"
    case = write_case(tmp_path, name, {"out9": torch.zeros(1), "out3": torch.zeros(1, 176, 1, 2)})
    rows = {row.tensor: row for row in run_case(case.path)}
    assert rows["out9"].remark == "not computed" and not rows["out9"].passed
    assert not rows["out3"].remark


def test_an_empty_folder_is_an_error(tmp_path, monkeypatch, capsys):
    assert report(tmp_path, monkeypatch, capsys)[0] == 2


def test_runs_as_a_module():
    command = [sys.executable, "-m", "tests.parity_report", str(FOLDER), "--cases", "B_carafe"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 cases passed" in done.stdout


def test_cutting_keeps_positions_and_format(tmp_path):
    full = np.arange(2 * 5 * 7, dtype=np.float32)
    data = {
        "x__shape": np.array([2, 5, 7]),
        "x__step": np.int64(3),
        "x__sample": full[::3],
        "x__stats": np.zeros(3),
        "y__sample": full,
        "x_crc32": np.int64(5),
        "config": np.array(["name"]),
    }
    kept = cut_case(data, Cut(9, ("x",), ("*_crc32",)))
    assert kept.keys() == {"x__shape", "x__step", "x__sample", "x__stats", "x_crc32"}
    assert int(kept["x__step"]) == 9  # 24 samples, every 3rd: coprime to 70
    assert np.array_equal(kept["x__sample"], full[::9])
