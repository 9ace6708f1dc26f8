"""Predictions that are written while a model is evaluated, and read instead of predicted again.

A stopped evaluation goes on where it was: images whose file is there do not reach the network. So
that files of another model are not taken for this one's, a note beside the folder names the data
set, the weights and the settings that they were predicted with.
"""

import hashlib
import json
import logging
import os
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.data import ImageSettings
from offseg_d2.evaluation import PredictionFolder, to_class_ids
from offseg_d2.modeling import build_evaluation_model
from offseg_d2.utils.io import write_atomically
from offseg_d2.visualization.classes import class_colors

logger = logging.getLogger(__name__)

# Keys of TEST.SEM_SEG that do not change what is predicted.
_KEYS_OF_SCORES = {"ABSENT_CLASSES", "BOUNDARY_IOU", "REPORT", "SAVE_PREDICTIONS", "WINDOW_BATCH"}


class SavingModel(nn.Module):
    """A model whose predictions are files: written once, then read.

    Args:
        model: list of dicts -> list of ``{"sem_seg": ...}``.
        folder: of the files.
    """

    def __init__(self, model: nn.Module, folder: PredictionFolder) -> None:
        super().__init__()
        self.model = model
        self.folder = folder
        self.num_read = self.num_written = 0

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        """Label maps (H, W) for a batch; images that have their file do not reach the model."""
        found = [self.folder.load(sample) for sample in batch]
        missing = [sample for sample, ids in zip(batch, found, strict=True) if ids is None]
        outputs = iter(self.model(missing) if missing else ())
        for index, sample in enumerate(batch):
            if found[index] is None:
                name, sem_seg = sample["file_name"], next(outputs)["sem_seg"]
                found[index] = to_class_ids(sem_seg, self.folder.num_classes, name)
                self.folder.write(name, found[index])
        self.num_read += len(batch) - len(missing)
        self.num_written += len(missing)
        return [{"sem_seg": torch.from_numpy(ids)} for ids in found]

    def log(self) -> None:
        """Log the numbers of files, to be called on all processes."""
        numbers = comm.gather((self.num_written, self.num_read))
        if numbers:  # the main process
            written, read = (sum(column) for column in zip(*numbers, strict=True))
            logger.info(
                "Wrote %d predictions to %s; %d others were there already.",
                *(written, self.folder.directory, read),
            )


def build_saving_model(
    cfg: CfgNode, model: nn.Module, directory: str, predicting: nn.Module | None = None
) -> SavingModel:
    """Make a model write its predictions to a folder, to be called on all processes.

    Args:
        cfg: with one data set in ``DATASETS.TEST``.
        model: with the weights to predict with.
        directory: local folder.
        predicting: an equivalent of ``model`` that predicts instead of it.

    Raises:
        ConfigError: the folder holds other files, such as predictions of another model.
        ValueError: ``TEST.SEM_SEG.PREDICTION_FORMAT`` cannot be used.
    """
    (name,) = cfg.DATASETS.TEST
    DatasetCatalog.get(name)  # only now the folder of its images is known
    metadata = MetadataCatalog.get(name)
    folder = PredictionFolder(
        directory,
        cfg.TEST.SEM_SEG.PREDICTION_FORMAT,
        class_colors(metadata, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
        getattr(metadata, "image_root", ""),
    )
    _claim(directory, _origin(cfg, model))
    predicting = model if predicting is None else predicting
    return SavingModel(build_evaluation_model(cfg, predicting), folder)


def _origin(cfg: CfgNode, model: nn.Module) -> dict[str, str]:
    """Fingerprints of all that predictions depend on."""
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    settings = cfg.clone()
    settings.defrost()
    for key in _KEYS_OF_SCORES:
        del settings.TEST.SEM_SEG[key]
    settings.MODEL.WEIGHTS = settings.MODEL.DEVICE = ""
    image = (settings.INPUT.FORMAT, list(settings.INPUT.RESIZE.SCALE_TEST))
    image += tuple(ImageSettings.from_config(cfg)[:2])
    text = f"{image}\n{settings.MODEL.dump()}\n{settings.TEST.SEM_SEG.dump()}"
    return {
        "dataset": cfg.DATASETS.TEST[0],
        "weights": weights.hexdigest(),
        "settings": hashlib.sha256(text.encode()).hexdigest(),
    }


def _claim(directory: str, origin: dict[str, str]) -> None:
    """Note the origin of a folder's predictions beside it; refuse a folder of another origin.

    Beside, not inside: test servers take the folder as it is.
    """
    note = f"{directory.rstrip(os.sep)}.json"
    earlier = None
    if PathManager.isfile(note):
        with PathManager.open(note) as file:
            earlier = json.load(file)
    has_files = PathManager.isdir(directory) and bool(PathManager.ls(directory))
    comm.synchronize()  # all have looked before one writes
    if has_files and earlier != origin:
        different = [key for key in origin if (earlier or {}).get(key) != origin[key]]
        raise ConfigError(
            f"`--save-predictions` must name a folder that is new or holds predictions of the same "
            f"model, but '{directory}' holds files of other {', '.join(different)}; name another "
            f"folder or delete that one."
        )
    if comm.is_main_process():
        os.makedirs(os.path.dirname(note) or ".", exist_ok=True)
        write_atomically(note, json.dumps(origin, indent=1).encode())
    comm.synchronize()
