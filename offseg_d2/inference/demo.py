"""Drawing predictions of images, videos and cameras: what ``offseg demo`` does."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from offseg_d2.data import DataFileError, read_image
from offseg_d2.inference.batching import batches_of_a_kind, items_ahead, read_ahead
from offseg_d2.inference.predictor import find_images, output_paths
from offseg_d2.inference.video import VIDEO_SUFFIXES, BrokenOffError, VideoReader, VideoWriter
from offseg_d2.utils.io import write_atomically, write_picture
from offseg_d2.visualization.classes import class_names
from offseg_d2.visualization.drawing import UNCHOSEN as UNCHOSEN
from offseg_d2.visualization.drawing import DrawOptions, choose_classes, draw_labels, palette_png
from offseg_d2.visualization.overlay import legend, side_by_side


class LabelMaps(Protocol):
    """A predictor: :class:`.predictor.Predictor` or :class:`.onnx.OnnxSegmenter`."""

    metadata: Metadata

    def label_map(self, image: np.ndarray) -> np.ndarray: ...

    def label_maps(self, images: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def input_size(self, height: int, width: int) -> tuple[int, int]: ...


class _Loaded(NamedTuple):
    """An image file that has been read."""

    path: str
    target: str
    image: np.ndarray


class Unreadable(NamedTuple):
    """A file that could not be predicted, and why."""

    path: str
    reason: str


def plan(inputs: Iterable[str], output_dir: str, style: str) -> list[tuple[str, str]]:
    """Pairs of an image or video and the file that is to be drawn.

    Raises:
        ValueError: an input matches nothing, would be overwritten, or shares its name with another;
            the output is a file.
    """
    found = find_images(inputs, also=VIDEO_SUFFIXES)
    if PathManager.isfile(output_dir):
        raise ValueError(f"`--output` must be a folder, but '{output_dir}' is a file.")
    forced = {path: ".mp4" for path in found if is_video(path)}
    if style == "label-map":
        videos = list(forced)
        if videos:
            raise ValueError(
                f"`--draw` must be overlay or side-by-side for videos such as '{videos[0]}', "
                "but is 'label-map'."
            )
        forced = dict.fromkeys(found, ".png")
    return list(zip(found, output_paths(found, output_dir, forced), strict=True))


def make_folder(path: str) -> None:
    """Make the folder for the pictures, if it is not there.

    Raises:
        OSError: it cannot be made; the message names it.
    """
    try:
        PathManager.mkdirs(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"`--output` must be a folder that can be made, but '{path}' cannot: {reason}."
        ) from None


def is_video(path: str) -> bool:
    """True if a path ends as one of the kinds of video files that are read."""
    return path.lower().endswith(VIDEO_SUFFIXES)


def draw_files(
    predictor: LabelMaps,
    inputs: Iterable[str],
    output_dir: str,
    options: DrawOptions,
    batch_size: int = 1,
    read: Callable[[str], np.ndarray] = read_image,
) -> tuple[list[str], list[Unreadable]]:
    """Predict images, then videos, and draw them; goes on past unreadable files.

    The next images are read while the model works. So that batches get full, images of other
    sizes wait meanwhile: at most ``7 * batch_size`` are in memory.

    Args:
        predictor: the model.
        inputs: images, videos, folders of such, and patterns.
        output_dir: folder for the pictures, made if need be.
        options: how to draw.
        batch_size: images of one size, or frames of a video, that are predicted together.
        read: reads an image file, (H, W, 3) uint8 BGR.

    Returns:
        The written files, and those that could not be read, both in the order of the inputs.

    Raises:
        ValueError: see :func:`plan` and :func:`choose_classes`.
        OSError: a picture cannot be written.
    """
    todo = plan(inputs, output_dir, options.style)
    choose_classes(np.zeros((1, 1), dtype=np.int64), options.classes, predictor.metadata)
    make_folder(output_dir)
    faults: dict[str, Unreadable] = {}
    partly: list[str] = []  # pictures of what there was of a broken-off video
    images = [(path, target) for path, target in todo if not is_video(path)]
    with tqdm(total=len(todo), unit="file", disable=None) as progress:
        reading = _read_images(read, images, 2 * batch_size, faults)
        with contextlib.closing(reading) as loaded:
            for batch in batches_of_a_kind(loaded, partial(_size_in, predictor), batch_size):
                _draw_images(predictor, batch, options)
                progress.update(len(batch))
        for path, target in (pair for pair in todo if is_video(pair[0])):
            try:
                draw_video(predictor, path, target, options, batch_size=batch_size)
            except DataFileError as error:
                faults[path] = Unreadable(path, str(error))
                partly += [target] if isinstance(error, BrokenOffError) else []
            progress.update()
    return (
        [target for path, target in todo if path not in faults or target in partly],
        [faults[path] for path, _ in todo if path in faults],
    )


def _read_images(
    read: Callable[[str], np.ndarray],
    files: Sequence[tuple[str, str]],
    ahead: int,
    faults: dict[str, Unreadable],
) -> Iterator[_Loaded]:
    tasks = (partial(read, path) for path, _ in files)
    with contextlib.closing(read_ahead(tasks, ahead=ahead)) as futures:
        for (path, target), future in zip(files, futures, strict=True):
            try:
                yield _Loaded(path, target, future.result())
            except DataFileError as error:
                faults[path] = Unreadable(path, str(error))


def _size_in(predictor: LabelMaps, loaded: _Loaded) -> tuple[int, ...]:
    """Images go through the network together if this is equal."""
    return predictor.input_size(*loaded.image.shape[:2])


def _draw_images(predictor: LabelMaps, batch: Sequence[_Loaded], options: DrawOptions) -> None:
    metadata = predictor.metadata
    label_maps = predictor.label_maps([loaded.image for loaded in batch])
    for (_, target, image), labels in zip(batch, label_maps, strict=True):
        if options.style == "label-map":
            chosen = choose_classes(labels, options.classes, metadata)
            write_atomically(target, palette_png(chosen, metadata))
        else:
            write_picture(target, draw_labels(image, labels, metadata, options))


def draw_video(
    predictor: LabelMaps,
    source: str | int,
    target: str,
    options: DrawOptions,
    frames: int = 0,
    batch_size: int = 1,
) -> int:
    """Predict the frames of a video file or camera and write them as a video.

    Args:
        predictor: the model.
        source: path, or number of a camera, which is read until Ctrl-C.
        target: .mp4 file.
        options: how to draw; frames of one size are drawn in one size, so a legend lists all
            classes that are drawn.
        frames: at most so many; 0 for all.
        batch_size: frames that are predicted together; as many more are read ahead.

    Returns:
        number of frames.

    Raises:
        DataFileError: the file is no video.
        BrokenOffError: it ends early; what there is has been written.
        ValueError: there is no such camera.
        OSError: the video cannot be written.
    """
    reader = VideoReader(source)
    expected = min(filter(None, (reader.length, frames)), default=None)
    number, broken_off = 0, None
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(target, reader.rate))
        if not isinstance(source, str):  # filmed until Ctrl-C; half a file would look like a whole
            stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        source_frames = stack.enter_context(contextlib.closing(iter(reader)))
        limited = itertools.islice(source_frames, frames or None)
        coming = stack.enter_context(contextlib.closing(items_ahead(limited, ahead=batch_size)))
        bar = tqdm(total=expected, unit="frame", disable=None, leave=False)
        progress = stack.enter_context(bar)
        while batch := _next_frames(coming, batch_size):
            if isinstance(batch[-1], BrokenOffError):
                broken_off = batch.pop()
            for frame, labels in zip(batch, predictor.label_maps(batch), strict=True):
                writer.write(_draw_frame(frame, labels, predictor.metadata, options))
                number += 1
            progress.update(len(batch))
            if broken_off:
                break
    if broken_off:  # now that what there is has been written
        raise broken_off
    return number


def _next_frames(frames: Iterator[np.ndarray], number: int) -> list[np.ndarray | BrokenOffError]:
    """The next frames, fewer at the end of the video; its early end comes last."""
    batch: list[np.ndarray | BrokenOffError] = []
    try:
        for frame in itertools.islice(frames, number):
            batch.append(frame)
    except BrokenOffError as error:
        batch.append(error)
    return batch


def draw_frame(predictor: LabelMaps, frame: np.ndarray, options: DrawOptions) -> np.ndarray:
    """Predict and draw a frame: (H, W, 3) BGR -> RGB, the same size for all frames."""
    return _draw_frame(frame, predictor.label_map(frame), predictor.metadata, options)


def _draw_frame(
    frame: np.ndarray, labels: np.ndarray, metadata: Metadata, options: DrawOptions
) -> np.ndarray:
    bare = DrawOptions(opacity=options.opacity, classes=options.classes)
    picture = draw_labels(frame, labels, metadata, bare)
    if options.style == "side-by-side":
        picture = side_by_side([np.ascontiguousarray(frame[..., ::-1]), picture])
    if options.style != "side-by-side" and not options.legend:
        return picture
    names = class_names(metadata)
    shown = [names.index(name) for name in options.classes] or list(range(len(names)))
    strip = legend(metadata, picture.shape[1], np.array([shown]))
    return np.concatenate([picture, strip])


def show_camera(predictor: LabelMaps, number: int, options: DrawOptions) -> None:
    """Show the predictions of a camera in a window until "q" is pressed.

    Raises:
        ValueError: there is no such camera, or this OpenCV cannot open windows.
    """
    title = "offseg_d2, q to quit"
    for frame in VideoReader(number):
        try:
            cv2.imshow(
                title, np.ascontiguousarray(draw_frame(predictor, frame, options)[..., ::-1])
            )
            key = cv2.waitKey(1)
        except cv2.error:
            raise ValueError(
                "`--output` must name a folder for the video, because this OpenCV has no windows "
                "(opencv-python in place of opencv-python-headless has them)."
            ) from None
        if key & 0xFF == ord("q"):
            return
