"""Curves of several runs: reading, grouping, means, and the tool that draws them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offseg_d2.visualization.curves import (
    Curve,
    group_runs,
    join_curves,
    quantities,
    read_run,
    read_runs,
)
from tests.common import ROOT


def write_run(folder: Path, losses: dict[int, float], scores: dict[int, float]) -> Path:
    folder.mkdir(parents=True)
    lines = [{"iteration": i, "total_loss": v, "lr": 0.1} for i, v in losses.items()]
    lines += [
        {"iteration": i, "sem_seg/mIoU": v, "sem_seg/IoU-sky": 1.0} for i, v in scores.items()
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def plot(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "plot_runs.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_mean_and_range_of_curves_by_hand():
    long = Curve(np.array([10, 20, 30]), np.array([1.0, 2.0, 5.0]))
    short = Curve(np.array([10, 20]), np.array([3.0, 6.0]))
    band = join_curves([long, short])
    assert band.iterations.tolist() == [10, 20]  # as far as both go
    assert band.mean.tolist() == [2.0, 4.0]
    assert (band.low.tolist(), band.high.tolist(), band.count) == ([1.0, 2.0], [3.0, 6.0], 2)


def test_point_that_one_run_lacks_is_interpolated():
    full = Curve(np.array([10, 20, 30]), np.array([1.0, 2.0, 3.0]))
    torn = Curve(np.array([10, 30]), np.array([5.0, 9.0]))
    assert join_curves([full, torn]).mean.tolist() == [3.0, 4.5, 6.0]


def test_resumed_run_counts_once_and_torn_or_infinite_values_do_not(tmp_path):
    folder = write_run(tmp_path / "a", {0: 9.0, 10: 8.0}, {20: 50.0})
    with open(folder / "metrics.json", "a") as file:
        file.write('{"iteration": 10, "total_loss": 7.0}\n{"iteration": 20, "total_loss": NaN}\n')
        file.write('{"iteration": 30, "total_l')
    run = read_run(str(folder))
    assert run.curves["total_loss"].iterations.tolist() == [0, 10]
    assert run.curves["total_loss"].values.tolist() == [9.0, 7.0]
    assert set(run.curves) == {"total_loss", "sem_seg/mIoU"}


@pytest.mark.parametrize("pattern", ["plain_seed{}", "v50_plain_seed{}_long", "a.s{}", "x-seed-{}"])
def test_runs_that_differ_in_the_seed_form_a_group(tmp_path, pattern):
    for seed in (1, 22):
        write_run(tmp_path / pattern.format(seed), {0: 1.0}, {})
    (group,) = group_runs(read_runs([str(tmp_path)]))
    assert len(group.runs) == 2 and "seed" not in group.name


def test_models_with_numbers_in_their_names_are_not_taken_for_seeds(tmp_path):
    for name in ("mit_b0", "mit_b1", "stage5", "stages6"):
        write_run(tmp_path / name, {0: 1.0}, {})
    assert len(group_runs(read_runs([str(tmp_path)]))) == 4


def test_same_names_in_several_folders_have_different_labels(tmp_path):
    folders = [str(write_run(tmp_path / parent / "run", {0: 1.0}, {})) for parent in "ab"]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_several_test_sets_have_a_panel_each(tmp_path):
    folder = write_run(tmp_path / "run", {0: 1.0}, {})
    entry = {"iteration": 1, "one/sem_seg/mIoU": 3.0, "two/sem_seg/mIoU": 4.0}
    with open(folder / "metrics.json", "a") as file:
        file.write(json.dumps(entry))
    groups = group_runs(read_runs([str(folder)]))
    assert quantities(groups) == ["total_loss", "one/sem_seg/mIoU", "two/sem_seg/mIoU"]


def test_tool_writes_picture_and_self_contained_page(tmp_path):
    for seed, score in ((1, 40.0), (2, 44.0)):
        write_run(tmp_path / "runs" / f"<b>_seed{seed}", {9: 2.0, 19: 1.0}, {20: score})
    write_run(tmp_path / "other", {9: 3.0}, {})
    result = plot(tmp_path / "runs", tmp_path / "other", "--output", tmp_path / "out" / "curves")
    assert result.returncode == 0, result.stderr
    picture = Image.open(tmp_path / "out" / "curves.png").convert("RGB")
    colors = {color for _, color in picture.getcolors(1 << 20)}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colors  # a line of each group
    page = (tmp_path / "out" / "curves.html").read_text()
    assert "42.00 ± 2.83" in page and "1.00 ± 0.00" in page
    assert "&lt;b&gt;" in page and "<b>_seed" not in page
    assert "http" not in page.replace("http-equiv", "") and 'src="data:image/png;base64,' in page


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "must be a folder of a run, but is no folder"),
        (lambda p: p.mkdir(), "there is no metrics.json in it or in a folder in it"),
        (lambda p: write_run(p, {}, {}), "must hold losses or scores, but holds none yet"),
    ],
)
def test_folder_without_curves_is_named(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises((OSError, ValueError), match=f"^'{tmp_path}/run.*{message}"):
        read_runs([str(tmp_path / "run")])


def test_tool_reports_a_mistake_in_one_sentence_and_writes_nothing(tmp_path):
    result = plot(tmp_path, "--output", tmp_path / "curves")
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: '{tmp_path}' must be")
    assert not (tmp_path / "curves.png").exists()
