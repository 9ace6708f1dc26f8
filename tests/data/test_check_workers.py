"""Processes that die take nothing with them but their own task."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from offseg_d2.data.inspection import check as check_module
from offseg_d2.data.inspection import check_datasets
from offseg_d2.data.inspection.pair import check_pair
from offseg_d2.data.inspection.workers import WorkerDeath, WorkersError, run_in_workers
from tests.data.checked import NAMES, write_folder

DEADLY, QUITTING = 13, 17


def square(number: int) -> int:
    """The square; two numbers end the process."""
    if number == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == QUITTING:
        os._exit(7)
    return number * number


def die_once(marker: str) -> str:
    """End the process of whoever comes first."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def note_process(folder: str) -> None:
    """Leave a file of the process' number."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(0.02)


def check_or_die(sample, lut, settings):
    """Check a pair; one file ends the process."""
    if sample["file_name"].endswith("b.jpg"):
        os.kill(os.getpid(), signal.SIGKILL)
    return check_pair(sample, lut, settings)


def is_alive(pid: int) -> bool:
    """True if the process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def collect(function, tasks, workers):
    results = list(run_in_workers(function, tasks, workers))
    assert not multiprocessing.active_children()
    return results


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_task_has_its_result(workers):
    tasks = list(range(20, 220))
    assert collect(square, tasks, workers) == [task * task for task in tasks]
    assert collect(square, [], workers) == []


def test_death_costs_its_own_task_only_and_says_how():
    tasks = [1, DEADLY, 2, QUITTING, *range(20, 100), DEADLY, 3]
    expected = {
        DEADLY: WorkerDeath("killed by SIGKILL"),
        QUITTING: WorkerDeath("ended with status 7"),
    }
    assert collect(square, tasks, 2) == [expected.get(task, task * task) for task in tasks]


def test_task_of_a_process_that_was_killed_by_chance_is_done_by_another(tmp_path):
    tasks = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert collect(die_once, tasks, workers=1) == ["survived", "survived"]


def test_processes_that_keep_dying_end_the_work_with_a_hint():
    with pytest.raises(WorkersError, match=r"keep dying.*SIGKILL.*`--workers`"):
        list(run_in_workers(square, [DEADLY] * 20, 2))
    assert not multiprocessing.active_children()


def test_work_that_is_given_up_leaves_no_process_behind():
    outcomes = run_in_workers(square, list(range(20, 520)), 2)
    next(outcomes)
    outcomes.close()
    assert not multiprocessing.active_children()


def test_processes_leave_when_the_one_that_started_them_is_killed(tmp_path):
    starter = os.fork()
    if not starter:
        outcomes = run_in_workers(note_process, [str(tmp_path)] * 999, 3)
        for _ in range(12):
            next(outcomes)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(starter, 0)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 3
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in workers if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_file_that_kills_its_reader_is_named_and_the_others_are_checked(tmp_path, monkeypatch):
    write_folder(tmp_path)

    monkeypatch.setattr(check_module, "check_pair", check_or_die)
    (report,) = check_datasets([f"folder:{tmp_path}:train"], workers=2)
    (fault,) = report.faults
    assert fault.kind == "crash" and fault.path == str(tmp_path / "images/train/b.jpg")
    assert "b.png' ended two processes that read it: killed by SIGKILL" in fault.message
    assert report.classes.num_labels == len(NAMES) - 1


def test_reports_do_not_depend_on_the_number_of_processes(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "images/train/c.jpg").write_bytes(b"")
    alone, shared = (check_datasets([f"folder:{tmp_path}:train"], workers=n)[0] for n in (0, 3))
    assert alone.faults == shared.faults != ()
    assert alone.classes.pixels.tolist() == shared.classes.pixels.tolist()
    assert alone.sizes == shared.sizes
