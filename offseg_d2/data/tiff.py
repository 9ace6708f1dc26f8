"""Bands of TIFF files: the first three are the colours, whatever the others are said to be.

libtiff, by which OpenCV decodes, multiplies the colours by a fourth band that is tagged as alpha.
Common writers tag any fourth band so (near infrared, height). OpenCV reads no file of more than
four bands; :meth:`TiffFile.read_bands` does: it gives the same data another directory, in which
they are a wide grey image.
Tags and types are those of the TIFF 6.0 specification (Adobe, 1992).
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 277, 278, 279
_ORIENTATION, _PLANAR, _PREDICTOR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 274, 284, 317, 338, 339
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
_KEPT = (
    *(_HEIGHT, _COMPRESSION, 266, _STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_SIZES, _PREDICTOR),
    *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_SIZES),
)
_PER_BAND = (_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES)
_FORMS = {1: "whole numbers", 2: "numbers with a sign", 3: "fractions"}  # of SampleFormat
_UNSPECIFIED = 0  # of the values of ExtraSamples: a band that is no alpha
_MIN_IS_BLACK, _RGB = 1, 2  # of the values of PhotometricInterpretation
_COLOR_SPACES = {8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*"}  # which OpenCV takes for RGB
_SEPARATE = 2  # of the values of PlanarConfiguration
_DIFFERENCES = 2  # of the values of Predictor
_TYPES = {3: "H", 4: "I", 16: "Q"}  # of those that are needed here
# Magic number -> byte order, is it a BigTIFF.
_MAGIC = {
    b"II*\0": ("<", False),
    b"MM\0*": (">", False),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}


class _Entry(NamedTuple):
    """Of a directory; its values lie at ``offset`` of the file, whole numbers of ``form``."""

    form: str
    count: int
    offset: int


class BandsError(ValueError):
    """Bands of a file cannot be read; the message continues a sentence about the file."""


class TiffFile:
    """The first image of a TIFF file.

    Args:
        content: of the file.

    Attributes:
        bands: number of them; 0 of another file and of one with a damaged directory, which are
            left to the decoder.
        width: in pixels.
        height: in pixels.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.bands, self.width, self.height = content, 0, 0, 0
        self._order, self._is_big = _MAGIC.get(content[:4], ("", False))
        if not self._order:
            return
        try:
            self._entries = self._directory()
            self.width, self.height = self._first(_WIDTH), self._first(_HEIGHT)
            self.bands = self._first(_SAMPLES_PER_PIXEL, 1)
        except (struct.error, OverflowError, KeyError):  # beyond the end of the file, or absent
            self.bands = 0

    @property
    def unsupported(self) -> str:
        """What OpenCV does not decode, or decodes wrongly, of an otherwise good file; else ""."""
        if not self.bands:
            return ""
        try:
            space = _COLOR_SPACES.get(self._first(_PHOTOMETRIC, _MIN_IS_BLACK), "")
            bits, form = max(self._values(_BITS, (1,))), self._first(_SAMPLE_FORMAT, 1)
            if not space and self._has_wide_planes() and not self.has_wide_colors:
                space = "separate bands of 16 bits that are no RGB colours"
        except (struct.error, OverflowError):
            return ""
        return space or ("" if bits <= 16 and form == 1 else f"{bits}-bit {_FORMS.get(form, '')}")

    @property
    def has_wide_colors(self) -> bool:
        """True for RGB colours of 16 bits whose bands are stored one after another."""
        try:
            colors = self._has_wide_planes() and 3 <= self.bands <= 4
            return colors and self._first(_PHOTOMETRIC, 0) in (_MIN_IS_BLACK, _RGB)
        except (struct.error, OverflowError):
            return False

    def _has_wide_planes(self) -> bool:
        separate = self.bands > 1 and self._first(_PLANAR, 1) == _SEPARATE
        return separate and max(self._values(_BITS, (1,))) == 16

    def without_alpha(self) -> bytes:
        """The content, changed where it tags extra bands, so that none is taken for opacity."""
        extra = self._entries.get(_EXTRA_SAMPLES) if self.bands else None
        if extra is None or extra.form != "H":
            return self.content
        changed = bytearray(self.content)
        for index in range(min(extra.count, 4)):
            try:
                struct.pack_into(f"{self._order}H", changed, extra.offset + 2 * index, _UNSPECIFIED)
            except (struct.error, OverflowError):
                return self.content
        return bytes(changed)

    def read_bands(self, bands: Sequence[int]) -> np.ndarray:
        """Decode some bands.

        Args:
            bands: numbers of the bands, counted from 1.

        Returns:
            (H, W, len(bands)) uint8 or uint16 as they are stored.

        Raises:
            BandsError: the file lacks such a band, is damaged, or its kind is not supported.
        """
        if max(bands) > self.bands:
            raise BandsError(
                f"must have the bands {list(bands)} that `INPUT.BANDS` names, but has {self.bands}"
            )
        try:
            bits, sign = set(self._values(_BITS)), set(self._values(_SAMPLE_FORMAT, (1,)))
            turned = self._first(_ORIENTATION, 1)
            if len(bits) != 1 or not bits <= {8, 16} or sign != {1} or turned != 1:
                raise BandsError(
                    "must hold whole numbers of 8 or 16 bits without sign, upright, for "
                    "`INPUT.BANDS`, but does not"
                )
            if self._first(_PLANAR, 1) == _SEPARATE:
                planes = [self._plane(band - 1, *bits) for band in bands]
                return np.stack(planes, axis=-1)
            return self._interleaved(*bits)[..., [band - 1 for band in bands]]
        except (struct.error, OverflowError, KeyError, cv2.error):
            raise BandsError("must be complete, but its bands cannot be decoded") from None

    def _plane(self, index: int, bits: int) -> np.ndarray:
        """One of the bands that are stored one after another: (H, W)."""
        tags = {tag: self._values(tag) for tag in _KEPT if tag in self._entries}
        for tag in set(tags) & set(_PER_BAND):
            number = len(tags[tag]) // self.bands
            tags[tag] = tags[tag][index * number : (index + 1) * number]
        return self._decode_grey(tags | {_WIDTH: (self.width,)}, bits)

    def _interleaved(self, bits: int) -> np.ndarray:
        """Bands that are stored pixel by pixel: (H, W, bands)."""
        tags = {tag: self._values(tag) for tag in _KEPT if tag in self._entries}
        tags[_WIDTH] = (self.width * self.bands,)
        block = self.width
        if _TILE_WIDTH in tags:
            block = tags[_TILE_WIDTH][0]
            tags[_TILE_WIDTH] = (block * self.bands,)
        differences = tags.pop(_PREDICTOR, (1,)) == (_DIFFERENCES,)
        grey = self._decode_grey(tags, bits).reshape(self.height, self.width, self.bands)
        if differences:  # of the same band's pixels; in a grey image they would be of neighbours
            for left in range(0, self.width, block):
                part = grey[:, left : left + block]
                np.cumsum(part, axis=1, dtype=grey.dtype, out=part)
        return grey

    def _decode_grey(self, tags: dict[int, tuple[int, ...]], bits: int) -> np.ndarray:
        """Decode the file's data by another directory, of one grey band: (height, width)."""
        one = {_SAMPLES_PER_PIXEL: (1,), _BITS: (bits,), _PHOTOMETRIC: (_MIN_IS_BLACK,)}
        content = self._with_directory(tags | one)
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        wanted = (self.height, *tags[_WIDTH])
        if decoded is None or decoded.shape != wanted or decoded.itemsize != bits // 8:
            raise BandsError("must be complete, but its bands cannot be decoded")
        return decoded

    def _with_directory(self, tags: dict[int, tuple[int, ...]]) -> bytes:
        """The content with another directory at its end."""
        order, is_big = self._order, self._is_big
        content = self.content + b"\0" * (-len(self.content) % 8)
        start, word, kind, number = len(content), "Q" if is_big else "I", 16 if is_big else 4, 8
        head = struct.pack(f"{order}{'Q' if is_big else 'H'}", len(tags))
        size, place = (20, 8) if is_big else (12, number - 4)
        behind = start + len(head) + size * len(tags) + place
        table, values = b"", b""
        for tag, numbers in sorted(tags.items()):
            form = "H" if tag in (_SAMPLES_PER_PIXEL, _BITS, _PHOTOMETRIC) else word
            raw = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
            table += struct.pack(f"{order}HH{word}", tag, 3 if form == "H" else kind, len(numbers))
            if len(raw) <= place:
                table += raw.ljust(place, b"\0")
            else:
                table += struct.pack(f"{order}{word}", behind + len(values))
                values += raw
        at = 8 if is_big else 4
        pointer = struct.pack(f"{order}{word}", start)
        return b"".join(
            (content[:at], pointer, content[at + place :], head, table, b"\0" * place, values)
        )

    def _first(self, tag: int, default: Any = None) -> int:
        return self._values(tag, None if default is None else (default,))[0]

    def _values(self, tag: int, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        if tag not in self._entries and default is not None:
            return default
        form, count, offset = self._entries[tag]
        return struct.unpack_from(f"{self._order}{count}{form}", self.content, offset)

    def _directory(self) -> dict[int, _Entry]:
        order, content = self._order, self.content
        if self._is_big:
            start, number, size, form, place = 8, "Q", 20, "HHQQ", 8
        else:
            start, number, size, form, place = 4, "H", 12, "HHII", 4
        (directory,) = struct.unpack_from(f"{order}{form[-1]}", content, start)
        (length,) = struct.unpack_from(f"{order}{number}", content, directory)
        first = directory + struct.calcsize(f"{order}{number}")
        entries = {}
        for offset in range(first, first + length * size, size):
            tag, kind, count, value = struct.unpack_from(f"{order}{form}", content, offset)
            if kind in _TYPES:
                is_inline = struct.calcsize(f"<{_TYPES[kind]}") * count <= place
                at = offset + size - place if is_inline else value
                entries[tag] = _Entry(_TYPES[kind], count, at)
        return entries
