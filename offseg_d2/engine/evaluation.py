"""Evaluation of a configuration: the one place where evaluators are built, and ``--eval-only``.

Data sets without labels, as test servers have them, can be predicted but not evaluated.
"""

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.data import (
    IGNORE_LABEL,
    build_lut,
    label_map_of,
    read_label_map,
    require_registered,
)
from offseg_d2.deploy.from_config import deployed
from offseg_d2.evaluation import (
    EvaluationObserver,
    EvaluationReport,
    PictureWriter,
    RunInfo,
    SemSegEvaluator,
    to_class_ids,
)
from offseg_d2.utils.io import write_atomically
from offseg_d2.visualization.classes import class_colors

from .defaults import software_versions
from .saved_predictions import build_saving_model

if TYPE_CHECKING:
    from .trainer import Trainer

logger = logging.getLogger(__name__)

_REPORT_RULES = ("eval_only", "always", "never")


def build_evaluator(cfg: CfgNode, dataset_name: str) -> SemSegEvaluator:
    """Evaluator of a data set registered in Detectron2's catalogs, as ``TEST.SEM_SEG`` says.

    Args:
        cfg: whole config.
        dataset_name: in the catalogs.

    Raises:
        ValueError: the data set has no labels, or a key cannot be used.
    """
    keys = cfg.TEST.SEM_SEG
    records = DatasetCatalog.get(dataset_name)  # first: only now the label map is known
    metadata = MetadataCatalog.get(dataset_name)
    unlabelled = [r["file_name"] for r in records if "sem_seg_file_name" not in r]
    if unlabelled:
        raise ConfigError(
            f"`DATASETS.TEST` must name data sets with labels to evaluate on, but '{dataset_name}' "
            f"has none for {len(unlabelled)} of {len(records)} images, such as '{unlabelled[0]}'; "
            f"a set without labels can be predicted, by --eval-only --save-predictions DIR."
        )
    lut = build_lut(label_map_of(metadata))
    label_files = {record["file_name"]: record["sem_seg_file_name"] for record in records}
    if keys.REPORT not in _REPORT_RULES:
        raise ConfigError(
            f"`TEST.SEM_SEG.REPORT` must be one of {list(_REPORT_RULES)}, but is {keys.REPORT!r}."
        )
    output_dir = inference_dir(cfg, dataset_name)
    return SemSegEvaluator(
        metadata.stuff_classes,
        IGNORE_LABEL,  # as label maps give it, whatever the data set's own is
        lambda record: read_label_map(label_files[record["file_name"]], lut),
        absent_classes=keys.ABSENT_CLASSES,
        boundary=keys.BOUNDARY_IOU,
        observers=[_build_report(cfg, metadata, output_dir)] if keys.REPORT == "always" else [],
        output_dir=output_dir if keys.SAVE_PREDICTIONS else None,
    )


def inference_dir(cfg: CfgNode, dataset_name: str) -> str:
    """Folder for what an evaluation on a data set writes."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", folder_name(dataset_name))


def folder_name(dataset_name: str) -> str:
    """The dataset's name as one part of a path: "folder:/data/own:val" -> "folder_data_own_val"."""
    return re.sub(r"[^\w.-]+", "_", dataset_name)


def _is_labelled(records: list[dict[str, Any]]) -> bool:
    return any("sem_seg_file_name" in record for record in records)


def _build_report(cfg: CfgNode, metadata: Metadata, output_dir: str) -> EvaluationObserver:
    path = os.path.join(output_dir, "config.yaml")  # that of the run may be another
    if comm.is_main_process():
        os.makedirs(output_dir, exist_ok=True)
        write_atomically(path, cfg.dump().encode())
    return EvaluationReport(
        output_dir,
        metadata.stuff_classes,
        class_colors(metadata, len(metadata.stuff_classes)),
        IGNORE_LABEL,
        run=RunInfo(
            dataset=metadata.name,
            config=path,
            weights=cfg.MODEL.WEIGHTS,
            settings=_describe_inference(cfg),
            versions=software_versions(),
        ),
        absent_classes=cfg.TEST.SEM_SEG.ABSENT_CLASSES,
    )


def _describe_inference(cfg: CfgNode) -> dict[str, str]:
    keys = cfg.TEST.SEM_SEG
    mode = keys.MODE
    form = {"model": "optimized by offseg_d2.deploy"} if cfg.TEST.DEPLOY else {}
    if mode == "slide":
        mode += f", window {list(keys.CROP_SIZE)}, stride {list(keys.STRIDE)} (height, width)"
    if keys.TTA.ENABLED:
        views = f"{list(keys.TTA.RATIOS)} of the image's size{', mirrored' * keys.TTA.FLIP}"
        return {"inference": mode, "test-time augmentation": views, **form}
    scale = str(list(cfg.INPUT.RESIZE.SCALE_TEST))
    return {"inference": mode, "test scale (long side, short side)": scale, **form}


def evaluate(
    trainer: "type[Trainer]",
    cfg: CfgNode,
    model: nn.Module,
    *,
    predictions_dir: str = "",
    pictures_dir: str = "",
) -> OrderedDict[str, Any]:
    """Evaluate on ``DATASETS.TEST`` as ``--eval-only`` does.

    Args:
        trainer: builds loaders and evaluators.
        cfg: configuration.
        model: with the weights to be evaluated.
        predictions_dir: if given, predictions are written to ``predictions_dir/<dataset>``; what
            an earlier call has written there is read instead of predicted anew.
        pictures_dir: if given, ground truth and prediction are drawn to
            ``pictures_dir/<dataset>``.

    Returns:
        as of :meth:`Trainer.test`; nothing for data sets without labels.

    Raises:
        ConfigError: a data set has no labels and no predictions are to be written,
            ``predictions_dir`` holds predictions of another model, or ``TEST.DEPLOY`` is True for
            a model without a deployed form.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("`DATASETS.TEST` must name a data set to evaluate on, but is empty.")
    for name in cfg.DATASETS.TEST:
        require_registered(name, "DATASETS.TEST")
    predicting = deployed(cfg, model)
    results: OrderedDict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        own_cfg = cfg.clone()
        own_cfg.defrost()
        own_cfg.DATASETS.TEST = (name,)
        if cfg.TEST.SEM_SEG.REPORT == "eval_only":
            own_cfg.TEST.SEM_SEG.REPORT = "always"
        own_cfg.freeze()
        network = predicting
        if predictions_dir:
            directory = os.path.join(predictions_dir, folder_name(name))
            network = build_saving_model(own_cfg, model, directory, predicting)
        evaluator = _build_evaluator_for(trainer, own_cfg, pictures_dir, bool(predictions_dir))
        results[name] = trainer.test(own_cfg, network, [evaluator])
        if network is not predicting:
            network.log()
    return results[name] if len(results) == 1 else results


def _build_evaluator_for(
    trainer: "type[Trainer]", cfg: CfgNode, pictures_dir: str, saves: bool
) -> DatasetEvaluator:
    (name,) = cfg.DATASETS.TEST
    pictures = []
    if pictures_dir:
        metadata = MetadataCatalog.get(name)
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        pictures = [
            PictureWriter(os.path.join(pictures_dir, folder_name(name)), metadata, num_classes)
        ]
    can_be_predicted_only = (saves or pictures) and name in DatasetCatalog.list()
    if can_be_predicted_only and not _is_labelled(DatasetCatalog.get(name)):
        logger.warning("%s has no labels: it is predicted, not evaluated.", name)
        return DatasetEvaluators([_PictureEvaluator(p) for p in pictures])
    evaluator = trainer.build_evaluator(cfg, name)
    evaluator.observers += pictures
    return evaluator


class _PictureEvaluator(DatasetEvaluator):
    """Draws the predictions of a data set without labels."""

    def __init__(self, pictures: PictureWriter) -> None:
        self.pictures = pictures

    def process(self, inputs: list[Mapping[str, Any]], outputs: list[Mapping[str, Any]]) -> None:
        for record, output in zip(inputs, outputs, strict=True):
            name = record["file_name"]
            class_ids = to_class_ids(output["sem_seg"], self.pictures.num_classes, name)
            self.pictures.write(name, class_ids)
