"""Keys that say how the values of image files become colours."""

import functools
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode

from offseg_d2.config import ConfigError

MAX_PIXELS = 1 << 30  # OpenCV's limit, which holds for what Pillow reads as well
_MAX_VALUE = 65535  # of 16 bits
_USUAL_BITS = (8, 10, 12, 14)  # of sensors whose values are stored in 16


class ImageSettings(NamedTuple):
    """How the values of image files become 8-bit colours.

    Attributes:
        max_value: value of 16-bit images that becomes 255, ``INPUT.MAX_VALUE_16_BIT``.
        bands: numbers, from 1, of the bands of TIFF files that are red, green and blue,
            ``INPUT.BANDS``; empty for the first three of at most four.
        max_pixels: larger images are refused before they are decoded.
    """

    max_value: int = _MAX_VALUE
    bands: tuple[int, ...] = ()
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "ImageSettings":
        """Read the keys.

        Raises:
            ConfigError: one of them cannot be used.
        """
        value, bands = cfg.INPUT.MAX_VALUE_16_BIT, cfg.INPUT.BANDS
        if not 255 <= value <= _MAX_VALUE:
            raise ConfigError(
                f"`INPUT.MAX_VALUE_16_BIT` must be in 255..{_MAX_VALUE}, but is {value}."
            )
        numbers = [band for band in bands if type(band) is int and band > 0]
        if len(bands) not in (0, 3) or len(numbers) != len(bands):
            raise ConfigError(
                "`INPUT.BANDS` must be empty or the numbers, from 1, of the bands that are red, "
                f"green and blue, but is {list(bands)}."
            )
        return cls(value, tuple(bands))

    def to_bytes(self, values: np.ndarray) -> np.ndarray:
        """16-bit values of any shape -> uint8; the upper 8 bits unless ``max_value`` is smaller."""
        return _byte_table(self.max_value)[values]

    def range_warning(self, what: str, low: int, high: int) -> str | None:
        """Say that 16-bit values do not fit ``max_value``; None if they do.

        Args:
            what: that holds the values.
            low: smallest value.
            high: largest one.
        """
        found = f"{what} holds 16-bit values of {low} to {high}"
        if high > self.max_value:
            return (
                f"{found}: those above {self.max_value}, which is `INPUT.MAX_VALUE_16_BIT`, "
                "become white."
            )
        bits = next((bits for bits in _USUAL_BITS if high < 2**bits), None)
        if self.max_value < _MAX_VALUE or not high or bits is None:
            return None
        return (
            f"{found}, which become nearly black; `INPUT.MAX_VALUE_16_BIT` names the value that "
            f"is white, such as {2**bits - 1} for {bits} bits, and is {self.max_value}."
        )


DEFAULT_SETTINGS = ImageSettings()


@functools.cache
def _byte_table(max_value: int) -> np.ndarray:
    """(65536,) uint8: of each 16-bit value the byte; for 65535 its upper 8 bits."""
    return np.minimum(np.arange(_MAX_VALUE + 1) * 256 // (max_value + 1), 255).astype(np.uint8)
