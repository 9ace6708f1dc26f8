"""Low-pass filtering of shrinking images decides about the result."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from offseg_d2.config import load_config
from offseg_d2.data import build_test_loader
from offseg_d2.evaluation import SemSegEvaluator
from tests.common import ROOT
from tests.data.common import write_label

HEIGHT, WIDTH = 96, 128
SMALL = (36, 48)  # height, width at the reduced scale: 3/8
FENCE, WALL, GRASS = range(3)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 BGR image and (H, W) labels: a fence of fine black and white slats, a grey
    wall, and grass."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    labels = np.full((HEIGHT, WIDTH), WALL, np.uint8)
    slats = np.arange(WIDTH) // 2 % 2 * 255
    image[:48, :80], labels[:48, :80] = slats[None, :80, None], FENCE
    image[48:, 60:], labels[48:, 60:] = (20, 200, 40), GRASS
    return image, labels


def classify(image: np.ndarray) -> np.ndarray:
    """A network that goes by colour: (h, w, 3) BGR -> (h, w) class ids."""
    values = image.astype(int)
    colourful = values.max(axis=-1) - values.min(axis=-1) > 60
    extreme = np.abs(values.mean(axis=-1) - 128) > 70
    return np.where(colourful, GRASS, np.where(extreme, FENCE, WALL))


def enlarge(ids: np.ndarray) -> np.ndarray:
    rows, columns = (np.arange(n) * m // n for n, m in zip((HEIGHT, WIDTH), SMALL, strict=True))
    return ids[rows][:, columns]


def mean_iou(ids: np.ndarray, labels: np.ndarray) -> float:
    """Mean IoU in percent."""
    pairs = [(ids == k, labels == k) for k in range(3)]
    return 100 * float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


@pytest.fixture
def cfg(tmp_path):
    """Configuration of the one picture, tested at the reduced scale."""
    image, labels = scene()
    (tmp_path / "images/val").mkdir(parents=True)
    assert cv2.imwrite(str(tmp_path / "images/val/scene.png"), image)
    write_label(tmp_path / "annotations/val/scene.png", labels)
    (tmp_path / "classes.txt").write_text("fence\nwall\ngrass\n")
    options = {
        "DATASETS.TEST": (f"folder:{tmp_path}:val",),
        "INPUT.RESIZE.SCALE_TEST": SMALL[::-1],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
        "MODEL.DEVICE": "cpu",
        "DATALOADER.NUM_WORKERS": 0,
    }
    pairs = [entry for key, value in options.items() for entry in (key, value)]
    return load_config(str(ROOT / "configs/base/datasets/camvid.yaml"), pairs)


def test_antialiasing_changes_miou_and_ours_is_that_of_opencv(cfg):
    image, labels = scene()
    evaluator = SemSegEvaluator(["fence", "wall", "grass"], 255, lambda sample: labels)
    evaluator.reset()
    for batch in build_test_loader(cfg, cfg.DATASETS.TEST[0]):
        ids = enlarge(classify(batch[0]["image"].numpy().transpose(1, 2, 0)[..., ::-1]))
        scores = torch.nn.functional.one_hot(torch.from_numpy(ids), 3).permute(2, 0, 1).float()
        evaluator.process(batch, [{"sem_seg": scores}])
    ours = evaluator.evaluate()["sem_seg"]["mIoU"]

    size = SMALL[::-1]
    opencv = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    pillow = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    assert ours == pytest.approx(mean_iou(enlarge(classify(opencv)), labels), abs=1e-9)
    assert ours - mean_iou(enlarge(classify(pillow)), labels) > 20
