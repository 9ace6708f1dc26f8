"""Pieces of work in threads give what they give one after the other."""

import os

import pytest
import torch
import torch.nn.functional as F

from offseg_d2.layers import bilinear, interpolated_argmax
from offseg_d2.layers.threads import for_each
from tests.common import seed_all


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_each_piece_is_worked_on_once_with_one_thread_inside(threads, count):
    done = [[] for _ in range(count)]
    for_each(lambda i: done[i].append(torch.get_num_threads()), range(count))
    assert done == [[1 if count > 1 else threads]] * count
    assert torch.get_num_threads() == threads


def test_the_modes_of_the_caller_hold_in_the_threads(threads):
    seen = []

    def look(_):
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    for_each(look, range(4))
    with torch.no_grad():
        for_each(look, range(4))
    with torch.inference_mode():
        for_each(look, range(4))
    assert seen == [(False, True)] * 4 + [(False, False)] * 4 + [(True, False)] * 4


def test_errors_come_back(threads):
    def fail(_):
        raise ValueError("this piece is wrong")

    with pytest.raises(ValueError, match="this piece is wrong"):
        for_each(fail, range(4))


def test_label_maps_do_not_depend_on_the_number_of_threads(threads):
    seed_all()
    scores = torch.randn(9, 30, 41)
    size = (121, 97)
    rows, columns = (
        bilinear(before, after, dtype=torch.float32, device=scores.device)
        for before, after in zip(scores.shape[1:], size, strict=True)
    )
    expected = F.interpolate(scores[None], size=size, mode="bilinear")[0].argmax(0)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            labels = interpolated_argmax(scores, rows, columns)
        assert (labels == expected).double().mean() > 0.9999


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_makes_its_own_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for_each(lambda _: None, range(4))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                done = []
                for_each(done.append, range(4))
                code = 0 if done == [0, 1, 2, 3] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)
