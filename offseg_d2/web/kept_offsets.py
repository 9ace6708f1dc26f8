"""Bounds the memory that the offsets of all visitors' images take.

The terms of an image at stride 4 are hundreds of values a pixel: a gigabyte for 16 megapixels.
They can be computed again, so only those looked at last are kept.
"""

import threading
import weakref
from dataclasses import dataclass

from offseg_d2.offset_figure import TracedImage
from offseg_d2.offset_trace import OffsetTrace

KEPT_BYTES = 1 << 30


@dataclass
class Offsets:
    """Where the offsets of one image are kept.

    Attributes:
        traced: them; None if they have not been computed, or were dropped.
    """

    traced: TracedImage | None = None


def trace_bytes(trace: OffsetTrace) -> int:
    """Bytes of a trace of N pixels, C channels, K classes when all of its terms are computed.

    Those are the pixels before and after, and their similarity: N (2 C + K) values.
    """
    pixels, channels = trace.pixel_features.shape
    values = pixels * (2 * channels + len(trace.representations))
    return values * trace.pixel_features.element_size()


class KeptOffsets:
    """Remembers which offsets were looked at last, and drops the others.

    Args:
        max_bytes: of all that are kept; the last ones are kept whatever their size.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._places: list[weakref.ref[Offsets]] = []  # the least recently used first

    def used(self, place: Offsets) -> None:
        """Its offsets have just been looked at; drops those of others if there are too many."""
        with self._lock:
            others = [ref for ref in self._places if ref() is not None and ref() is not place]
            self._places = [*others, weakref.ref(place)]
            sizes = [_size(ref()) for ref in self._places]
            excess = sum(sizes) - self._max_bytes
            for ref, size in zip(others, sizes, strict=False):
                other = ref()
                if excess <= 0:
                    break
                if other is not None:
                    other.traced = None
                excess -= size


def _size(place: Offsets | None) -> int:
    traced = None if place is None else place.traced
    return 0 if traced is None else trace_bytes(traced.trace)
