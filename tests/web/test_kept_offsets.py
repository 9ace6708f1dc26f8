"""Offsets of visitors' images: those looked at last stay, whatever else is asked for."""

import gc
import weakref

import pytest
import torch

from offseg_d2.modeling.offset_learning import OffsetLearning
from offseg_d2.offset_figure import TracedImage
from offseg_d2.offset_trace import OffsetTrace
from offseg_d2.web.actions import Actions, Choices
from offseg_d2.web.kept_offsets import KeptOffsets, Offsets, trace_bytes
from offseg_d2.web.offset_maps import FEATURE_OFFSET, SIMILARITY
from offseg_d2.web.pictures import OFFSETS
from tests.web.common import drawn, workbench, write_drawn

SIZE = 4 * 20 * (2 * 8 + 3)  # bytes of float32, 20 pixels, 8 channels, 3 classes


def offsets() -> Offsets:
    pixels, classes = torch.zeros(20, 8), torch.zeros(3, 8)
    learning = OffsetLearning(8).requires_grad_(False)
    trace = OffsetTrace(pixels, classes, learning, None, (4, 5), (16, 20), (16, 20))
    return Offsets(TracedImage(drawn(16, 20), trace))


def kept(places: list[Offsets]) -> list[bool]:
    return [place.traced is not None for place in places]


def test_bytes_are_those_of_all_terms():
    trace = offsets().traced.trace
    terms = (trace.pixel_features, trace.aligned_pixels, trace.coupled_similarity)
    assert trace_bytes(trace) == sum(x.numel() * x.element_size() for x in terms) == SIZE


def test_those_looked_at_last_are_kept():
    keeper, places = KeptOffsets(2 * SIZE), [offsets() for _ in range(3)]
    keeper.used(places[0])
    keeper.used(places[1])
    assert kept(places[:2]) == [True, True]
    keeper.used(places[0])  # again
    keeper.used(places[2])
    assert kept(places) == [True, False, True]


def test_the_last_ones_are_kept_whatever_their_size():
    keeper, places = KeptOffsets(1), [offsets(), offsets()]
    for place in places:
        keeper.used(place)
    assert kept(places) == [False, True]


def test_images_of_visitors_who_left_are_neither_counted_nor_held():
    keeper, stays, leaves = KeptOffsets(2 * SIZE), offsets(), offsets()
    keeper.used(stays)
    keeper.used(leaves)
    gone = weakref.ref(leaves)
    del leaves
    gc.collect()
    assert gone() is None
    last = offsets()
    keeper.used(last)
    assert kept([stays, last]) == [True, True]


@pytest.fixture
def actions(offset_checkpoint) -> Actions:
    return Actions(workbench(offset_checkpoint))


def test_dropped_offsets_are_computed_again_and_are_the_same(actions, tmp_path):
    image = str(write_drawn(tmp_path / "scene.png"))
    first, second = (actions.analyse((image, "scene"))[0] for _ in range(2))

    def look(session, kind: str = SIMILARITY) -> bytes:
        drawing = actions.draw(session, None, Choices(view=OFFSETS, offset_map=kind))
        return drawing.pictures[0].pixels.tobytes()

    before = look(first)
    runs = actions.workbench.runs
    look(second)
    look(first, FEATURE_OFFSET)
    assert actions.workbench.runs == runs + 1  # both are kept
    actions.workbench.kept_offsets._max_bytes = 1
    look(second)
    assert first.results[0].offsets.traced is None
    assert look(first) == before
    assert actions.workbench.runs == runs + 2
