"""Drawing predictions of images, videos and cameras: what ``tools/demo.py`` does."""

import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from offseg_d2.data import DataFileError, read_image
from offseg_d2.predictor import find_images, output_paths, write_picture
from offseg_d2.video import VIDEO_SUFFIXES, VideoReader, VideoWriter
from offseg_d2.visualization import class_colors, class_names, legend, overlay, side_by_side

STYLES = ("overlay", "side-by-side", "label-map")
UNCHOSEN = 255  # value in label maps of classes that were not asked for


class LabelMaps(Protocol):
    """What predicts: :class:`.predictor.Predictor` or :class:`.export.OnnxSegmenter`."""

    metadata: Metadata

    def label_map(self, image: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class DrawOptions:
    """How predictions are drawn.

    Attributes:
        style: "overlay"; "side-by-side", the image beside it; or "label-map", a palette PNG whose
            values are the class ids.
        opacity: of the colours, 0..1.
        legend: a strip with the names of the classes below; "side-by-side" always has it.
        classes: names of the classes that are drawn; empty for all.
    """

    style: str = "overlay"
    opacity: float = 0.5
    legend: bool = False
    classes: tuple[str, ...] = ()


class Unreadable(NamedTuple):
    """A file that could not be predicted, and why."""

    path: str
    reason: str


def choose_classes(labels: np.ndarray, classes: Sequence[str], metadata: Metadata) -> np.ndarray:
    """Set all classes that are not among ``classes`` (if there are any) to 255.

    Raises:
        ValueError: there is no class of such a name.
    """
    if not classes:
        return labels
    names = class_names(metadata)
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise ValueError(f"`--classes` must be among {names}, but {unknown[0]!r} is not.")
    chosen = np.isin(labels, [names.index(name) for name in classes])
    return np.where(chosen, labels, UNCHOSEN)


def draw_labels(
    image: np.ndarray, labels: np.ndarray, metadata: Metadata, options: DrawOptions
) -> np.ndarray:
    """Draw a label map over its image: (H, W, 3) uint8 BGR and (H, W) -> RGB picture."""
    labels = choose_classes(labels, options.classes, metadata)
    rgb = np.ascontiguousarray(image[..., ::-1])
    picture = overlay(rgb, labels, metadata, opacity=options.opacity)
    if options.style == "side-by-side":
        picture = side_by_side([rgb, picture])
    if options.style == "side-by-side" or options.legend:
        picture = np.concatenate([picture, legend(metadata, picture.shape[1], labels)])
    return picture


def palette_png(labels: np.ndarray, metadata: Metadata) -> bytes:
    """A PNG whose values are the class ids, shown in the colours of the classes.

    Args:
        labels: (H, W) ids below 256; 255 is black.
        metadata: of at most 255 classes.

    Raises:
        ValueError: there are more classes.
    """
    colors = class_colors(metadata)
    if len(colors) > UNCHOSEN:
        raise ValueError(f"A label map must have at most 255 classes, but has {len(colors)}.")
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colors)] = colors
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(palette.tobytes())
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def plan(inputs: Iterable[str], output_dir: str, style: str) -> list[tuple[str, str]]:
    """Pairs of an image or video and the file that is to be drawn.

    Raises:
        ValueError: an input matches nothing, would be overwritten, or shares its name with another.
    """
    found = find_images(inputs, also=VIDEO_SUFFIXES)
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


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def draw_files(
    predictor: LabelMaps, inputs: Iterable[str], output_dir: str, options: DrawOptions
) -> tuple[list[str], list[Unreadable]]:
    """Predict images and videos and draw them; goes on past unreadable files.

    Args:
        predictor: the model.
        inputs: images, videos, folders of such, and patterns.
        output_dir: folder for the pictures, made if need be.
        options: how to draw.

    Returns:
        The written files, and those that could not be read.

    Raises:
        ValueError: see :func:`plan` and :func:`choose_classes`.
        OSError: a picture cannot be written.
    """
    todo = plan(inputs, output_dir, options.style)
    choose_classes(np.zeros((1, 1), dtype=np.int64), options.classes, predictor.metadata)
    PathManager.mkdirs(output_dir)
    written, unreadable = [], []
    for path, target in tqdm(todo, unit="file", disable=None):
        try:
            if is_video(path):
                draw_video(predictor, path, target, options)
            else:
                _draw_image(predictor, path, target, options)
        except DataFileError as error:
            unreadable.append(Unreadable(path, str(error)))
            continue
        written.append(target)
    return written, unreadable


def _draw_image(predictor: LabelMaps, path: str, target: str, options: DrawOptions) -> None:
    image = read_image(path)
    labels = predictor.label_map(image)
    if options.style == "label-map":
        chosen = choose_classes(labels, options.classes, predictor.metadata)
        with PathManager.open(target, "wb") as file:
            file.write(palette_png(chosen, predictor.metadata))
        return
    write_picture(target, draw_labels(image, labels, predictor.metadata, options))


def draw_video(
    predictor: LabelMaps, source: str | int, target: str, options: DrawOptions, frames: int = 0
) -> int:
    """Predict the frames of a video file or camera and write them as a video.

    Args:
        predictor: the model.
        source: path, or number of a camera, which is read until Ctrl-C.
        target: .mp4 file.
        options: how to draw; frames of one size are drawn in one size, so a legend lists all
            classes that are drawn.
        frames: at most so many; 0 for all.

    Returns:
        number of frames.

    Raises:
        DataFileError: the file is no video.
        ValueError: there is no such camera.
        OSError: the video cannot be written.
    """
    reader = VideoReader(source)
    number = 0
    with VideoWriter(target, reader.rate) as writer, contextlib.suppress(KeyboardInterrupt):
        for frame in _progress(reader, frames):
            writer.write(draw_frame(predictor, frame, options))
            number += 1
    return number


def _progress(reader: VideoReader, frames: int) -> Iterator[np.ndarray]:
    expected = min(filter(None, (reader.length, frames)), default=None)
    limited = itertools.islice(reader, frames or None)
    return iter(tqdm(limited, total=expected, unit="frame", disable=None, leave=False))


def draw_frame(predictor: LabelMaps, frame: np.ndarray, options: DrawOptions) -> np.ndarray:
    """Predict and draw a frame: (H, W, 3) BGR -> RGB, the same size for all frames."""
    labels = predictor.label_map(frame)
    bare = DrawOptions(opacity=options.opacity, classes=options.classes)
    picture = draw_labels(frame, labels, predictor.metadata, bare)
    if options.style == "side-by-side":
        picture = side_by_side([np.ascontiguousarray(frame[..., ::-1]), picture])
    if options.style != "side-by-side" and not options.legend:
        return picture
    names = class_names(predictor.metadata)
    shown = [names.index(name) for name in options.classes] or list(range(len(names)))
    strip = legend(predictor.metadata, picture.shape[1], np.array([shown]))
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
