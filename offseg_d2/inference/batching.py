"""Reading ahead in threads, and batches of things of one kind."""

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

READERS = 2  # threads; decoding releases Python's lock


def read_ahead(
    tasks: Iterable[Callable[[], T]], *, ahead: int, threads: int = READERS
) -> Iterator[Future[T]]:
    """Run tasks in threads, some of them before their results are asked for.

    Args:
        tasks: functions without arguments; taken only as they are started.
        ahead: started and not yet yielded at most, so that memory stays bounded.
        threads: that run them; with a single one, one after another in their order.

    Yields:
        the task's future, in the order of ``tasks``; ``result()`` waits for it and raises the
        task's own error.
    """
    remaining = iter(tasks)
    executor = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    try:
        started = deque(
            executor.submit(task) for task in itertools.islice(remaining, max(ahead, 1))
        )
        while started:
            yield started.popleft()
            started.extend(executor.submit(task) for task in itertools.islice(remaining, 1))
    finally:
        executor.shutdown(cancel_futures=True)


def items_ahead(items: Iterator[T], *, ahead: int) -> Iterator[T]:
    """The same items in the same order, taken in a thread before they are asked for.

    Raises:
        whatever ``items`` raises, in its place.
    """
    end = object()
    tasks = itertools.repeat(lambda: next(items, end))
    for future in read_ahead(tasks, ahead=ahead, threads=1):
        item = future.result()
        if item is end:
            return
        yield item


def batches_of_a_kind(
    items: Iterable[T], kind: Callable[[T], Hashable], size: int, most: int | None = None
) -> Iterator[list[T]]:
    """Batches of items of one kind.

    Args:
        items: whatever is to be batched.
        kind: items go together if this is equal for them.
        size: of a batch, at most.
        most: items that wait for others of their kind, of all kinds together; a batch that is not
            full is given when there are more. ``4 * size`` if None.

    Yields:
        batches; items of one kind keep their order. Those that are not full come last, but for
        the above.
    """
    most = 4 * size if most is None else most
    waiting: dict[Hashable, list[T]] = {}
    for item in items:
        key = kind(item)
        batch = waiting.setdefault(key, [])
        batch.append(item)
        if len(batch) >= size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) > most:
            yield waiting.pop(max(waiting, key=lambda name: len(waiting[name])))
    yield from waiting.values()
