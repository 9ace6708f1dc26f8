"""Offsets of visitors' images: those looked at last stay, whatever else is asked for."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

from offseg_d2.modeling.offset_learning import OffsetLearning
from offseg_d2.visualization.offset_trace import OffsetTrace
from offseg_d2.web.actions import Actions, Choices
from offseg_d2.web.kept_offsets import KeptOffsets, Offsets, trace_bytes
from offseg_d2.web.offset_maps import FEATURE_OFFSET, SIMILARITY
from offseg_d2.web.pictures import OFFSETS
from offseg_d2.web.workbench import Session
from tests.web.common import drawn, workbench

SIZE = 4 * 20 * (2 * 8 + 3)  # bytes of float32, 20 pixels, 8 channels, 3 classes


def trace(feature_offset: bool = True) -> OffsetTrace:
    pixels, classes = torch.zeros(20, 8), torch.zeros(3, 8)
    learning = OffsetLearning(8, feature_offset=feature_offset).requires_grad_(False)
    return OffsetTrace(pixels, classes, learning, None, (4, 5), (16, 20), (16, 20))


def offsets(models: int = 1) -> Offsets:
    return Offsets({index: trace() for index in range(models)})


def kept(images: list[Offsets]) -> list[bool]:
    return [bool(image.traces) for image in images]


@pytest.mark.parametrize(("feature_offset", "size"), [(True, SIZE), (False, SIZE - 4 * 20 * 8)])
def test_bytes_are_those_of_all_terms(feature_offset, size):
    one = trace(feature_offset)
    terms = (one.pixel_features, one.aligned_pixels, one.coupled_similarity)
    storages = {x.data_ptr(): x.numel() * x.element_size() for x in terms}
    assert trace_bytes(one) == sum(storages.values()) == size


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


def test_all_models_of_the_last_image_are_kept_and_counted():
    keeper, before, last = KeptOffsets(2 * SIZE), offsets(), offsets(models=2)
    keeper.used(before)
    keeper.used(last)
    assert kept([before, last]) == [False, True] and len(last.traces) == 2


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


def look(actions: Actions, session: Session, kind: str = SIMILARITY) -> list[bytes]:
    drawing = actions.draw(session, None, Choices(view=OFFSETS, offset_map=kind))
    return [picture.pixels.tobytes() for picture in drawing.pictures]


def sessions(actions: Actions, folder: Path) -> list[Session]:
    """Of two images."""
    images = drawn(48, 64), drawn(48, 64)[::-1]
    paths = [str(folder / f"{number}.png") for number in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return [actions.analyse((path, "scene"))[0] for path in paths]


def test_dropped_offsets_are_computed_again_and_are_the_same(actions, tmp_path):
    first, second = sessions(actions, tmp_path)
    before, others = look(actions, first), look(actions, second)
    assert before != others
    runs = actions.workbench.runs
    look(actions, first, FEATURE_OFFSET)
    assert actions.workbench.runs == runs  # both are kept
    actions.workbench.kept_offsets._max_bytes = 1
    assert look(actions, second) == others
    assert not first.offsets.traces
    assert look(actions, first) == before
    assert actions.workbench.runs == runs + 1


def test_models_that_are_compared_run_once_however_large_their_offsets(offset_checkpoint, tmp_path):
    actions = Actions(workbench(offset_checkpoint, offset_checkpoint))
    actions.workbench.kept_offsets._max_bytes = 1
    session, _ = sessions(actions, tmp_path)
    runs = actions.workbench.runs
    for kind in (SIMILARITY, FEATURE_OFFSET):
        assert len(look(actions, session, kind)) == 3
    assert actions.workbench.runs == runs + 2
