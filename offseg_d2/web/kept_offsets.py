"""Bounds the memory that the offsets of all visitors' images take.

Their terms are hundreds of values for each pixel of the features: at 256 channels and stride 4 some
130 bytes for each pixel that the network sees. They can be computed again, so only those looked at
last are kept.
"""

import threading
import weakref
from dataclasses import dataclass, field

from offseg_d2.visualization.offset_trace import OffsetTrace

KEPT_BYTES = 1 << 30


@dataclass(eq=False)  # an image is itself alone, whatever another one shows
class Offsets:
    """What the offsets of each model do to one image.

    Attributes:
        traces: number of the model -> its trace; none if it has not been computed or was dropped.
    """

    traces: dict[int, OffsetTrace] = field(default_factory=dict)


def trace_bytes(trace: OffsetTrace) -> int:
    """Bytes of a trace of N pixels, C channels, K classes when all of its terms are computed.

    Those are the similarity, the pixels before, and if there is a feature offset, those after:
    N (K + C) or N (K + 2 C) values.
    """
    pixels, channels = trace.pixel_features.shape
    maps = 1 if trace.offset_learning.feature_offset_proj is None else 2
    values = pixels * (maps * channels + len(trace.representations))
    return values * trace.pixel_features.element_size()


class KeptOffsets:
    """Remembers which images' offsets were looked at last, and drops those of others.

    Args:
        max_bytes: of all that are kept once a look is over; those of the last image are kept
            whatever their size, or comparing two models would compute them again at every look.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._images: list[weakref.ref[Offsets]] = []  # the least recently used first

    def used(self, image: Offsets) -> None:
        """Its offsets have just been looked at; drops those of others if there are too many."""
        with self._lock:
            others = [other for ref in self._images if (other := ref()) not in (None, image)]
            self._images = [weakref.ref(offsets) for offsets in (*others, image)]
            excess = sum(map(_size, (*others, image))) - self._max_bytes
            for other in others:
                if excess <= 0:
                    break
                excess -= _size(other)
                other.traces.clear()


def _size(image: Offsets) -> int:
    return sum(map(trace_bytes, list(image.traces.values())))
