"""Sums of counts over images that count each image once, however often it is delivered.

Samplers that give every process equally many images repeat some of them. Detectron2's and this
project's samplers for tests do not, but others do, and a repeated image would shift every score.
"""

import numpy as np
from detectron2.utils import comm


class Tally:
    """Adds up vectors of counts of images, which their names identify.

    Args:
        size: length of the vectors.
        distributed: whether :meth:`total` is over all processes.

    Attributes:
        counts: (size,) int64, sum over the images of this process.
        num_repeated: deliveries on this process that were not counted again.
    """

    def __init__(self, size: int, distributed: bool) -> None:
        self.counts = np.zeros(size, dtype=np.int64)
        self.distributed = distributed
        self.num_repeated = 0
        # Of each image the places and values that are not zero (some hundred bytes), for the case
        # that another process counts it too. The order of the names is that of the images.
        self._counts_of: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}

    def __len__(self) -> int:
        return len(self._counts_of)

    def is_new(self, name: str) -> bool:
        """Whether the image is still to be counted; if not, this counts as one repetition."""
        new = name not in self._counts_of
        self.num_repeated += not new
        return new

    def add(self, name: str, counts: np.ndarray) -> None:
        """Add the (size,) counts of a new image."""
        assert name not in self._counts_of, name
        self.counts += counts
        self._counts_of[name] = None
        if self.distributed and comm.get_world_size() > 1:
            places = np.flatnonzero(counts)
            # 32-bit numbers: an image has fewer than four thousand million pixels.
            values = counts[places].astype(np.uint32)
            self._counts_of[name] = places.astype(np.uint32), values

    def total(self) -> tuple[np.ndarray, int, int]:
        """Sum over all images, to be called on all processes.

        Returns:
            on the main process the (size,) counts of all images, the number of images, and that of
            repetitions that were left out; on the others what they have themselves.
        """
        if not self.distributed or comm.get_world_size() == 1:
            return self.counts, len(self), self.num_repeated
        names = comm.all_gather(list(self._counts_of))
        repeated = self._names_before(names, comm.get_rank())
        counts = self.counts.copy()
        for name in repeated:
            places, values = self._counts_of[name]
            counts[places] -= values
        own = (counts, len(self) - len(repeated), self.num_repeated + len(repeated))
        gathered = comm.gather(own)
        if not gathered:  # not the main process
            return own
        all_counts, numbers, repetitions = zip(*gathered, strict=True)
        return np.sum(all_counts, axis=0), sum(numbers), sum(repetitions)

    def _names_before(self, names: list[list[str]], rank: int) -> list[str]:
        """Images of this process that one of lower rank has counted as well."""
        earlier = set().union(*names[:rank])
        return [name for name in self._counts_of if name in earlier]
