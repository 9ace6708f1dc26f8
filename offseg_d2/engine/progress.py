"""Progress of a training: memory in the log line, lengths of offsets, pictures in TensorBoard."""

import logging
import resource
import sys
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    get_event_storage,
)
from torch import nn
from torch.utils.hooks import RemovableHandle

from offseg_d2.data import ImageSettings, build_mapper, label_lut_of, read_label_map
from offseg_d2.evaluation import read_photograph
from offseg_d2.modeling import build_evaluation_model
from offseg_d2.visualization.classes import to_labels
from offseg_d2.visualization.offset_trace import offset_layer, relative_offsets
from offseg_d2.visualization.overlay import enlarge, legend, overlay, side_by_side

logger = logging.getLogger(__name__)

_PICTURE_WIDTH = 480  # pixels of each of the three panels


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's progress line; without CUDA the memory is that of the process."""

    def __init__(self, max_iter: int) -> None:
        super().__init__(max_iter)
        if not torch.cuda.is_available():
            self.logger = _WithMemory(self.logger, {})
        self._written = -1

    def write(self) -> None:
        iteration = get_event_storage().iter
        if iteration != self._written:  # a training may stop right after a line
            super().write()
        self._written = iteration


class _WithMemory(logging.LoggerAdapter):
    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[str, MutableMapping[str, Any]]:
        return f"{str(msg).rstrip()}  max_mem: {peak_memory() / 2**20:.0f}M", kwargs


class ProgressHook(PeriodicWriter):
    """Writes at the period of Detectron2's hook; the progress line also after the first iteration.

    Args:
        writers: to call.
        period: iterations between two calls.
    """

    def __init__(self, writers: list[EventWriter], period: int) -> None:
        super().__init__(writers, period)
        self.printers = [writer for writer in writers if isinstance(writer, ProgressPrinter)]

    def after_step(self) -> None:
        iteration, is_first = self.trainer.iter, self.trainer.iter == self.trainer.start_iter
        if is_first and (iteration + 1) % self._period and iteration < self.trainer.max_iter - 1:
            for printer in self.printers:
                printer.write()
        super().after_step()


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes; its data workers do not count."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class OffsetLengthHook(HookBase):
    """Logs how far offsets move class vectors and pixels, for the first image of a batch.

    ``offset/class`` and ``offset/feature`` are lengths of the offsets over those of what they move,
    averaged. Models without offsets are left alone.

    Args:
        model: not wrapped for several processes.
        period: iterations between two measurements.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        self.period = period
        self._inputs: tuple[torch.Tensor, ...] | None = None
        self._handle: RemovableHandle | None = None
        try:
            self.layer: nn.Module | None = offset_layer(model)
        except ValueError:
            self.layer = None

    def before_step(self) -> None:
        if (
            self.layer is not None
            and comm.is_main_process()
            and (self.trainer.iter + 1) % self.period == 0
        ):
            self._handle = self.layer.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._inputs = tuple(value[:1].detach() for value in inputs)

    def after_step(self) -> None:
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        if self._inputs is None:
            return
        storage: EventStorage = self.trainer.storage
        lengths = relative_offsets(self.layer, self._inputs)
        self._inputs = None
        for name, value in lengths.items():
            storage.put_scalar(f"offset/{name}", value)


class ValidationPictures:
    """Draws image, truth and prediction of the same few images at each evaluation.

    Args:
        cfg: configuration; the images are spread over the first of ``DATASETS.TEST``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.name = cfg.DATASETS.TEST[0]
        self.samples: list[dict[str, Any]] | None = None

    def draw(self, model: nn.Module, storage: EventStorage) -> None:
        """Put the pictures into the storage, from where TensorBoard's writer takes them.

        Args:
            model: meta-architecture, on this process alone.
            storage: of the training.
        """
        training = model.training
        network = build_evaluation_model(self.cfg, model).eval()
        mapper = build_mapper(self.cfg, is_train=False)
        with torch.inference_mode():
            for index, sample in enumerate(self._samples()):
                mapped = mapper(sample)
                labels = to_labels(network([mapped])[0]["sem_seg"])
                picture = self._draw(sample, labels)
                planes = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
                storage.put_image(f"{self.name}/{index}", planes)
        model.train(training)

    def _samples(self) -> list[dict[str, Any]]:
        if self.samples is None:
            number = self.cfg.TEST.SEM_SEG.NUM_PICTURES
            samples = [r for r in DatasetCatalog.get(self.name) if r.get("sem_seg_file_name")]
            middles = (np.arange(number) + 0.5) * len(samples) / number
            self.samples = [samples[int(i)] for i in middles] if samples else []
        return self.samples

    def _draw(self, sample: dict[str, Any], labels: np.ndarray) -> np.ndarray:
        metadata = MetadataCatalog.get(self.name)
        image = read_photograph(sample["file_name"], ImageSettings.from_config(self.cfg))
        truth = read_label_map(sample["sem_seg_file_name"], label_lut_of(metadata))
        scale = min(1.0, _PICTURE_WIDTH / image.shape[1])
        panels = [
            overlay(image, ids, metadata, scale=scale, names=False, ignored=True)
            for ids in (truth, labels)
        ]
        row = side_by_side([enlarge(image, scale), *panels], ("image", "truth", "prediction"))
        present = np.concatenate([np.unique(truth), np.unique(labels)])
        return np.concatenate([row, legend(metadata, row.shape[1], present, ignored=True)])
