"""Train a small OffSeg on scenes drawn by the project, evaluate it, draw what it sees.

::

    offseg make-demo

Needs no data set and no GPU, and takes a few minutes on two cores. Each run starts from scratch and
replaces what the last one left in ``output/demo``.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offseg_d2.utils.cli import report_user_errors

if TYPE_CHECKING:
    from detectron2.config import CfgNode

CONFIG = "shapes/offseg_t_offset_demo"
NUM_PICTURES = 8
LEFT_BY_A_RUN = ("*.pth", "events.*", "log.txt", "metrics.*", "last_checkpoint", "pictures/*.png")


def remove_last_run(folder: Path) -> None:
    """Remove the files of an earlier demo, and nothing else."""
    for path in itertools.chain.from_iterable(folder.glob(p) for p in LEFT_BY_A_RUN):
        path.unlink()


def chance_miou(dataset_name: str) -> float:
    """mIoU in percent of always predicting the data set's most frequent class."""
    import numpy as np
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from offseg_d2.data import label_map_of, read_label_map
    from offseg_d2.evaluation import metrics_from_confusion

    metadata = MetadataCatalog.get(dataset_name)
    files = [sample["sem_seg_file_name"] for sample in DatasetCatalog.get(dataset_name)]
    labels = np.concatenate([read_label_map(f, label_map_of(metadata)).ravel() for f in files])
    counts = np.bincount(labels, minlength=256)[: len(metadata.stuff_classes)]
    confusion = np.zeros((len(counts) + 1, len(counts) + 1), dtype=np.int64)
    confusion[:-1, counts.argmax()] = counts
    return 100 * metrics_from_confusion(confusion).miou


def draw_pictures(cfg: "CfgNode", folder: Path) -> None:
    """Draw image, prediction and truth of some scenes of the validation set."""
    import numpy as np
    from detectron2.data import DatasetCatalog

    from offseg_d2.data import label_map_of, read_image, read_label_map
    from offseg_d2.inference.predictor import Predictor
    from offseg_d2.utils.io import write_picture
    from offseg_d2.visualization.overlay import enlarge, legend, overlay, side_by_side

    predictor = Predictor(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    for sample in DatasetCatalog.get(cfg.DATASETS.TEST[0])[:NUM_PICTURES]:
        bgr = read_image(sample["file_name"])
        image = np.ascontiguousarray(bgr[..., ::-1])
        grey = np.repeat(bgr.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
        truth = read_label_map(sample["sem_seg_file_name"], label_map_of(predictor.metadata))
        drawn = [  # over grey the colours are those of the legend, whatever the image's are
            overlay(grey, labels, predictor.metadata, opacity=0.65, names=False, scale=1.5)
            for labels in (predictor(bgr), truth)
        ]
        row = side_by_side([enlarge(image, 1.5), *drawn], ("image", "prediction", "truth"))
        picture = np.concatenate([row, legend(predictor.metadata, row.shape[1])])
        write_picture(str(folder / f"{Path(sample['file_name']).stem}.png"), picture)


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    return argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run() -> None:
    from offseg_d2.config import load_config
    from offseg_d2.engine import train

    start = time.perf_counter()
    cfg = load_config(CONFIG)
    folder = Path(cfg.OUTPUT_DIR)
    remove_last_run(folder)
    finished = train(CONFIG)
    miou = finished.results["sem_seg"]["mIoU"]
    trained = load_config(CONFIG, {"MODEL.WEIGHTS": finished.last})
    draw_pictures(trained, folder / "pictures")
    chance = chance_miou(cfg.DATASETS.TEST[0])
    print(
        f"\nmIoU on {cfg.DATASETS.TEST[0]}: {miou:.1f} % (always the most frequent class: "
        f"{chance:.1f} %), after {time.perf_counter() - start:.0f} s\n"
        f"pictures: {folder / 'pictures'} (image | prediction | truth)\n"
        f"model:    {folder / 'model_final.pth'}\n"
        f"log:      {folder / 'log.txt'}, values in {folder / 'metrics.json'}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    make_parser().parse_args(arguments)
    report_user_errors(run)
