"""The models behind the page, and what is kept of a visitor's image.

Everything that costs time is computed once for an image and kept in its :class:`Session`: label
maps when it is uploaded, the offsets when they are first asked for. Changing the view only draws.
Of all visitors together, only the offsets looked at last are kept (``kept_offsets.py``).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from detectron2.data import Metadata

from offseg_d2.config import ConfigError
from offseg_d2.inference.offset_views import trace_image
from offseg_d2.inference.predictor import Predictor
from offseg_d2.visualization.classes import class_names
from offseg_d2.visualization.offset_trace import OffsetTrace, offset_layer
from offseg_d2.web.kept_offsets import KeptOffsets, Offsets
from offseg_d2.web.uploads import Limits, Upload, UploadError, read_upload

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedModel:
    """A model of the page.

    Attributes:
        name: what it is called on the page.
        predictor: the model with its preprocessing.
    """

    name: str
    predictor: Predictor

    @property
    def metadata(self) -> Metadata:
        return self.predictor.metadata

    @property
    def has_offsets(self) -> bool:
        try:
            offset_layer(self.predictor.model)
        except ValueError:
            return False
        return True

    def describe(self) -> str:
        """One line for people."""
        cfg = self.predictor.cfg
        millions = sum(p.numel() for p in self.predictor.model.parameters()) / 1e6
        backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
        kind = "offset" if self.has_offsets else "plain"
        return (
            f"{backbone}, {kind} classifier, {len(class_names(self.metadata))} classes, "
            f"{millions:.1f} M parameters, on {cfg.MODEL.DEVICE}"
        )


@dataclass
class Result:
    """What a model says about an image.

    Attributes:
        labels: (H, W) class ids.
        seconds: that the model took.
    """

    labels: np.ndarray
    seconds: float


@dataclass
class Session:
    """An uploaded image with its results, one for each model.

    Attributes:
        upload: the image.
        results: in the order of the models.
        offsets: what they did; computed when first asked for, or asked for again after they had
            to make room.
    """

    upload: Upload
    results: list[Result]
    offsets: Offsets = field(default_factory=Offsets)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.upload.image.shape[:2]
        return height, width


class Workbench:
    """One model, or two to compare, which are never run at the same time.

    Args:
        models: one or two, of the same classes.
        limits: of the uploads.

    Raises:
        ConfigError: the models have different classes.
    """

    def __init__(self, models: Sequence[LoadedModel], limits: Limits) -> None:
        self.models, self.limits = tuple(models), limits
        self.runs = 0  # how often a model was run
        self._one_at_a_time = threading.Lock()
        self.kept_offsets = KeptOffsets()
        first, *others = [class_names(model.metadata) for model in self.models]
        for names in others:
            if names != first:
                raise ConfigError(
                    f"`--weights2` must be a checkpoint of the same classes as `--weights`, "
                    f"{_few(first)}, but has {_few(names)}."
                )

    @property
    def metadata(self) -> Metadata:
        return self.models[0].metadata

    @property
    def classes(self) -> list[str]:
        return class_names(self.metadata)

    def analyse(self, path: str, stem: str = "image") -> Session:
        """Read an uploaded file and run every model on it.

        Raises:
            UploadError: the file cannot be used, or the model fails on it.
        """
        upload = read_upload(path, self.limits, stem)
        return Session(upload, [self._predict(model, upload) for model in self.models])

    def offsets(self, session: Session, index: int) -> OffsetTrace:
        """What the offsets of a model do to the image; the model is run if they are not kept.

        Raises:
            ValueError: the model has no offsets.
            UploadError: the model fails on this image.
        """
        with session.lock:
            trace = session.offsets.traces.get(index)
            if trace is None:
                model = self.models[index]
                offset_layer(model.predictor.model)
                bgr = np.ascontiguousarray(session.upload.image[..., ::-1])
                trace = self._run(trace_image, model.predictor, bgr).trace
                session.offsets.traces[index] = trace
        self.kept_offsets.used(session.offsets)
        return trace

    def _predict(self, model: LoadedModel, upload: Upload) -> Result:
        start = time.perf_counter()
        bgr = np.ascontiguousarray(upload.image[..., ::-1])
        labels = self._run(Predictor.label_map, model.predictor, bgr)
        seconds = time.perf_counter() - start
        return Result(labels.astype(np.min_scalar_type(len(self.classes))), seconds)

    def _run(
        self, function: Callable[[Predictor, np.ndarray], T], predictor: Predictor, bgr: np.ndarray
    ) -> T:
        with self._one_at_a_time:
            self.runs += 1
            try:
                return function(predictor, bgr)
            except (MemoryError, torch.OutOfMemoryError):
                logger.exception("not enough memory")
                message = "There is not enough memory for this image; please make it smaller."
            except Exception:
                logger.exception("the model failed on an image of %s", bgr.shape)
                message = "The model cannot be run on this image; the server's log tells why."
        raise UploadError(message)


def difference(session: Session) -> np.ndarray | None:
    """Pixels where the two models differ, (H, W) bool; None if there is one model only."""
    if len(session.results) < 2:
        return None
    first, second = session.results
    return first.labels != second.labels


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{len(names)} ({shown}{', ...' if len(names) > 4 else ''})"
