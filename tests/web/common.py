"""Small models with random weights, and images drawn for the page."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch

from offseg_d2.config import load_config
from offseg_d2.engine import Trainer
from offseg_d2.inference.segmenter import Segmenter
from offseg_d2.web.app import free_port, launch
from offseg_d2.web.results import Models
from offseg_d2.web.uploads import Limits
from tests.common import ROOT, SMALL_OFFSEG, seed_all, spread_weights

CONFIG = ROOT / "configs/shapes/offseg_t_offset_demo.yaml"
SMALL = (*SMALL_OFFSEG[:-2], "INPUT.RESIZE.SCALE_TEST", [128, 96], "MODEL.DEVICE", "cpu")


def write_checkpoint(folder: Path, *, classifier: str = "offset", seed: int = 0) -> str:
    """A checkpoint as a training writes it, of a small model with random weights."""
    seed_all(seed)
    options = [*SMALL, "OUTPUT_DIR", str(folder), "DATASETS.TEST", "()", "SEED", seed + 1]
    trainer = Trainer(load_config(str(CONFIG), [*options, *classifier_option(classifier)]))
    spread_weights(trainer.model)
    _favour_no_class(trainer.model)
    trainer.iter = 0
    trainer.save_checkpoint("model_final")
    return str(folder / "model_final.pth")


def classifier_option(classifier: str) -> tuple[str, str]:
    return ("MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier)


def _favour_no_class(model: torch.nn.Module) -> None:
    """Without biases of the scores, an image gets several classes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "classifier" in name and name.endswith("bias") and "offset" not in name:
                parameter.zero_()


def load(*checkpoints: str, limits: Limits | None = None) -> Models:
    segmenters = [Segmenter.from_checkpoint(path, device="cpu") for path in checkpoints]
    return Models(segmenters, limits or Limits())


@contextmanager
def served(models: Models, folder: Path, examples: Sequence[str] = (), **options) -> Iterator[str]:
    """Serve a page from this process; gives its address."""
    port = free_port("127.0.0.1", 0)
    # One folder for all servers: gradio has one for a process.
    files = os.environ.get("GRADIO_TEMP_DIR", str(folder))
    Path(files).mkdir(exist_ok=True)
    page = launch(models, examples, "127.0.0.1", port, files, **options)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.close(verbose=False)


def drawn(height: int = 96, width: int = 128) -> np.ndarray:
    """Sky, ground and a disc: (H, W, 3) uint8 RGB."""
    image = np.full((height, width, 3), (120, 180, 230), dtype=np.uint8)
    image[height // 2 :] = (120, 90, 60)
    cv2.circle(image, (width // 3, height // 2), height // 5, (230, 60, 60), -1)
    noise = np.random.default_rng(0).integers(-12, 13, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def write_drawn(path: Path, height: int = 96, width: int = 128) -> Path:
    cv2.imwrite(str(path), drawn(height, width)[..., ::-1])
    return path
