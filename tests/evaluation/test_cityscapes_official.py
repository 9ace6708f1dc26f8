"""Scores equal cityscapesScripts' official evaluator on the same files.

``pip install cityscapesscripts``, then ``pytest -m peers tests/evaluation``.
"""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from offseg_d2.data import label_map_of, read_label_map
from offseg_d2.evaluation import PredictionFolder, SemSegEvaluator

pytestmark = pytest.mark.peers

FRAMES = ("frankfurt_000000_000294", "frankfurt_000001_007973", "lindau_000003_000019")
SIZE = (128, 256)


def draw_labels(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """(128, 256) uint8 blocks of the given ids."""
    coarse = rng.choice(ids, (8, 16)).astype(np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Images and labels of the validation split in the layout of the downloads."""
    rng = np.random.default_rng(0)
    ids = np.arange(33)  # bicycle, 33, does not occur
    for frame in FRAMES:
        city = frame.split("_")[0]
        for kind, suffix, content in (
            ("leftImg8bit", "leftImg8bit", rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)),
            ("gtFine", "gtFine_labelIds", draw_labels(rng, ids)),
        ):
            folder = tmp_path / "cityscapes" / kind / "val" / city
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(folder / f"{frame}_{suffix}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def predict(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Class ids, some wrong, one class (1) never predicted, one (18) never labelled."""
    prediction = np.where(label == 255, rng.integers(2, 19, label.shape), label)
    wrong = rng.random(label.shape) < 0.3
    prediction[wrong] = rng.integers(2, 19, wrong.sum())
    prediction[prediction == 1] = 0
    return prediction


def official_scores(root, predictions) -> dict:
    module = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    args = module.args
    args.predictionPath, args.predictionWalk = str(predictions), None
    args.evalInstLevelScore = args.JSONOutput = False
    args.quiet = True
    labels = sorted(str(path) for path in root.glob("cityscapes/gtFine/val/*/*_labelIds.png"))
    found = [module.getPrediction(args, label) for label in labels]
    return module.evaluateImgLists(found, labels, args)


def test_class_iou_and_its_mean_equal_the_official_evaluator_on_the_written_files(root, tmp_path):
    samples = DatasetCatalog.get("cityscapes_19_val")
    metadata = MetadataCatalog.get("cityscapes_19_val")
    folder = PredictionFolder(
        str(tmp_path / "predictions"), "cityscapes", metadata.stuff_colors, metadata.image_root
    )
    label_files = {sample["file_name"]: sample["sem_seg_file_name"] for sample in samples}

    def read_label(sample):
        return read_label_map(label_files[sample["file_name"]], label_map_of(metadata))

    evaluator = SemSegEvaluator(metadata.stuff_classes, 255, read_label)
    rng = np.random.default_rng(1)
    for sample in samples:
        folder.write(sample["file_name"], predict(read_label(sample), rng))
        evaluator.process([sample], [{"sem_seg": torch.from_numpy(folder.load(sample))}])
    ours = evaluator.evaluate()["sem_seg"]

    theirs = official_scores(root, tmp_path / "predictions")
    assert len(samples) == len(FRAMES)
    assert ours["IoU-bicycle"] == 0  # predicted, never labelled: counts, here and there
    for name in metadata.stuff_classes:
        assert ours[f"IoU-{name}"] == pytest.approx(
            100 * theirs["classScores"][name], rel=1e-12, nan_ok=True
        )
    assert ours["mIoU"] == pytest.approx(100 * theirs["averageScoreClasses"], rel=1e-12)
    assert 20 < ours["mIoU"] < 80
