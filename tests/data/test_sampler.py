import itertools
import random

import numpy as np
import pytest
import torch

from offseg_d2.data import TrainingBatchSampler
from offseg_d2.data.sampler import epoch_permutation, sample_rng


def take(count, *args, **kwargs):
    return list(itertools.islice(TrainingBatchSampler(*args, **kwargs), count))


def test_each_epoch_is_a_permutation_and_epochs_differ():
    samples = list(itertools.chain.from_iterable(take(30, 10, 2, seed=1)))
    assert [position for position, _ in samples] == list(range(60))
    epochs = [[i for _, i in samples[k : k + 10]] for k in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_order_depends_on_the_seed_and_is_frozen():
    assert epoch_permutation(6, 1, 0).tolist() == epoch_permutation(6, 1, 0).tolist()
    orders = {tuple(epoch_permutation(20, seed, 0)) for seed in (0, 1, 2**32, 2**32 + 1)}
    assert len(orders) == 4
    # Golden: a change would make resumed runs see other images.
    assert epoch_permutation(8, 42, 3).tolist() == [2, 4, 7, 3, 5, 1, 0, 6]


def test_ranks_together_see_what_one_process_sees():
    alone = take(12, 7, 4, seed=5)
    for world_size in (2, 4):
        shares = [
            take(12, 7, 4, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        assert [
            list(itertools.chain.from_iterable(parts)) for parts in zip(*shares, strict=True)
        ] == alone


def test_resumed_sampler_continues_exactly():
    assert take(20, 7, 3, seed=5)[8:] == take(12, 7, 3, seed=5, start_batch=8)


def test_batch_larger_than_the_dataset_spans_epochs():
    (batch,) = take(1, 3, 7, seed=0)
    assert sorted(index for _, index in batch[:3]) == [0, 1, 2]
    assert sorted(index for _, index in batch[3:6]) == [0, 1, 2]


def test_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH` must be .* \(4\), but is 6"):
        TrainingBatchSampler(10, 6, seed=0, world_size=4)
    with pytest.raises(ValueError, match="but are -1 and 0"):
        TrainingBatchSampler(10, 6, seed=-1)
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        TrainingBatchSampler(0, 6, seed=0)


def draw():
    return np.random.rand(), random.random(), torch.rand(1).item()


def test_random_numbers_of_a_sample_depend_on_seed_and_position_alone():
    def of(seed, position):
        with sample_rng(seed, position):
            return draw()

    first = of(3, 10)
    draw()
    assert of(3, 10) == first
    others = [of(3, 11), of(4, 10), of(10, 3), of(3, 10 + 2**32)]
    for kind in range(3):
        assert len({first[kind], *(o[kind] for o in others)}) == 5


def test_random_numbers_outside_go_on_as_if_no_sample_had_been_drawn():
    def seed_all():
        np.random.seed(1)
        random.seed(1)
        torch.manual_seed(1)

    seed_all()
    expected = draw()
    seed_all()
    with pytest.raises(RuntimeError), sample_rng(0, 0):
        draw()
        raise RuntimeError
    assert draw() == expected
