"""Reading ahead and batches of a kind: order, bounds, errors in their place."""

import threading
import time

import pytest

from offseg_d2.inference.batching import batches_of_a_kind, items_ahead, read_ahead


def test_results_come_in_order_and_errors_in_their_place():
    def task(number):
        def run():
            time.sleep(0.002 * (number % 3))
            if number == 4:
                raise ValueError("four")
            return number

        return run

    results = []
    for future in read_ahead(map(task, range(8)), ahead=3):
        try:
            results.append(future.result())
        except ValueError as error:
            results.append(str(error))
    assert results == [0, 1, 2, 3, "four", 5, 6, 7]


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_tasks_are_started_than_asked_for(ahead):
    started = []
    tasks = (lambda i=i: started.append(i) for i in range(20))
    for taken, future in enumerate(read_ahead(tasks, ahead=ahead), start=1):
        future.result()
        assert len(started) <= taken + ahead
    assert sorted(started) == list(range(20))


def test_tasks_run_while_the_first_result_is_used():
    second = threading.Event()
    futures = read_ahead(iter([lambda: None, second.set]), ahead=2)
    next(futures)
    assert second.wait(timeout=10)
    futures.close()


def test_an_iterator_is_read_ahead_in_its_order_up_to_its_error():
    def numbers():
        yield from range(5)
        raise OSError("no more")

    seen = []
    with pytest.raises(OSError, match="no more"):
        for item in items_ahead(numbers(), ahead=3):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    assert list(items_ahead(iter(()), ahead=2)) == []


def test_threads_end_with_the_reader():
    futures = read_ahead((lambda: 1 for _ in range(100)), ahead=4)
    next(futures)
    futures.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_batches_hold_one_kind_and_nothing_is_lost():
    words = ["a", "bb", "c", "dd", "e", "fff", "g", "hh", "i"]
    batches = list(batches_of_a_kind(words, len, 2))
    assert batches == [["a", "c"], ["bb", "dd"], ["e", "g"], ["fff"], ["hh"], ["i"]]
    assert list(batches_of_a_kind(words, len, 1)) == [[word] for word in words]


def test_items_that_wait_are_bounded():
    taken = []
    items = (taken.append(n) or n for n in range(50))  # all of different kinds
    given = 0
    for batch in batches_of_a_kind(items, lambda n: n, 4, most=6):
        given += len(batch)
        assert len(taken) - given <= 6 or len(taken) == 50
    assert given == 50
