"""Frames of video files and cameras, read with OpenCV, written by PyAV if it is there.

Browsers play H.264, which OpenCV's wheels cannot write; PyAV's have an encoder.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any, Protocol

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager

from offseg_d2.data import DataFileError

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# Containers without an index only estimate their number of frames.
_ESTIMATE = 0.05
_DEFAULT_RATE = 25.0  # frames a second, where a source says nothing
_H264_ENCODERS = ("libx264", "libopenh264")


class BrokenOffError(DataFileError):
    """A video has fewer frames than it says; those that are there have been used."""


class VideoReader:
    """Frames of a file or a camera, one after another.

    Args:
        source: path of a video file, or number of a camera.

    Attributes:
        rate: frames a second.
        length: frames that the file says it has; 0 if it is not known.

    Raises:
        DataFileError: the file is missing or no video.
        ValueError: there is no such camera.
    """

    def __init__(self, source: str | int) -> None:
        self.source = source
        if isinstance(source, str):
            if not PathManager.isfile(source):
                raise DataFileError(f"Video file '{source}' does not exist.")
            self._capture = cv2.VideoCapture(PathManager.get_local_path(source))
        else:
            self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            if isinstance(source, str):
                raise DataFileError(f"Video file '{source}' cannot be decoded.")
            raise ValueError(f"`--webcam` must be the number of a camera, but is {source}.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else _DEFAULT_RATE
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 BGR frames, until the source ends.

        Raises:
            DataFileError: the file has no frame that can be decoded.
            BrokenOffError: it ends well before the length that it states.
        """
        number = 0
        with contextlib.closing(self):
            while True:
                there, frame = self._capture.read()
                if not there:
                    break
                number += 1
                yield frame
        if number == 0 and isinstance(self.source, str):
            raise DataFileError(f"Video file '{self.source}' has no frame that can be decoded.")
        if self.length - number > max(2, _ESTIMATE * self.length):
            raise BrokenOffError(
                f"{number} of {self.length} frames of video file '{self.source}' could be read; "
                "is it complete?"
            )

    def close(self) -> None:
        self._capture.release()


class _Encoder(Protocol):
    """Writes (H, W, 3) uint8 RGB frames of even sides into a file."""

    codec: str

    def write(self, frame: np.ndarray) -> None: ...

    def release(self) -> None: ...


class _OpenCvEncoder:
    """MPEG-4 by OpenCV.

    Raises:
        OSError: the file cannot be written.
    """

    codec = "MPEG-4, which browsers do not play (with the package av: H.264)"

    def __init__(self, path: str, size: tuple[int, int], rate: float) -> None:
        self._writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        if not self._writer.isOpened():
            raise OSError("OpenCV cannot open it")

    def write(self, frame: np.ndarray) -> None:
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))

    def release(self) -> None:
        self._writer.release()


class _PyAvEncoder:
    """H.264 by PyAV.

    Args:
        av: the module.
        name: of the encoder.
        path: of the file.
        size: (width, height) in pixels.
        rate: frames a second.

    Raises:
        ValueError, OSError: this PyAV lacks the encoder, or it cannot be opened.
    """

    def __init__(self, av: Any, name: str, path: str, size: tuple[int, int], rate: float) -> None:
        self._av, self.codec = av, f"H.264 ({name})"
        # The index stands first, so that a browser plays the file while it loads.
        self._file = av.open(path, "w", options={"movflags": "+faststart"})
        try:
            self._stream = self._file.add_stream(name, rate=Fraction(rate).limit_denominator(1000))
            self._stream.width, self._stream.height = size
            self._stream.pix_fmt = "yuv420p"  # the only one that all browsers know
            self._stream.codec_context.open()
        except Exception:
            self._file.close()
            raise

    def write(self, frame: np.ndarray) -> None:
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._file.mux(self._stream.encode(picture))

    def release(self) -> None:
        self._file.mux(self._stream.encode())
        self._file.close()


def _open_encoder(path: str, size: tuple[int, int], rate: float) -> _Encoder:
    """The best encoder that is there.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        import av
    except ImportError:
        return _OpenCvEncoder(path, size, rate)
    for name in _H264_ENCODERS:
        # PyAV's errors of an encoder that is absent or cannot be opened are such.
        with contextlib.suppress(ValueError, OSError):
            return _PyAvEncoder(av, name, path, size, rate)
    return _OpenCvEncoder(path, size, rate)


class VideoWriter:
    """Writes frames into an .mp4 file, which appears when it is complete.

    Used as a context: without an error the file is moved to its place, else it is removed.

    Args:
        path: ends in .mp4.
        rate: frames a second.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: str, rate: float) -> None:
        self.path, self.rate = path, rate
        folder, name = os.path.split(path)
        self._part = os.path.join(folder, f".part-{os.getpid()}-{name}")
        self._writer: _Encoder | None = None

    def write(self, frame: np.ndarray) -> None:
        """Add a (H, W, 3) uint8 RGB frame; all have the size of the first one."""
        # The codec wants even sides.
        frame = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        if self._writer is None:
            try:
                self._writer = _open_encoder(self._part, frame.shape[1::-1], self.rate)
            except OSError:
                raise OSError(f"The video '{self.path}' cannot be written.") from None
            logger.info("Writing %s as %s.", self.path, self._writer.codec)
        self._writer.write(frame)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if self._writer is not None and kind is None:
            os.replace(self._part, self.path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._part)
