"""Watching the other processes: which silence counts as a death."""

import threading

import pytest
import torch.distributed as dist

from offseg_d2.distributed import failure_watch
from offseg_d2.distributed.failure_watch import FailureWatch


@pytest.fixture
def store(monkeypatch) -> dist.Store:
    monkeypatch.setattr(failure_watch, "_PERIOD", 0.01)
    return dist.HashStore()


class Reports:
    """Receives what would end the process."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.came = threading.Event()

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self.came.set()


def test_neighbour_without_heartbeat_is_reported_as_killed(store):
    reports = Reports()
    watch = FailureWatch(store, 0, 2, end=reports, silence=0.1)
    store.set("alive/1", "7")
    watch.start()
    assert reports.came.wait(20)
    watch.stop()
    assert "Process 1 has given no sign of life" in reports.texts[0]
    assert store.check(["knows/0"])


def test_neighbour_that_has_left_in_good_order_is_not_missed(store):
    reports = Reports()
    watch = FailureWatch(store, 0, 2, end=reports, silence=0.1)
    store.set("alive/1", "left")
    watch.start()
    assert not reports.came.wait(0.5)
    watch.stop()


def test_silence_while_this_process_was_suspended_too_does_not_count(store, monkeypatch):
    reports = Reports()
    watch = FailureWatch(store, 0, 2, end=reports, silence=0.1)
    store.set("alive/1", "7")
    watch._listen_to_neighbour()
    now = failure_watch.time.monotonic()
    monkeypatch.setattr(failure_watch.time, "monotonic", lambda: now + 3600)
    watch._listen_to_neighbour()
    assert not store.check(["failures"])


def test_failure_counts_as_known_only_once_it_is_in_the_log(store, monkeypatch):
    reports, known = Reports(), []
    watch = FailureWatch(store, 0, 2, end=reports)
    monkeypatch.setattr(
        failure_watch.logger, "error", lambda *args: known.append(store.check(["knows/0"]))
    )
    store.set("failures", "Process 1 failed")
    watch.start()
    assert reports.came.wait(20)
    watch.stop()
    assert known == [False]
    assert store.check(["knows/0"])
