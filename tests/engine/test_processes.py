"""Two processes on the CPU: equal to one process, and stopping together."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict]:
    """What each of two processes has seen."""
    directory = tmp_path_factory.mktemp("processes")
    url = f"tcp://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "tests.engine.two_processes", str(directory), url]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [json.loads((directory / f"rank_{rank}.json").read_text()) for rank in range(2)]


def test_counts_of_all_processes_are_summed_on_the_main_one(reports):
    assert reports[0]["pixels"] == [36, 72]
    assert reports[0]["metrics"] == reports[0]["metrics_of_one_process"]
    assert reports[1]["metrics"] is None


def test_training_keeps_the_weights_of_all_processes_equal(reports):
    assert reports[0]["weights"] == reports[1]["weights"]
    assert reports[0]["buffers"] == reports[1]["buffers"]


def test_bad_loss_in_one_process_stops_all_and_names_its_files(reports):
    for report in reports:
        assert "bad_of_rank_1.png" in report["error"]
        assert "rank_0" not in report["error"]


def test_signal_to_one_process_stops_all_after_the_same_iteration(reports):
    assert [report["stopped_after"] for report in reports] == [4, 4]
    assert [report["status"] for report in reports] == [143, 143]


def test_all_processes_resume_from_the_same_iteration(reports):
    assert [report["resumed_at"] for report in reports] == [5, 5]


def test_no_process_leaves_before_the_checkpoint_is_written(reports):
    (saved_at,) = reports[0]["saved_at"]
    assert reports[1]["left_at"] >= saved_at


def test_signal_in_an_evaluation_stops_all_after_it_and_the_next_iteration(reports):
    for report in reports:
        assert report["evaluation"]["status"] == 143
        assert report["evaluation"]["evaluated_after"] == [5]
        assert report["evaluation"]["last"] == "model_0000006.pth"
