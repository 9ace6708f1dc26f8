"""The accuracy experiment: its order, that it survives being killed, its arithmetic."""

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from offseg_d2.config import add_offseg_config, load_config
from tests.common import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy
import accuracy_results
import accuracy_rows
import accuracy_runs
import accuracy_suites
from accuracy_plots import draw_plots

FAKE = (sys.executable, str(Path(__file__).with_name("fake_training.py")))
SUITE = accuracy_suites.Suite(
    title="of the tests",
    config="configs/shapes/offseg_t_offset_demo.yaml",
    recipe={"SOLVER.MAX_ITER": 6, "DATASETS.TEST": ["val_set"]},
    curve_set="val_set",
    test_set="test_set",
    conditions={"low": (0.0, {"A.B": 0}), "high": (1.0, {"A.B": 1})},
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(accuracy_runs, "code_state", lambda: {"digest": "0"})
    return tmp_path


def runs(arms=("plain", "both"), seeds=(1, 2)):
    return accuracy_rows.list_runs({"tests": SUITE}, arms, seeds)


def experiment(place, some_runs):
    def attempt(run):
        return accuracy_runs.Attempt(run, place / "runs", 1, FAKE)

    return accuracy.Experiment(some_runs, place / "results", attempt)


def done(place):
    return (place / "log").read_text().splitlines() if (place / "log").exists() else []


def rows(place):
    return accuracy_results.Results(place / "results", "tests").rows()


def test_all_arms_of_a_seed_come_before_the_next_seed():
    names = [run.name for run in runs()]
    assert names[:4] == ["low_plain_seed1", "low_both_seed1", "high_plain_seed1", "high_both_seed1"]
    assert names[4:] == [name.replace("seed1", "seed2") for name in names[:4]]


def test_recipes_of_the_arms_differ_in_the_classifier_alone():
    for suite in accuracy_suites.SUITES.values():
        some = accuracy_rows.list_runs({"s": suite}, accuracy_suites.ARMS, [1])
        for run in some:
            plain = next(r for r in some if (r.condition, r.arm) == (run.condition, "plain"))
            keys = {*run.recipe, *plain.recipe}
            changed = {key for key in keys if run.recipe.get(key) != plain.recipe.get(key)}
            has_offsets = run.arm != "plain"
            values = {
                "MODEL.SEM_SEG_HEAD.CLASSIFIER": "offset" if has_offsets else None,
                "MODEL.SEM_SEG_HEAD.CLASS_OFFSET": _has(run.arm, "class") if has_offsets else None,
                "MODEL.SEM_SEG_HEAD.FEATURE_OFFSET": (
                    _has(run.arm, "feature") if has_offsets else None
                ),
                "SOLVER.OFFSET_LR_FACTOR": (
                    0.1 if "_slow" in run.arm or "_free" in run.arm else None
                ),
                "MODEL.SEM_SEG_HEAD.CLASS_NORM": False if "free" in run.arm else None,
                "MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD": 0.0 if run.arm.endswith("_zero") else None,
            }
            assert {key: run.recipe.get(key) for key in changed} == {
                key: value for key, value in values.items() if value is not None
            }, run.arm


def _has(arm: str, offset: str) -> bool:
    return arm.startswith((offset, "both"))


@pytest.mark.parametrize("name", accuracy_suites.SUITES)
def test_recipe_is_accepted_by_the_configuration(name):
    suite = accuracy_suites.SUITES[name]
    for run in accuracy_rows.list_runs({name: suite}, accuracy_suites.ARMS, [1]):
        options = [o for k, v in run.recipe.items() for o in (k, accuracy_runs.as_option(v))]
        cfg = load_config(str(ROOT / suite.config), options)
        assert (
            cfg.SOLVER.HEAD_LR_FACTOR == 10
            and list(cfg.DATASETS.TEST) == run.recipe["DATASETS.TEST"]
        )
        # all scores are written when they are made, and none falls on a checkpoint
        assert cfg.TEST.EVAL_PERIOD % cfg.SOLVER.LOG_PERIOD == 0
        assert cfg.SOLVER.MAX_ITER == accuracy_suites.NUM_POINTS * cfg.TEST.EVAL_PERIOD
        points = range(cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD)
        assert all(point % cfg.SOLVER.CHECKPOINT_PERIOD for point in points)


def test_each_run_is_done_once_and_leaves_a_row(place):
    assert experiment(place, runs(seeds=[1])).go(jobs=2)
    assert len(done(place)) == 4
    assert experiment(place, runs()).go(jobs=2)  # those of the first seed are there
    assert len(done(place)) == 8 and len(set(done(place))) == 8
    found = rows(place)
    assert [(r["condition"], r["arm"], r["seed"]) for r in found] == [
        (c, a, s) for c in ("low", "high") for a in ("plain", "both") for s in (1, 2)
    ]
    row = found[2]
    assert row["final"] == {"dataset": "test_set", "mIoU": 42.0, "pACC": 80.0, "mBIoU": None}
    assert row["curve"] == {"dataset": "val_set", "iterations": [6], "mIoU": [52.0]}
    assert row["loss"]["iterations"] == [1, 2, 3, 4, 5, 6]
    assert row["classes"] == {"sky": None, "road": 50.0}
    assert row["recipe"]["A.B"] == 0 and row["interruptions"] == 0


def run_script(place, seconds):
    os.environ["FAKE_SECONDS"] = str(seconds)
    it = experiment(place, runs(("plain",), [1]))
    signal.signal(signal.SIGTERM, lambda *_: it.stop())
    sys.exit(0 if it.go(1) else 1)


def start_script(place, seconds):
    """The experiment in a process of its own, forked as importing takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=run_script, args=(place, seconds))
    process.start()
    return process


def wait_for(path, text="", seconds=60):
    end = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def test_run_goes_on_where_it_was_stopped(place):
    first = place / "runs" / "tests" / "low_plain_seed1"
    script = start_script(place, seconds=0.5)
    wait_for(first / "last", "2")
    script.terminate()
    script.join(timeout=60)
    assert script.exitcode == 1 and not rows(place)
    assert not done(place) and not (first.parent / "high_plain_seed1").exists()
    assert experiment(place, runs(("plain",), [1])).go(jobs=1)
    assert done(place)[0].startswith("tests/low_plain_seed1 from ")
    assert int(done(place)[0][-1]) >= 2
    assert rows(place)[0]["loss"]["iterations"] == [1, 2, 3, 4, 5, 6]


def test_training_that_outlives_a_killed_script_is_waited_for_and_not_disturbed(place):
    script = start_script(place, seconds=0.4)
    wait_for(place / "runs" / "tests" / "low_plain_seed1" / "last", "1")
    script.kill()
    script.join()
    assert experiment(place, runs(("plain",), [1])).go(jobs=1)
    assert sorted(done(place)) == ["tests/high_plain_seed1 from 0", "tests/low_plain_seed1 from 0"]
    assert [row["interruptions"] for row in rows(place)] == [1, 0]


def test_failure_is_told_and_the_others_go_on(place, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_STATUS", "1")
    it = experiment(place, runs(("plain",), [1]))
    assert not it.go(jobs=2)
    assert sorted(it.failed) == ["tests/high_plain_seed1", "tests/low_plain_seed1"]
    assert "ended with status 1" in capsys.readouterr().err
    monkeypatch.delenv("FAKE_STATUS")
    assert experiment(place, runs(("plain",), [1])).go(jobs=2)


def test_runs_and_rows_of_another_recipe_are_not_mixed(place):
    run = runs(("plain",), [1])[0]
    assert experiment(place, [run]).go(jobs=1)
    other_suite = accuracy_suites.Suite(**{**vars(SUITE), "recipe": {**SUITE.recipe, "X.Y": 1}})
    (other, *_) = accuracy_rows.list_runs({"tests": other_suite}, ["plain"], [1])
    with pytest.raises(ValueError, match="low_plain_seed1 has another one"):
        experiment(place, [other])
    with pytest.raises(accuracy_runs.RunError, match=r"it differs in \['X.Y'\]"):
        accuracy_runs.Attempt(other, place / "runs", 1, FAKE)()


def test_curve_takes_the_last_value_of_an_iteration_and_skips_a_torn_line(tmp_path):
    lines = [
        {"iteration": 9, "total_loss": 2.0},
        {"iteration": 9, "sem_seg/mIoU": 10.0},
        {"iteration": 9, "total_loss": 1.0, "time": 3.0},  # done again after resuming
        {"iteration": 20, "sem_seg/mIoU": 30.0, "sem_seg/pACC": 60.0},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"iteration": 20, "tot'
    (tmp_path / "metrics.json").write_text(text)
    curve = accuracy_rows.read_curve(tmp_path, 20)
    assert (curve.loss_iterations, curve.loss) == ([10], [1.0])
    assert (curve.iterations, curve.miou) == ([10, 20], [10.0, 30.0])
    assert curve.last == {"mIoU": 30.0, "pACC": 60.0, "mBIoU": None}
    assert not curve.is_complete  # there is no final model
    (tmp_path / "model_final.pth").touch()
    assert accuracy_rows.read_curve(tmp_path, 20).is_complete


def make_rows(scores):
    """(condition, arm) -> score by seed, as rows."""
    points = {"iterations": [10, 20], "mIoU": [1.0, 2.0], "value": [2.0, 1.0]}
    return [
        {"condition": c, "arm": a, "seed": s, "final": {"mIoU": v}, "curve": points,
         "loss": points, "code": [{"digest": "0"}]}
        for (c, a), values in scores.items()
        for s, v in values.items()
    ]  # fmt: skip


def test_verdicts_by_hand():
    # With four comparisons t(2) at 1 - 0.05 / 8 is 8.86: the half width of +-0.1 is 0.51, of +-0.5
    # 2.6, which 95 % for each by itself (t = 4.30: 1.24) would have let pass as sure.
    found = make_rows(
        {
            ("low", "plain"): {1: 50.0, 2: 50.0, 3: 50.0},
            ("low", "class"): {1: 52.9, 2: 53.1, 3: 53.0},
            ("low", "feature"): {1: 47.1, 2: 46.9, 3: 47.0},
            ("low", "both"): {1: 51.5, 2: 52.0, 3: 52.5},
            ("low", "norm"): {1: 60.0, 2: 60.1},
            ("high", "plain"): {1: 50.0, 2: 50.0, 3: 50.0},
            ("high", "both"): {1: 49.0, 2: 49.1, 3: 49.2},
        }
    )
    how = "by intervals that hold for all 4 comparisons of this suite together (Bonferroni)"
    assert accuracy_results.verdicts(found, SUITE) == [
        f"At low, against plain, {how}: better: class offset. worse: feature offset. "
        "undecided: both offsets.",
        f"At high, against plain, {how}: worse: both offsets.",
    ]


def test_a_single_comparison_needs_no_correction():
    values = {("low", "plain"): {1: 50.0, 2: 50.0, 3: 50.0}}
    found = make_rows(values | {("low", "both"): {1: 50.5, 2: 50.6, 3: 50.7}})
    assert accuracy_results.verdicts(found, SUITE) == [
        "At low, against plain, by a 95 % interval: better: both offsets."
    ]


def test_summary_by_hand():
    found = make_rows(
        {
            ("low", "plain"): {1: 50.0, 2: 52.0, 3: 54.0, 4: 99.0},
            ("low", "both"): {1: 51.0, 2: 54.0, 3: 57.0},
        }
    )
    assert accuracy_results.paired_differences(found, "low", "both") == {1: 1.0, 2: 2.0, 3: 3.0}
    value = accuracy_results.estimate([1.0, 2.0, 3.0])
    # t(0.975, 2 degrees of freedom) = 4.302653; standard error = 1 / sqrt(3)
    assert (value.mean, value.deviation, value.count) == (2.0, 1.0, 3)
    assert value.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    text = accuracy_results.summary(found, SUITE)
    assert "| low | both offsets | 3 | 54.00 ± 3.00 | +2.00 ± 2.48 | 1: +1.00, 2: +2.00" in text
    assert "| low | plain | 4 | 63.75 ± 23.56 |  |  |" in text


def test_changes_between_arms_by_hand():
    found = make_rows(
        {
            ("low", "norm"): {1: 50.0, 2: 52.0, 3: 54.0},
            ("low", "free"): {1: 51.0, 2: 54.0, 3: 57.0, 4: 9.0},
            ("high", "both"): {2: 45.0},
            ("high", "both_slow"): {2: 47.5},
        }
    )
    lines = accuracy_results.changes(found, SUITE).splitlines()[2:]
    assert lines == [
        "| neither offset, no norm | neither offset, norm over classes | low | 3 | -2.00 ± 2.48 | "
        "1: -1.00, 2: -2.00, 3: -3.00 |",
        "| both offsets | both offsets, slow projections | high | 1 | +2.50 | 2: +2.50 |",
    ]
    assert accuracy_results.changes(make_rows({("low", "plain"): {1: 1.0}}), SUITE) == ""


def test_changes_between_states_of_the_code_are_marked():
    found = make_rows({("low", "norm"): {1: 50.0, 2: 52.0}, ("low", "free"): {1: 51.0, 2: 54.0}})
    changed = next(row for row in found if (row["arm"], row["seed"]) == ("free", 2))
    changed["code"] = [{**changed["code"][0], "digest": "another"}]
    assert accuracy_results.changes(found, SUITE).endswith("| 1: -1.00, 2: -2.00* |")


_HEAD = "MODEL.SEM_SEG_HEAD."
_RATE, _NORM = "SOLVER.OFFSET_LR_FACTOR", f"{_HEAD}CLASS_NORM"
_DEFAULTS = {_RATE: 1.0, _NORM: True, f"{_HEAD}OFFSET_INIT_STD": 0.02}  # of the configuration
_SINGLE_CHANGES = [
    {f"{_HEAD}CLASS_OFFSET": (False, True)},
    {f"{_HEAD}FEATURE_OFFSET": (False, True)},
    {f"{_HEAD}CLASS_OFFSET": (False, True), f"{_HEAD}FEATURE_OFFSET": (False, True)},
    {_RATE: (1.0, 0.1)},
    {f"{_HEAD}OFFSET_INIT_STD": (0.02, 0.0)},
]


@pytest.mark.parametrize("pair", accuracy_suites.CHANGES)
def test_a_change_is_one_and_goes_the_way_it_says(pair):
    before, after = ({**_DEFAULTS, **accuracy_suites.ARMS[arm]} for arm in pair)
    assert before.keys() == after.keys()
    found = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    has_projections = any(before[f"{_HEAD}{name}_OFFSET"] for name in ("CLASS", "FEATURE"))
    if not has_projections:
        found.pop(_RATE, None)  # which is idle there
    norms = {"norm": (False, True), "both_free": (True, False), "class_free": (True, False)}
    expected = [*_SINGLE_CHANGES, {_NORM: norms.get(pair[1])}]
    assert found in expected


def test_defaults_of_the_changes_are_those_of_the_configuration():
    cfg = get_cfg()
    add_offseg_config(cfg)
    for key, value in _DEFAULTS.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value, key


def test_one_seed_has_no_spread():
    value = accuracy_results.estimate([5.0])
    assert value.mean == 5.0 and math.isnan(value.deviation) and math.isnan(value.half_width)


def test_plots_are_drawn_of_whatever_is_there(tmp_path):
    found = make_rows({("low", "plain"): {1: 50.0}, ("high", "plain"): {1: 40.0, 2: 41.0}})
    found += make_rows({("high", "both"): {2: 45.0}})
    paths = draw_plots(found, "tests", SUITE, tmp_path / "docs")
    names = ["accuracy_tests_convergence.png", "accuracy_tests_gain.png"]
    assert [path.name for path in paths] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_missing_weights_are_told_before_anything_runs(monkeypatch, tmp_path):
    recipe = {"MODEL.WEIGHTS": "absent.pth"}
    suite = accuracy_suites.Suite(**{**vars(SUITE), "recipe": recipe})
    with pytest.raises(FileNotFoundError, match=r"`MODEL.WEIGHTS` of configs.*absent\.pth is not"):
        accuracy.check_weights([suite])


def test_list_shows_what_is_done(place, capsys):
    some = runs(("plain",), [1])
    experiment(place, some[:1]).go(jobs=1)
    capsys.readouterr()
    accuracy.show_list(some, place / "results", place / "runs")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("tests/low_plain_seed1") and "mIoU  41.00" in first
    assert second.split() == ["tests/high_plain_seed1", "-"]
