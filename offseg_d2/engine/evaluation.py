"""Evaluation of a configuration: its evaluators, the run over its test sets, ``--eval-only``.

Data sets without labels, as test servers have them, can be predicted but not evaluated.
"""

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.data import (
    IGNORE_LABEL,
    ImageSettings,
    build_test_loader,
    label_lut_of,
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
from offseg_d2.modeling import build_evaluation_model
from offseg_d2.utils.io import write_atomically

from .defaults import software_versions, warn_of_unread_keys
from .saved_predictions import build_saving_model

logger = logging.getLogger(__name__)

LoaderBuilder = Callable[[CfgNode, str], Iterable[list[dict[str, Any]]]]
EvaluatorBuilder = Callable[[CfgNode, str], DatasetEvaluator]

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
    samples = DatasetCatalog.get(dataset_name)  # first: only now the label map is known
    metadata = MetadataCatalog.get(dataset_name)
    unlabelled = [s["file_name"] for s in samples if "sem_seg_file_name" not in s]
    if unlabelled:
        raise ConfigError(
            f"`DATASETS.TEST` must name data sets with labels to evaluate on, but '{dataset_name}' "
            f"has none for {len(unlabelled)} of {len(samples)} images, such as '{unlabelled[0]}'; "
            f"a set without labels can be predicted, by --eval-only --save-predictions DIR."
        )
    lut = label_lut_of(metadata)
    label_files = {sample["file_name"]: sample["sem_seg_file_name"] for sample in samples}
    if keys.REPORT not in _REPORT_RULES:
        raise ConfigError(
            f"`TEST.SEM_SEG.REPORT` must be one of {list(_REPORT_RULES)}, but is {keys.REPORT!r}."
        )
    output_dir = inference_dir(cfg, dataset_name)
    return SemSegEvaluator(
        metadata.stuff_classes,
        IGNORE_LABEL,  # as label maps give it, whatever the data set's own is
        lambda sample: read_label_map(label_files[sample["file_name"]], lut),
        absent_classes=keys.ABSENT_CLASSES,
        boundary=keys.BOUNDARY_IOU,
        observers=[_build_report(cfg, metadata, output_dir)] if keys.REPORT == "always" else [],
        output_dir=output_dir if keys.SAVE_PREDICTIONS else None,
    )


def inference_dir(cfg: CfgNode, dataset_name: str) -> str:
    """Folder for what an evaluation on a data set writes."""
    return os.path.join(cfg.OUTPUT_DIR, "inference", folder_name(dataset_name))


def folder_name(dataset_name: str) -> str:
    """The end of the dataset's name as one part of a path: "folder:/data/own:val" -> "own_val"."""
    return re.sub(r"[^\w.-]+", "_", dataset_name.rstrip("/").rpartition("/")[2]).strip("_")


def check_folder_names(dataset_names: Sequence[str]) -> None:
    """Check that what evaluations write goes into a folder for each dataset.

    Raises:
        ConfigError: two have the same folder name.
    """
    folders: dict[str, str] = {}
    for name in dataset_names:
        other = folders.setdefault(folder_name(name), name)
        if other != name:
            raise ConfigError(
                f"`DATASETS.TEST` must name data sets whose last parts differ, but names '{other}' "
                f"and '{name}', which would share the folder '{folder_name(name)}'."
            )


def _is_labelled(samples: list[dict[str, Any]]) -> bool:
    return any("sem_seg_file_name" in sample for sample in samples)


def _build_report(cfg: CfgNode, metadata: Metadata, output_dir: str) -> EvaluationObserver:
    path = os.path.join(output_dir, "config.yaml")  # that of the run may be another
    if comm.is_main_process():
        os.makedirs(output_dir, exist_ok=True)
        write_atomically(path, cfg.dump().encode())
    return EvaluationReport(
        output_dir,
        metadata,
        IGNORE_LABEL,
        run=RunInfo(
            dataset=metadata.name,
            config=path,
            weights=cfg.MODEL.WEIGHTS,
            settings=_describe_inference(cfg),
            versions=software_versions(),
        ),
        absent_classes=cfg.TEST.SEM_SEG.ABSENT_CLASSES,
        settings=ImageSettings.from_config(cfg),
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


def on_all_images(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config with ``TEST.SUBSET`` 0."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.SUBSET = 0
    cfg.freeze()
    return cfg


def run_test(
    cfg: CfgNode,
    model: nn.Module,
    evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    *,
    build_loader: LoaderBuilder = build_test_loader,
    build_evaluator: EvaluatorBuilder = build_evaluator,
) -> OrderedDict[str, Any]:
    """Evaluate a model with its current weights on ``DATASETS.TEST``.

    Args:
        cfg: configuration.
        model: model, left in the mode it is in.
        evaluators: one for each data set; None builds them.
        build_loader: makes batches of a data set, each image once over all processes.
        build_evaluator: makes the evaluator of a data set.

    Returns:
        on the main process ``{"sem_seg": {"mIoU": ..., ...}}`` in percent for one data set,
        ``{data set: {"sem_seg": ...}}`` for several; empty on other processes.
    """
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    results: OrderedDict[str, Any] = OrderedDict()
    network = build_evaluation_model(cfg, model)
    for index, name in enumerate(cfg.DATASETS.TEST):
        loader = build_loader(cfg, name)
        evaluator = evaluators[index] if evaluators else build_evaluator(cfg, name)
        result = inference_on_dataset(network, loader, evaluator)
        if comm.is_main_process():
            results[name] = result
            logger.info("Results on %s:", name)
            print_csv_format(result)
    return results[name] if len(results) == 1 else results


def evaluate(
    cfg: CfgNode,
    model: nn.Module,
    *,
    predictions_dir: str = "",
    pictures_dir: str = "",
    build_loader: LoaderBuilder = build_test_loader,
    build_evaluator: EvaluatorBuilder = build_evaluator,
) -> OrderedDict[str, Any]:
    """Evaluate on ``DATASETS.TEST`` as ``--eval-only`` does.

    Args:
        cfg: configuration.
        model: with the weights to be evaluated.
        predictions_dir: if given, predictions are written to ``predictions_dir/<dataset>``; those
            that an earlier call has written there are read instead of predicted again.
        pictures_dir: if given, ground truth and prediction are drawn to
            ``pictures_dir/<dataset>``.
        build_loader: see :func:`run_test`.
        build_evaluator: see :func:`run_test`.

    Returns:
        as of :func:`run_test`; nothing for data sets without labels.

    Raises:
        ConfigError: a data set has no labels and no predictions are to be written,
            ``predictions_dir`` holds predictions of another model, or ``TEST.DEPLOY`` is True for
            a model without a deployed form.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("`DATASETS.TEST` must name a data set to evaluate on, but is empty.")
    check_folder_names(cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TEST:
        require_registered(name, "DATASETS.TEST")
    predicting = deployed(cfg, model)
    results: OrderedDict[str, Any] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        own_cfg = on_all_images(cfg)
        own_cfg.defrost()
        own_cfg.DATASETS.TEST = (name,)
        if cfg.TEST.SEM_SEG.REPORT == "eval_only":
            own_cfg.TEST.SEM_SEG.REPORT = "always"
        own_cfg.freeze()
        network = predicting
        if predictions_dir:
            directory = os.path.join(predictions_dir, folder_name(name))
            network = build_saving_model(own_cfg, model, directory, predicting)
        evaluator = _pictures_only(own_cfg, pictures_dir, bool(predictions_dir))
        if evaluator is None:
            evaluator = build_evaluator(own_cfg, name)
            writers = _picture_writers(own_cfg, pictures_dir)
            if isinstance(evaluator, SemSegEvaluator):
                evaluator.observers += writers
            elif writers:  # one of the user's own, which draws no truth
                drawing = [_PictureEvaluator(writer) for writer in writers]
                evaluator = DatasetEvaluators([evaluator, *drawing])
        results[name] = run_test(own_cfg, network, evaluator, build_loader=build_loader)
        if network is not predicting:
            network.log()
    warn_of_unread_keys(cfg, eval_only=True)
    return results[name] if len(results) == 1 else results


def _picture_writers(cfg: CfgNode, pictures_dir: str) -> list[PictureWriter]:
    if not pictures_dir:
        return []
    (name,) = cfg.DATASETS.TEST
    folder = os.path.join(pictures_dir, folder_name(name))
    metadata, num_classes = MetadataCatalog.get(name), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return [PictureWriter(folder, metadata, num_classes, ImageSettings.from_config(cfg))]


def _pictures_only(cfg: CfgNode, pictures_dir: str, saves: bool) -> DatasetEvaluator | None:
    """Evaluator that only draws, for a data set without labels; None for one with labels."""
    (name,) = cfg.DATASETS.TEST
    if not (saves or pictures_dir) or _is_labelled(DatasetCatalog.get(name)):
        return None
    logger.warning("%s has no labels: it is predicted, not evaluated.", name)
    return DatasetEvaluators([_PictureEvaluator(p) for p in _picture_writers(cfg, pictures_dir)])


class _PictureEvaluator(DatasetEvaluator):
    """Draws the predictions of a data set without labels."""

    def __init__(self, pictures: PictureWriter) -> None:
        self.pictures = pictures

    def process(self, inputs: list[Mapping[str, Any]], outputs: list[Mapping[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            name = sample["file_name"]
            class_ids = to_class_ids(output["sem_seg"], self.pictures.num_classes, name)
            self.pictures.write(name, class_ids)
