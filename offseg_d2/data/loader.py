"""Iteration over a ``DataLoader``: bad files, classes that do not occur, the way to the device."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from .batches import CollatedBatch, Sample, on_cuda
from .device_augmentation import DeviceAugmentation
from .image_io import DataFileError, ImageReader
from .label_map import count_ids

logger = logging.getLogger(__name__)

_HOST = torch.device("cpu")


class UnusableSample(NamedTuple):
    """Stands in a batch for a sample whose file cannot be used."""

    reason: str


class SampleLoader:
    """A ``DataLoader`` of lists of samples that reports a bad file in one sentence.

    PyTorch would wrap an error of a worker process into its stack of calls; here the worker hands
    over the message in the sample's place and the main process raises it.

    Args:
        loader: of collated batches.
        device: where the tensors of samples are to be; copies to CUDA are made one batch ahead.
        augmentation: what is left to be done there, if anything.
        occurrence: looks at the label maps, if given.
    """

    def __init__(
        self,
        loader: DataLoader,
        *,
        device: torch.device = _HOST,
        augmentation: DeviceAugmentation | None = None,
        occurrence: "ClassOccurrence | None" = None,
    ) -> None:
        self.loader, self.device = loader, device
        self.augmentation, self.occurrence = augmentation, occurrence
        self._warn = ImageReader().warn  # once, here: workers would each warn

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield lists of what the mapper returns, augmented.

        Raises:
            DataFileError: a file of the batch that is due cannot be used; names the file.
        """
        batches: Iterator[CollatedBatch] = map(self._checked, self.loader)
        if self.device.type == "cuda":
            batches = on_cuda(batches, self.device, self._augmented)
        else:
            batches = map(self._augmented, batches)
        for batch in batches:
            yield batch.as_samples()

    def _checked(self, batch: CollatedBatch) -> CollatedBatch:
        for sample in batch.samples:
            if isinstance(sample, UnusableSample):
                raise DataFileError(sample.reason)
            self._warn(sample.pop("warning", None))
        if self.occurrence is not None:
            for sample in batch.as_samples():
                self.occurrence.add(sample["sem_seg"].numpy())
        return batch

    def _augmented(self, batch: CollatedBatch) -> CollatedBatch:
        return self.augmentation(batch) if self.augmentation is not None else batch


class ClassOccurrence:
    """Warns once of classes that training has not seen in its first label maps.

    Args:
        names: of the classes.
        number: label maps after which it warns; then nothing is counted any more.
    """

    def __init__(self, names: Sequence[str], number: int) -> None:
        self.names, self.number = names, number
        self._counts = np.zeros(256, dtype=np.int64)

    def add(self, labels: np.ndarray) -> None:
        """Count the train ids (H, W) of one label map."""
        if self.number <= 0:
            return
        self._counts += count_ids(labels)
        self.number -= 1
        if self.number == 0:
            self._warn()

    def _warn(self) -> None:
        absent = [name for index, name in enumerate(self.names) if not self._counts[index]]
        if len(absent) == len(self.names):
            logger.warning(
                "All pixels of the label maps so far are ignored: nothing is learned. Does the "
                "label map fit the files?"
            )
        elif absent:
            logger.warning("Classes that have not occurred in training: %s.", ", ".join(absent))
