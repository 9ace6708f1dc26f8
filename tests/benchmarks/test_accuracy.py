"""The accuracy experiment: its order, that it survives being killed, its arithmetic."""

import dataclasses
import json
import math
import multiprocessing
import os
import sys
import time
from pathlib import Path

import accuracy
import accuracy_results
import accuracy_suites
import pytest
import torch
from accuracy_page import accuracy_page, arm_lines, change_lines
from accuracy_plots import draw_plots
from accuracy_suites import ARMS, SUITES
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from misalignment import measure

from offseg_d2.config import load_config
from offseg_d2.data.datasets.shapes import ShapesParams, register_shapes
from tests.common import ROOT, SMALL_OFFSEG, offseg_config

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
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(accuracy, "code_digest", lambda: "0")
    return accuracy.Experiment(tmp_path / "runs", tmp_path / "results", command=FAKE)


def runs(arms=("plain", "both"), seeds=(1, 2), suite=SUITE):
    return accuracy_results.list_runs({"tests": suite}, arms, seeds)


def done(tmp_path):
    return (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []


def rows(tmp_path):
    return accuracy_results.Results(tmp_path / "results" / "tests.json").rows()


# --- recipes


def test_all_arms_of_a_seed_come_before_the_next_seed():
    names = [run.full_name.removeprefix("tests/") for run in runs()]
    assert names[:4] == ["low_plain_seed1", "low_both_seed1", "high_plain_seed1", "high_both_seed1"]
    assert names[4:] == [name.replace("seed1", "seed2") for name in names[:4]]


@pytest.mark.parametrize("name", SUITES)
def test_recipe_is_accepted_by_the_configuration(name):
    suite = SUITES[name]
    for run in accuracy_results.list_runs({name: suite}, ARMS, [1]):
        options = [o for k, v in run.recipe.items() for o in (k, accuracy.as_option(v))]
        cfg = load_config(str(ROOT / suite.config), options)
        assert cfg.SOLVER.HEAD_LR_FACTOR == 10
        assert list(cfg.DATASETS.TEST) == run.recipe["DATASETS.TEST"]
        classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
        assert len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        # all scores are written when they are made, and none falls on a checkpoint
        assert cfg.TEST.EVAL_PERIOD % cfg.SOLVER.LOG_PERIOD == 0
        assert cfg.SOLVER.MAX_ITER == accuracy_suites.NUM_POINTS * cfg.TEST.EVAL_PERIOD
        points = range(cfg.TEST.EVAL_PERIOD, cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD)
        assert all(point % cfg.SOLVER.CHECKPOINT_PERIOD for point in points)


@pytest.mark.parametrize("name", SUITES)
def test_recorded_rows_are_those_of_the_recipes(name):
    results = accuracy_results.Results(accuracy.RESULTS / f"{name}.json")
    for row in results.rows():
        run = accuracy_results.Run(name, SUITES[name], row["condition"], row["arm"], row["seed"])
        assert results.find(run) == row


def settings(arm):
    """Settings of an arm: offsets, rate of the projections (None without them), norm, start."""
    options = [o for k, v in ARMS[arm].overrides.items() for o in (k, accuracy.as_option(v))]
    cfg = load_config(str(ROOT / SUITES["scenes"].config), options)
    head = cfg.MODEL.SEM_SEG_HEAD
    offsets = (head.CLASS_OFFSET, head.FEATURE_OFFSET)
    rate = cfg.SOLVER.OFFSET_LR_FACTOR if any(offsets) else None
    return {"offsets": offsets, "rate": rate, "norm": head.CLASS_NORM, "std": head.OFFSET_INIT_STD}


@pytest.mark.parametrize(("before", "after"), accuracy_suites.CHANGES)
def test_a_change_is_one_thing(before, after):
    first, second = settings(before), settings(after)
    changed = {key for key in first if first[key] != second[key]}
    if None in (first["rate"], second["rate"]):
        changed.discard("rate")  # it comes with the offsets
    assert len(changed) == 1


# --- runs


def test_each_run_is_done_once_and_leaves_a_row(experiment, tmp_path):
    assert experiment.go(runs(seeds=[1]), jobs=2) == []
    assert len(done(tmp_path)) == 4
    assert experiment.go(runs(), jobs=2) == []  # those of the first seed are there
    assert len(done(tmp_path)) == 8 and len(set(done(tmp_path))) == 8
    found = rows(tmp_path)
    assert [(r["condition"], r["arm"], r["seed"]) for r in found] == [
        (c, a, s) for c in ("low", "high") for a in ("plain", "both") for s in (1, 2)
    ]
    row = found[2]
    assert row["final"] == {"dataset": "test_set", "mIoU": 42.0, "pACC": 80.0, "mBIoU": None}
    assert row["curve"] == {"dataset": "val_set", "iterations": [6], "mIoU": [52.0]}
    assert row["loss"]["iterations"] == [1, 2, 3, 4, 5, 6]
    assert row["classes"] == {"sky": None, "road": 50.0}
    assert row["recipe"]["A.B"] == 0 and row["code"] == [{"digest": "0"}]


def wait_for(path, text, seconds=60):
    end = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def test_a_killed_script_is_continued_and_its_training_waited_for(experiment, tmp_path):
    def run_script():
        os.environ["FAKE_SECONDS"] = "0.4"
        experiment.go(runs(("plain",), [1]), 1)

    script = multiprocessing.get_context("fork").Process(target=run_script)
    script.start()
    wait_for(tmp_path / "runs" / "tests" / "low_plain_seed1" / "last", "1")
    script.kill()
    script.join()
    assert experiment.go(runs(("plain",), [1]), jobs=1) == []
    expected = ["tests/high_plain_seed1 from 0", "tests/low_plain_seed1 from 0"]
    assert sorted(done(tmp_path)) == expected


def test_a_killed_training_is_resumed(experiment, tmp_path):
    (run, *_) = runs(("plain",), [1])
    folder = tmp_path / "runs" / run.full_name
    folder.mkdir(parents=True)
    (folder / "last").write_text("4")
    assert experiment.go([run], jobs=1) == []
    assert done(tmp_path) == [f"{run.full_name} from 4"]


def test_a_failure_is_reported_and_the_others_go_on(experiment, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_STATUS", "1")
    some = runs(("plain",), [1])
    assert experiment.go(some, jobs=2) == [run.full_name for run in some]
    assert "status 1" in capsys.readouterr().err
    monkeypatch.delenv("FAKE_STATUS")
    assert experiment.go(some, jobs=2) == []


def test_runs_and_rows_of_another_recipe_are_not_mixed(experiment):
    (run, *_) = runs(("plain",), [1])
    assert experiment.go([run], jobs=1) == []
    suite = dataclasses.replace(SUITE, recipe={**SUITE.recipe, "X.Y": 1})
    (other, *_) = runs(["plain"], [1], suite)
    with pytest.raises(ValueError, match="low_plain_seed1 has another one"):
        experiment.go([other], jobs=1)
    with pytest.raises(ValueError, match=r"it differs in \['X.Y'\]"):
        experiment.train_and_evaluate(other)


def test_curve_takes_the_last_value_of_an_iteration_and_skips_a_torn_line(tmp_path):
    lines = [
        {"iteration": 9, "total_loss": 2.0},
        {"iteration": 9, "sem_seg/mIoU": 10.0},
        {"iteration": 9, "total_loss": 1.0},  # done again after resuming
        {"iteration": 20, "sem_seg/mIoU": 30.0, "sem_seg/pACC": 60.0},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"iteration": 20, "tot'
    (tmp_path / "metrics.json").write_text(text)
    assert accuracy_results.curves_of(tmp_path, 20) == {
        "loss": {10: 1.0},
        "mIoU": {10: 10.0, 20: 30.0},
        "pACC": {20: 60.0},
    }


def test_missing_weights_are_named_before_anything_runs():
    suite = dataclasses.replace(SUITE, recipe={"MODEL.WEIGHTS": "absent.pth"})
    with pytest.raises(FileNotFoundError, match=r"`MODEL.WEIGHTS` of configs.*absent\.pth is not"):
        accuracy.check_weights([suite])


# --- statistics and page


def make_rows(scores):
    """(condition, arm) -> score by seed, as rows."""
    points = {"iterations": [10, 20], "mIoU": [1.0, 2.0], "value": [2.0, 1.0], "dataset": "val"}
    return [
        {"condition": c, "arm": a, "seed": s, "final": {"mIoU": v}, "curve": points,
         "loss": points, "code": [{"digest": "0"}]}
        for (c, a), values in scores.items()
        for s, v in values.items()
    ]  # fmt: skip


def test_estimates_by_hand():
    value = accuracy_results.estimate([1.0, 2.0, 3.0])
    # t(0.975, 2 degrees of freedom) = 4.302653; standard error = 1 / sqrt(3)
    assert (value.mean, value.deviation, value.count) == (2.0, 1.0, 3)
    assert value.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    single = accuracy_results.estimate([5.0])
    assert single.mean == 5.0 and math.isnan(single.deviation) and math.isnan(single.half_width)


def test_arms_by_hand():
    # With four comparisons t(2) at 1 - 0.05 / 8 is 8.86: the half width of +-0.1 is 0.51, of +-0.5
    # 2.6, which 95 % for each by itself (t = 4.30: 1.24) would have let pass as sure.
    found = make_rows(
        {
            ("low", "plain"): {1: 50.0, 2: 50.0, 3: 50.0, 4: 99.0},
            ("low", "class"): {1: 52.9, 2: 53.1, 3: 53.0},
            ("low", "feature"): {1: 47.1, 2: 46.9, 3: 47.0},
            ("low", "both"): {1: 51.5, 2: 52.0, 3: 52.5},
            ("low", "norm"): {1: 60.0, 2: 60.2},
            ("high", "plain"): {1: 50.0, 2: 50.0, 3: 50.0},
            ("high", "both"): {1: 49.0, 2: 49.1, 3: 49.2},
        }
    )
    lines = {(line[0], line[1]): line[2:] for line in arm_lines(found, SUITE)}
    assert lines["low", "plain"] == [4, "62.25 ± 24.50", None, None, None]
    by_seed = "1: +1.50, 2: +2.00, 3: +2.50"
    assert lines["low", "both offsets"] == [
        *(3, "52.00 ± 0.50", "+2.00 ± 1.24", by_seed, "undecided")
    ]
    assert {key: line[-1] for key, line in lines.items() if line[-1]} == {
        ("low", "class offset"): "better",
        ("low", "feature offset"): "worse",
        ("low", "both offsets"): "undecided",
        ("high", "both offsets"): "worse",
    }
    (line,) = arm_lines(found, SUITE, few=True)
    assert line[:4] == ["low", "no offsets, norm over classes", 2, "60.10 ± 0.14"]


def test_a_single_comparison_needs_no_correction():
    values = {("low", "plain"): {1: 50.0, 2: 50.0, 3: 50.0}}
    found = make_rows(values | {("low", "both"): {1: 51.5, 2: 52.0, 3: 52.5}})
    assert [line[-1] for line in arm_lines(found, SUITE)] == [None, "better"]


def test_changes_between_arms_by_hand_mark_versions_of_the_code():
    found = make_rows(
        {
            ("low", "norm"): {1: 50.0, 2: 52.0, 3: 54.0},
            ("low", "no_norm"): {1: 51.0, 2: 54.0, 3: 57.0, 4: 9.0},
            ("high", "both"): {2: 45.0},
            ("high", "both_lr0.1"): {2: 47.5},
        }
    )
    changed = next(row for row in found if (row["arm"], row["seed"]) == ("no_norm", 2))
    changed["code"] = [{"digest": "another"}]
    norms = ["no offsets, no norm", "no offsets, norm over classes"]
    by_seed = "1: -1.00, 2: -2.00*, 3: -3.00"
    assert list(change_lines(found, SUITE)) == [[*norms, "low", 3, "-2.00 ± 2.48", by_seed]]
    arms = ["both offsets", "both offsets, lr×0.1"]
    expected = [[*arms, "high", 1, "+2.50", "2: +2.50"]]
    assert list(change_lines(found, SUITE, few=True)) == expected


def test_rows_with_fewer_than_three_seeds_stand_at_the_end_and_are_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "tests", SUITE)
    values = {("low", "plain"): {1: 50.0, 2: 50.0, 3: 50.0}, ("low", "norm"): {1: 54.321}}
    found = make_rows(values)
    machine = {"date": "2001-02-03", "processor": "Abacus", "cores": 4, "threads": 1}
    text = accuracy_page({"tests": {"rows": [{**row, "machine": machine} for row in found]}})
    summary, few = text.split("## Rows with fewer than three seeds")
    assert "54.32" in few and "54.32" not in summary
    assert "| low | plain | 3 | 50.00 ± 0.00 |" in summary
    pictures = draw_plots(found, "tests", tmp_path)
    assert [path.name for path in pictures] == ["accuracy_tests_low_curves.png"]
    pictures = draw_plots(
        found + make_rows({("low", "both"): dict.fromkeys((1, 2, 3), 51.0)}), "tests", tmp_path
    )
    assert pictures[1:] == [tmp_path / "accuracy_tests_gain.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert draw_plots(make_rows({("low", "plain"): {1: 50.0}}), "tests", tmp_path) == []


# --- what the page says above the tables


def scores(suite: str, arm: str) -> dict[tuple[str, int], float]:
    found = accuracy_results.Results(accuracy.RESULTS / f"{suite}.json").rows()
    return {(r["condition"], r["seed"]): r["final"]["mIoU"] for r in found if r["arm"] == arm}


def test_sentences_on_the_authors_form_hold_in_the_recorded_rows():
    plain, authors = (scores("scenes_classes", arm) for arm in ("plain", "both"))
    gaps = {run: plain[run] - authors[run] for run in plain}
    assert len(gaps) == 9 and all(gap > 0 for gap in gaps.values())
    most = {k: max(gap for (name, _), gap in gaps.items() if name == k) for k in ("k8", "k150")}
    assert all(gap > max(most.values()) for (name, _), gap in gaps.items() if name == "k32")
    rows = accuracy_results.Results(accuracy.RESULTS / "scenes_classes.json").rows()
    assert max(r["final"]["mIoU"] for r in rows if r["condition"] == "k150") < 10


def test_sentences_on_the_form_of_own_data_hold_in_the_recorded_rows():
    rows = accuracy_results.Results(accuracy.RESULTS / "scenes_classes.json").rows()
    lines = [line for line in arm_lines(rows, SUITES["scenes_classes"]) if "no norm" in line[1]]
    assert len(lines) == 3 and all(line[4].startswith("+") for line in lines)
    assert {line[-1] for line in lines} == {"undecided"}
    plain, own = (scores("camvid_segformer_forms", a) for a in ("plain", "both_no_norm_zero"))
    assert own.keys() == plain.keys() == {("", 1)} and own["", 1] < plain["", 1]
    assert len({row["code"][0]["digest"] for row in rows}) == 1


def test_sentence_on_the_common_part_holds_in_the_recorded_angles():
    content = json.loads((accuracy.RESULTS / "misalignment.json").read_text())
    assert all(row["common"] > 0.5 for row in content["rows"])


# --- angles


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Folder of a finished training on drawn scenes of 8 classes, two of which have labels."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    if "few_scenes_val" not in DatasetCatalog:
        params = ShapesParams(num_train=1, num_val=2, size=(64, 96))
        register_shapes("few_scenes", params)
    cfg = offseg_config(*SMALL_OFFSEG, *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 8))
    cfg.merge_from_list(["DATASETS.TEST", ("few_scenes_val",), "OUTPUT_DIR", str(tmp_path)])
    folder = tmp_path / "suite" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


def test_angles_are_measured_on_a_finished_training(training):
    row = measure(training)
    assert (row["run"], row["dataset"], row["images"]) == ("suite/run", "few_scenes_val", 2)
    assert len(row["before"]) == len(row["after"]) == 8
    assert row["before"][0] is not None and row["before"] != row["after"]  # sky is everywhere
    assert 0 < row["common"] < 1


def test_page_on_angles_by_hand():
    rows = [{"run": "a/b", "images": 3, "before": [80.0, None, 60.0], "after": [70.0, None, 61.0],
             "common": 0.25}]  # fmt: skip
    machine = {"date": "2001-02-03", "processor": "Abacus", "cores": 4, "threads": 1}
    text = accuracy_page({"misalignment": {"rows": rows, "machine": machine}})
    assert "| a/b | 3 | 70.0 | 65.5 | 1 of 2 | 0.25 |" in text
