from itertools import islice

import pytest
import torch
from detectron2.structures import Instances

from offseg_d2.data import DataFileError, build_train_loader
from offseg_d2.data.batches import CollatedBatch, collate, one_ahead
from offseg_d2.data.dataset_mapper import class_instances
from offseg_d2.data.loader import SampleLoader, UnusableSample
from tests.data.common import camvid_cfg, write_camvid


def sample(height=4, width=6, **others):
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "sem_seg": image[0] % 3, "file_name": f"{height}", **others}


def test_tensors_of_one_size_lie_in_one_tensor_and_samples_hold_views_of_it():
    samples = [sample(), sample(), sample()]
    batch = collate(samples)
    assert batch.stacked["image"].shape == (3, 3, 4, 6)
    assert batch.stacked["sem_seg"].shape == (3, 4, 6)
    assert {value.dtype for value in batch.stacked.values()} == {torch.uint8}
    for index, (before, after) in enumerate(zip(samples, batch.as_samples(), strict=True)):
        assert before.keys() == after.keys() and before["file_name"] == after["file_name"]
        for key, whole in batch.stacked.items():
            assert torch.equal(before[key], after[key])
            assert after[key].data_ptr() == whole[index].data_ptr()


def test_samples_of_different_sizes_come_out_as_they_are():
    samples = [sample(4, 6), sample(5, 3), sample(2, 6)]
    batch = collate(samples)
    assert batch.stacked["image"].shape == (3, 3, 5, 6)
    assert batch.stacked["sem_seg"].shape == (3, 5, 6)
    for before, after in zip(samples, batch.as_samples(), strict=True):
        assert torch.equal(before["image"], after["image"])
        assert torch.equal(before["sem_seg"], after["sem_seg"])


def test_samples_without_labels():
    samples = [{"image": torch.zeros(3, 4, 6), "height": 8}]
    batch = collate(samples)
    assert batch.stacked.keys() == {"image"}
    (after,) = batch.as_samples()
    assert after.keys() == samples[0].keys() and after["height"] == 8
    assert after["image"].data_ptr() == samples[0]["image"].data_ptr()  # no copy of a single one


def test_what_stands_for_a_bad_file_passes():
    batch = collate([sample(), UnusableSample("no such file")])
    assert batch.stacked == {} and batch.samples[1].reason == "no such file"
    assert batch.map(torch.clone).samples[1].reason == "no such file"


@pytest.mark.parametrize("heights", [(4, 4), (4, 5)])
def test_all_tensors_are_pinned(heights, monkeypatch):
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    samples = [sample(height) for height in heights]
    for one in samples:
        one["instances"] = class_instances(one["sem_seg"])
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collate(samples).pin_memory()
    storages = {tensor.untyped_storage().data_ptr() for tensor in pinned}
    for before, after in zip(samples, batch.as_samples(), strict=True):
        instances = after["instances"]
        assert isinstance(instances, Instances)
        assert torch.equal(instances.gt_masks, before["instances"].gt_masks)
        tensors = after["image"], after["sem_seg"], instances.gt_masks, instances.gt_classes
        assert {tensor.untyped_storage().data_ptr() for tensor in tensors} <= storages
    assert len(pinned) == 2 + 2 * 2


def test_items_are_fetched_one_ahead_in_their_order():
    events = []

    def items():
        for number in range(4):
            events.append(f"fetch {number}")
            yield number

    for number in one_ahead(items()):
        events.append(f"use {number}")
    order = ["fetch 0", "fetch 1", "use 0", "fetch 2", "use 1", "fetch 3", "use 2", "use 3"]
    assert events == order
    assert list(one_ahead(iter([]))) == []


@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_error_is_raised_when_its_item_is_due(number):
    def items():
        yield from range(number)
        raise OSError("no such file")

    ahead = one_ahead(items())
    assert list(islice(ahead, number)) == list(range(number))
    with pytest.raises(OSError, match="no such file"):
        next(ahead)


def test_a_bad_file_stops_at_its_batch_not_before():
    good, bad = collate([sample()]), CollatedBatch([UnusableSample("bad.png")])
    loader = iter(SampleLoader([good, good, bad]))
    assert [len(next(loader)), len(next(loader))] == [1, 1]
    with pytest.raises(DataFileError, match=r"bad\.png"):
        next(loader)


def test_a_batch_of_the_training_loader_is_one_tensor(tmp_path, monkeypatch):
    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for workers in (0, 2):
        batch = next(iter(build_train_loader(camvid_cfg(workers))))
        assert len({s["image"].shape for s in batch}) > 1  # cut off of it
        for key in ("image", "sem_seg"):
            assert len({s[key].untyped_storage().data_ptr() for s in batch}) == 1


@pytest.mark.parametrize("on_device", [False, True])
def test_a_resumed_loader_goes_on_where_training_was_not_where_fetching_was(
    tmp_path, monkeypatch, on_device
):
    def ahead(batches, device, prepare):  # the order of the way to CUDA, without the way
        return one_ahead(map(prepare, batches))

    write_camvid(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr("offseg_d2.data.loader.on_cuda", ahead)
    cfg = camvid_cfg()
    cfg.INPUT.AUGMENT_ON_DEVICE = on_device
    plain = list(islice(build_train_loader(cfg), 4))
    before, after = build_train_loader(cfg), build_train_loader(cfg, 2)
    before.device = after.device = torch.device("cuda")
    found = [*islice(before, 2), *islice(after, 2)]
    for expected, batch in zip(plain, found, strict=True):
        for one, other in zip(expected, batch, strict=True):
            assert one["file_name"] == other["file_name"]
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["sem_seg"], other["sem_seg"])
