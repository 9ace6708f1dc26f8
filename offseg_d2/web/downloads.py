"""Files: what a visitor takes home, at the size of the image, and the pictures of the page."""

import os
import re

import cv2
import numpy as np
from detectron2.data import Metadata

from offseg_d2.utils.io import write_picture
from offseg_d2.visualization.classes import class_names
from offseg_d2.visualization.drawing import UNCHOSEN, palette_png


def file_stem(name: str) -> str:
    """Name of an uploaded file without its suffix and whatever could be mistaken for a path."""
    stem = os.path.splitext(os.path.basename(name.replace("\\", "/")))[0]
    return re.sub(r"[^\w.-]+", "_", stem).strip("._")[:60] or "image"


def write_label_map(path: str, labels: np.ndarray, metadata: Metadata) -> None:
    """Write a PNG whose values are the class ids, with a palette if there are at most 255."""
    if len(class_names(metadata)) <= UNCHOSEN:
        content = palette_png(labels, metadata)
    else:
        content = cv2.imencode(".png", labels.astype(np.uint16))[1].tobytes()
    with open(path, "wb") as file:
        file.write(content)


def write_overlay(path: str, picture: np.ndarray) -> None:
    """Write a picture as PNG."""
    write_picture(path, picture)


def write_jpeg(path: str, picture: np.ndarray) -> None:
    """Write a picture for the screen: no detail is lost that one could see, and it is quick."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, 92]
    flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    content = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), flags)[1]
    with open(path, "wb") as file:
        file.write(content.tobytes())
