"""Independent pieces of work on a CPU, each in a thread of its own.

PyTorch shares every single operation among its threads. Where operations are many and short, they
wait for each other longer than they work, and ten times as long where other processes (such as
those that load images) take turns on the same cores. A thread that does a whole piece of work on
its own waits once, at the end.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Piece = TypeVar("_Piece")

_POOLS: dict[int, ThreadPoolExecutor] = {}  # by number of threads
_LOCK = threading.Lock()


def for_each(work: Callable[[_Piece], object], pieces: Iterable[_Piece]) -> None:
    """Call ``work`` with each piece, in as many threads as PyTorch uses; in any order.

    Within a piece, operations run in one thread. Whether gradients are recorded and whether tensors
    are made in inference mode is as for the caller.

    Args:
        work: must not depend on what it does with other pieces.
        pieces: at least as many as threads, if all shall have something to do.
    """
    pieces, threads = list(pieces), torch.get_num_threads()
    if threads == 1 or len(pieces) < 2:
        for piece in pieces:
            work(piece)
        return
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def call(piece: _Piece) -> None:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            work(piece)

    list(_pool(threads).map(call, pieces))  # reading the results raises what was raised


def _pool(threads: int) -> ThreadPoolExecutor:
    with _LOCK:
        if threads not in _POOLS:
            pool = ThreadPoolExecutor(threads, "offseg_d2", initializer=_use_one_thread)
            started = threading.Barrier(threads)
            list(pool.map(lambda _: started.wait(), range(threads)))
            torch.set_num_threads(threads)  # also what threads to come begin with
            _POOLS[threads] = pool
        return _POOLS[threads]


def _use_one_thread() -> None:
    """Let the calling thread's operations run in one thread."""
    torch.get_num_threads()  # PyTorch sets a new thread's number at its first use: before ours
    torch.set_num_threads(1)


def _forget_pools() -> None:
    """A forked process has none of the threads."""
    global _LOCK
    _POOLS.clear()
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget_pools)
