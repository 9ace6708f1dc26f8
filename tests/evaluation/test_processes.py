"""Two processes: every image counts once, however a sampler shares them out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common import ROOT
from tests.evaluation.samples import Recorder, label_of, make_evaluator, process
from tests.evaluation.two_processes import NAMES, SHARES


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.evaluation.two_processes", str(path)]
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors[0][-2000:] + errors[1]
    return path


@pytest.fixture(scope="module")
def reports(directory) -> list[dict]:
    """Results of each of two processes."""
    return [json.loads((directory / f"rank_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """One process that has counted every image once."""
    recorder, folder = Recorder(), tmp_path_factory.mktemp("alone")
    evaluator = make_evaluator(boundary=True, observers=[recorder], output_dir=str(folder))
    process(evaluator, NAMES)
    results = evaluator.evaluate()
    return {
        "results": results,
        "matrix": evaluator.confusion_matrix.tolist(),
        "segments": (folder / "sem_seg_predictions.json").read_text(),
    }


@pytest.mark.parametrize("share", sorted(SHARES))
def test_scores_are_those_of_one_process_and_each_image_counts_once(reports, alone, share):
    main, other = reports[0][share], reports[1][share]
    assert main["results"] == alone["results"]
    assert main["matrix"] == alone["matrix"]
    assert sum(map(sum, main["matrix"])) == sum((label_of(n) != 255).sum() for n in NAMES)
    assert other["results"] is None


@pytest.mark.parametrize("share", sorted(SHARES))
def test_written_segments_hold_each_image_once(directory, reports, alone, share):
    written = (directory / share / "sem_seg_predictions.json").read_text()
    assert written == alone["segments"]


@pytest.mark.parametrize("share", sorted(SHARES))
def test_observers_see_an_image_once_a_process_and_finish_on_the_main_one(reports, share):
    for rank, report in enumerate(reports):
        names = list(dict.fromkeys(SHARES[share][rank]))
        finish = ["finish"] if rank == 0 else []
        assert report[share]["calls"] == ["reset", *names, "state", *finish]
    images = {name: int((label_of(name) != 255).sum()) for name in NAMES}
    assert reports[0][share]["images"] == images
    assert reports[0][share]["total"] == sum(images.values())


def test_all_processes_agree_whether_a_folder_of_predictions_may_be_used(reports):
    for report in reports:
        assert report["claims"] == ["accepted", "accepted", "refused"]
