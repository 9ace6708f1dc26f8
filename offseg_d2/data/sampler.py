"""The order of training samples, and the random numbers of each, as functions of the position.

*Position* counts the samples of a run from 0, over all processes. Sample ``p`` of a run with a
given seed is always the same image with the same augmentation: it depends neither on the number
of processes or workers nor on where the run was stopped and resumed.
"""

import contextlib
import itertools
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

# Streams of random numbers that must not coincide.
_ORDER_STREAM, _SAMPLE_STREAM = 0, 1


class TrainingBatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (position, index), one rank's share of each.

    Indices follow random permutations of the dataset, a new one each epoch. Batch ``b`` consists
    of the positions ``b * total_batch_size`` to ``(b + 1) * total_batch_size - 1``; each rank
    takes a contiguous part of it.

    Args:
        size: number of images of the dataset.
        total_batch_size: images of one batch over all ranks.
        seed: seed of the permutations, the same on all ranks.
        start_batch: first batch, to resume a run.
        rank, world_size: which of how many parts to take.

    Raises:
        ValueError: a number is out of range, or the batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        size: int,
        total_batch_size: int,
        *,
        seed: int,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if size < 1:
            raise ValueError(f"`size` must be at least 1, but is {size}.")
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ValueError(
                f"`SOLVER.IMS_PER_BATCH` must be a positive multiple of the number of processes "
                f"({world_size}), but is {total_batch_size}."
            )
        if seed < 0 or start_batch < 0:
            raise ValueError(
                f"`seed` and `start_batch` must not be negative, but are {seed} and {start_batch}."
            )
        self.size, self.seed, self.start_batch = size, seed, start_batch
        self.total_batch_size = total_batch_size
        self.batch_size = total_batch_size // world_size
        self.first_slot = rank * self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for batch in itertools.count(self.start_batch):
            start = batch * self.total_batch_size + self.first_slot
            samples = []
            for position in range(start, start + self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    order = epoch_permutation(self.size, self.seed, epoch)
                samples.append((position, int(order[position % self.size])))
            yield samples


def epoch_permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the images in an epoch: (size,) int64."""
    # RandomState, not default_rng: NumPy promises that its numbers never change.
    return np.random.RandomState(_seed_words(seed, _ORDER_STREAM, epoch)).permutation(size)


@contextlib.contextmanager
def sample_rng(seed: int, position: int) -> Iterator[None]:
    """Seed NumPy's, Python's and PyTorch's (CPU) generators for one sample; restore them after."""
    saved = np.random.get_state(), random.getstate(), torch.get_rng_state()
    words = _seed_words(seed, _SAMPLE_STREAM, position)
    try:
        np.random.seed(words)
        random.seed(words.tobytes())
        torch.default_generator.manual_seed(random.getrandbits(63))
        yield
    finally:
        np.random.set_state(saved[0])
        random.setstate(saved[1])
        torch.set_rng_state(saved[2])


def _seed_words(seed: int, stream: int, number: int) -> np.ndarray:
    """Return (5,) uint32, different for different arguments below 2**64."""
    low = 0xFFFFFFFF
    words = (seed & low, seed >> 32, stream, number & low, number >> 32)
    return np.array(words, dtype=np.uint32)
