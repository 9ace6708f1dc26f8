"""Batches between the workers of a loader and the device: few large tensors instead of many.

Samples are dictionaries, as Detectron2's models take them. On their way the images of a batch lie
in one tensor, padded where they are of different sizes, and so do the label maps: each is shared
between processes, pinned and copied as a whole. The samples that come out of it hold views.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor
from torch.utils.data import default_collate

Sample = dict[str, Any]
T = TypeVar("T")

# Row of random numbers of a sample, see :mod:`.device_augmentation`.
DRAWS = "draws"
_MAPS = ("image", "sem_seg")


@dataclass
class CollatedBatch:
    """Samples of a batch.

    Attributes:
        samples: without the entries that are in ``stacked``; also what stands for bad ones.
        stacked: "image" (B, 3, H, W) and "sem_seg" (B, H, W), zero-padded to the right and bottom;
            "draws" (B, N).
        sizes: height and width of each sample.
    """

    samples: list[Any]
    stacked: dict[str, Tensor] = field(default_factory=dict)
    sizes: list[torch.Size] = field(default_factory=list)

    def map(self, function: Callable[[Tensor], Tensor]) -> "CollatedBatch":
        """The batch with a function applied to all its tensors."""
        samples = [
            {key: _map(value, function) for key, value in sample.items()}
            if isinstance(sample, dict)
            else sample
            for sample in self.samples
        ]
        stacked = {key: function(value) for key, value in self.stacked.items()}
        return CollatedBatch(samples, stacked, self.sizes)

    def pin_memory(self) -> "CollatedBatch":
        """Called by PyTorch's loader."""
        return self.map(Tensor.pin_memory)

    def as_samples(self) -> list[Sample]:
        """Whole samples, with views of the stacked tensors."""
        samples = [dict(sample) for sample in self.samples]
        for key, whole in self.stacked.items():
            for sample, value, size in zip(samples, whole, self.sizes, strict=True):
                sample[key] = value[..., : size[0], : size[1]] if key in _MAPS else value
        return samples


def collate(samples: list[Any]) -> CollatedBatch:
    """Stack what :class:`CollatedBatch` names; batches with what is no dictionary stay."""
    if not all(isinstance(sample, dict) for sample in samples):
        return CollatedBatch(samples)
    sizes = [sample["image"].shape[-2:] for sample in samples]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    stacked: dict[str, Tensor] = {}
    for key in (*_MAPS, DRAWS):
        values = [sample[key] for sample in samples if key in sample]
        if len(values) < len(samples):
            continue
        if key in _MAPS:
            values = [_padded(value, height, width) for value in values]
        # In a worker PyTorch stacks right into memory that is shared.
        stacked[key] = default_collate(values) if len(values) > 1 else values[0][None]
    others = [{k: v for k, v in sample.items() if k not in stacked} for sample in samples]
    return CollatedBatch(others, stacked, sizes)


def _padded(values: Tensor, height: int, width: int) -> Tensor:
    right, bottom = width - values.shape[-1], height - values.shape[-2]
    return F.pad(values, (0, right, 0, bottom)) if right or bottom else values


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Fetch each item before the one in front of it is handed over.

    An error is raised where its item is due, not before.
    """
    waiting: list[T] = []
    try:
        for item in items:
            yield from waiting
            waiting = [item]
    except Exception:
        yield from waiting
        raise
    yield from waiting


def on_cuda(
    batches: Iterator[CollatedBatch],
    device: torch.device,
    prepare: Callable[[CollatedBatch], CollatedBatch],
) -> Iterator[CollatedBatch]:
    """Copy batches to a CUDA device, one ahead, without waiting for it.

    Copies and ``prepare`` run on a stream of their own, beside the computation on the batch before.

    Args:
        batches: in pinned memory.
        device: the process' own.
        prepare: what is to be done with a batch on the device.
    """
    stream = torch.cuda.Stream(device)

    def copied() -> Iterator[tuple[CollatedBatch, torch.cuda.Event]]:
        for batch in batches:
            with torch.cuda.stream(stream):
                moved = prepare(batch.map(lambda tensor: tensor.to(device, non_blocking=True)))
            yield moved, stream.record_event()

    for batch, is_there in one_ahead(copied()):
        current = torch.cuda.current_stream(device)
        current.wait_event(is_there)

        def used_by_both(tensor: Tensor, current: torch.cuda.Stream = current) -> Tensor:
            tensor.record_stream(current)  # its memory is not given away before `current` is done
            return tensor

        yield batch.map(used_by_both)


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Instances):
        fields = {key: _map(entry, function) for key, entry in value.get_fields().items()}
        return Instances(value.image_size, **fields)
    return value
