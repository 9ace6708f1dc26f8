"""The profile by kind of operation counts what runs, and its section says what was measured."""

import argparse
import copy
import functools
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import common
import inference_forms as forms
import inference_profile
import operation_kinds as kinds
import pytest
import torch
import torch.nn.functional as F
from make_page import load_sections, make_page
from torch import nn

from offseg_d2.deploy.packed import PackedLinear
from tests.common import SMALL_OFFSEG, build_offseg


@pytest.fixture(scope="module")
def small_model() -> nn.Module:
    return build_offseg(*SMALL_OFFSEG).requires_grad_(False)


@pytest.fixture(scope="module")
def result(small_model: nn.Module) -> dict:
    load_sections()
    args = argparse.Namespace(
        model="offseg_t", size=(64, 96), seconds=0.01, min_repeats=1, repeats=1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_profile, "build_own", lambda name: small_model)
        patch.setattr(inference_profile, "gemm_peaks", lambda: {"torch.mm": 1e11, "packed": 2e11})
        patch.setattr(inference_profile, "copy_rate", lambda: 1e10)
        patch.setattr(inference_profile, "gelu_rate", lambda: 1e9)
        return inference_profile.measure(args)


@torch.no_grad()
def test_all_multiply_adds_are_in_the_kinds(small_model: nn.Module) -> None:
    images = forms.make_images(1, 64, 96)
    for form, model in forms.make_forms(small_model, torch.float32).items():
        call = forms.in_form(form, torch.float32, forms.to_logits, model, images)
        work, median, shortest = kinds.profile_kinds(model, call, 3)
        assert 0 < shortest <= median, form
        assert sum(x.macs for x in work.values()) / 1e9 == forms.count_gmacs(call), form
        assert all(0 < x.best <= x.seconds for x in work.values()), form
        products = {kind for kind, x in work.items() if x.macs}
        expected = {kinds.LINEAR, kinds.DENSE, kinds.DEPTHWISE, kinds.CLASSIFIER, kinds.ATTENTION}
        assert products == expected, form


@torch.no_grad()
def test_operations_are_of_the_kind_of_their_module() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 1), nn.Softmax(1)
    )
    work, *_ = kinds.profile_kinds(model, lambda: model(torch.ones(1, 8, 8, 8)), 1)
    assert {kind: (x.calls, x.macs) for kind, x in work.items() if kind != kinds.REST} == {
        kinds.DEPTHWISE: (1, 36 * 8 * 9),
        kinds.DENSE: (1, 16 * 4 * 8 * 9),
        kinds.LINEAR: (1, 16 * 4 * 4),
        kinds.SOFTMAX: (1, 0),
    }
    assert work[kinds.SOFTMAX].bytes == 2 * 4 * 16 * 4


@torch.no_grad()
def test_gelu_is_counted_alone_and_in_the_pass_of_a_layer() -> None:
    layer = PackedLinear(torch.ones(6, 4), None, "gelu").requires_grad_(False)
    model = nn.Sequential(layer, nn.GELU())
    work, *_ = kinds.profile_kinds(model, lambda: model(torch.ones(5, 4)), 1)
    assert (work[kinds.LINEAR].gelus, work[kinds.REST].gelus) == (30, 30)


def test_bytes_beside_products_and_gelu_are_told_apart() -> None:
    values = torch.ones(8)
    work, *_ = kinds.profile_kinds(nn.GELU(), lambda: F.gelu(values) + values, 1)
    assert (work[kinds.REST].bytes, work[kinds.REST].other_bytes) == (2 * 32 + 3 * 32, 3 * 32)


@pytest.mark.parametrize(("first", "later", "how"), [(3, 2, "fewer"), (2, 3, "more")])
def test_calls_that_differ_are_refused(first: int, later: int, how: str) -> None:
    counts, values = iter([1, first, later, later, later]), torch.ones(2)

    def call() -> None:
        for _ in range(next(counts)):
            values.sin()

    with pytest.raises(RuntimeError, match=f"does {how} operations"):
        kinds.profile_kinds(nn.Identity(), call, 1)


@torch.no_grad()
def test_times_of_a_kind_are_medians_and_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operations, three calls: of 1, 5, 2 and 10, 30, 20 seconds; whole calls 40, 50, 60."""
    clock = iter([0, 1, 0, 10, 0, 40, 0, 5, 0, 30, 0, 60, 0, 2, 0, 20, 0, 50])
    monkeypatch.setattr(kinds, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    model, values = nn.Sequential(nn.Softmax(0), nn.Softmax(0)), torch.ones(3)
    found = kinds.profile_kinds(model, lambda: model(values), 3)
    work = found.work[kinds.SOFTMAX]
    assert (work.calls, work.seconds, work.best) == (2, 2 + 20, 1 + 10)
    assert (found.median, found.shortest) == (50, 40)


def test_floor_is_the_peak_for_products_and_the_copy_for_all_else() -> None:
    work = {
        kinds.LINEAR: kinds.Work(2, 10**9, 0, 8, 0, 0.02, 0.015),
        kinds.DEPTHWISE: kinds.Work(1, 10**8, 10**6, 8, 0, 0.01, 0.01),
        kinds.NORM: kinds.Work(1, 0, 0, 10**7, 10**7, 0.01, 0.01),
        kinds.REST: kinds.Work(3, 0, 10**6, 3 * 10**7, 2 * 10**7, 0.01, 0.01),
    }
    linear, depthwise, norm, rest = inference_profile.make_rows(work, 2e11, 1e10, gelus=1e9)
    assert (linear["floor_ms"], linear["gflops"], linear["share_of_gemm_peak"]) == (10, 100, 0.5)
    assert (linear["ms"], linear["best_ms"], linear["mega_gelus"]) == (20, 15, None)
    assert (depthwise["floor_ms"], depthwise["mega_gelus"]) == (2, 1)
    assert (norm["floor_ms"], norm["gflops"]) == (1, None)
    assert rest["floor_ms"] == 3  # a million GELU, and the bytes of the others


def test_floor_and_share_of_the_targets() -> None:
    authors = {"ms": {"logits": 400.0, "label maps": 500.0}}
    deployed = {
        "ms": {"logits": 120.0, "label maps": 130.0}, "gflop": 12.0, "floor_ms": 70.0,
        "at_best_ms": 115.0,
    }  # fmt: skip
    ratios = {"logits": 3.3, "label maps": 3.8}
    targets = inference_profile.targets_of("offseg_t")
    logits, labels = inference_profile.goals_of([authors, deployed], ratios, 2e11, targets)
    assert (logits["target_ms"], labels["target_ms"]) == (100, 100)
    assert (logits["share_of_gemm_peak"], logits["target_share_of_gemm_peak"]) == (0.5, 0.6)
    assert labels["target_share_of_gemm_peak"] == pytest.approx(12 / 90 / 0.2, abs=1e-3)
    assert labels["times_as_fast_at_floor"] == 6.25  # 500 of 70 and the 10 after the logits
    assert labels["times_as_fast_at_best"] == 4.0  # 500 of 115 and 10


def _page(*groups: dict) -> str:
    return make_page({"inference_profile": {"groups": list(groups)}})


def test_targets_are_those_of_the_model() -> None:
    assert inference_profile.targets_of("offseg_l") == {"logits": 4.0, "label maps": 5.0}
    for other in ("segformer_b0", "mask2former_offseg_t"):
        assert set(inference_profile.targets_of(other).values()) == {1.5}


def test_calls_tell_what_lies_between_and_what_is_best() -> None:
    calls = functools.partial(
        inference_profile._calls, sums={"operations_ms": 90.0, "best_ms": 80.0}
    )
    found = calls(kinds.Profile({}, 0.11, 0.105))
    assert (found["between_ms"], found["at_best_ms"]) == (20, 100)
    assert calls(kinds.Profile({}, 0.11, 0.085))["at_best_ms"] == 85
    found = calls(kinds.Profile({}, 0.085, 0.083))
    assert (found["between_ms"], found["at_best_ms"]) == (-5, 80)


def test_section_tells_every_group(result: dict) -> None:
    other = {**copy.deepcopy(result), "model": "offseg_b", "size": [96, 64], "threads": 1}
    page = _page({**result, "threads": 2}, other)
    for name in (
        "offseg_t, 1 × 64×96, float32, 2 threads",
        "offseg_b, 1 × 96×64, float32, 1 thread",
    ):
        assert page.count(f"### {name}\n") == 1
        assert f"{name}, to logits" in page and f"{name}, to label maps" in page


def test_groups_that_differ_in_one_key_are_all_kept(result: dict, tmp_path: Path) -> None:
    path = str(tmp_path / "profile.json")
    others = {"model": "offseg_b", "size": [96, 64], "dtype": "bfloat16", "threads": 7}
    groups = [result, *({**result, key: value} for key, value in others.items())]
    for group in [*groups, {**result, "repeats": 9}]:
        common.merge_groups(path, [group], inference_profile.KEYS)
    found = common.read_groups(path)
    assert len(found) == 5 and found[0]["repeats"] == 9


def test_the_plan_is_printed_and_each_of_its_groups_is_measured(
    result: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(args: argparse.Namespace) -> dict:
        return {**result, "model": args.model, "size": list(args.size)}

    monkeypatch.setattr(inference_profile, "measure", measured)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    path = tmp_path / "profile.json"
    monkeypatch.setattr("sys.argv", ["inference_profile.py", "--plan", "--output", str(path)])
    inference_profile.main()
    lines = capsys.readouterr().out.splitlines()
    assert not path.exists()
    for line in lines:
        monkeypatch.setattr("sys.argv", shlex.split(line)[1:])
        inference_profile.main()
    groups = common.read_groups(str(path))
    assert [(group["model"], group["size"]) for group in groups] == [
        *((f"offseg_{size}", [512, 512]) for size in "tbl"),
        ("offseg_t", [1024, 2048]),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "64", "64"], "`--size` must stand with a group"),
        (["--min-repeats", "3"], "`--min-repeats` must stand with a group"),
        (["--plan", "--model", "offseg_t"], "`--plan` must stand without a group"),
        (["--model", "offseg_t", "--output", "old.json"], "old.json` must hold a list `groups`"),
        (["--model", "offseg_t", "--output", "other.json"], "other.json has no ['forms']"),
        (["--model", "offseg_t", "--output", "."], "`--output` must be a file, but . is a folder"),
        (["--model", "offseg_t", "--output", "no.json"], "`--output` must be a file of this"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused_before_measuring(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.json").write_text('{"model": "offseg_t"}')
    Path("no.json").write_text("no json")
    other = {"model": "offseg_t", "size": [1, 1], "dtype": "float32", "threads": 2, "rows": []}
    Path("other.json").write_text(json.dumps({"groups": [other]}))
    monkeypatch.setattr("sys.argv", ["inference_profile.py", *arguments])
    monkeypatch.setattr(inference_profile, "measure", lambda args: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        inference_profile.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_section_tells_every_number(result: dict) -> None:
    before = _page(result)
    assert "torch.mm 100, packed 200" in before
    for form in range(2):
        for key in ("calls", "ms", "best_ms", "megabytes", "floor_ms"):
            changed = copy.deepcopy(result)
            changed["forms"][form]["rows"][0][key] += 7
            assert _page(changed) != before, key
        for key in ("call_ms", "shortest_ms", "between_ms", "operations_ms", "best_ms"):
            changed = copy.deepcopy(result)
            changed["forms"][form][key] = 12345.0  # what lies between may be negative before
            assert _page(changed) != before, key


def test_only_a_missed_target_is_explained(result: dict) -> None:
    changed = copy.deepcopy(result)
    for goal in changed["goals"]:
        goal.update(times_as_fast=3.0, target=4.0)
    missed = _page(changed)
    assert missed.count("is missed") == 2
    changed["goals"][0]["times_as_fast"] = 4.5
    met = _page(changed)
    assert met.count("is missed") == 1 and "for label maps is missed" in met


def test_forms_of_a_result_hold_their_sums(result: dict) -> None:
    for form in result["forms"]:
        assert form["floor_ms"] == pytest.approx(sum(x["floor_ms"] for x in form["rows"]), abs=0.1)
        assert form["gflop"] == pytest.approx(sum(x["gflop"] or 0 for x in form["rows"]), abs=0.1)
        assert form["best_ms"] == pytest.approx(sum(x["best_ms"] for x in form["rows"]), abs=0.1)
        assert form["best_ms"] <= form["operations_ms"] + 0.1


def test_a_target_that_the_operations_cannot_meet_is_told(result: dict) -> None:
    changed = copy.deepcopy(result)
    deployed, goal = changed["forms"][-1], changed["goals"][0]
    deployed["at_best_ms"] = 115.0
    deployed["ms"]["logits"] = 150.0
    goal.update(times_as_fast=3.0, target=4.0, deployed_ms=150.0, target_ms=114.0)
    assert "would take 115 ms to the logits: **more than the target**" in _page(changed)
    goal["target_ms"] = 116.0
    assert "115 ms to the logits, which would meet the target" in _page(changed)
