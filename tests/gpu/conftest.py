"""The device of these tests, and a drawn data set to train on."""

import os

import pytest
import torch

from offseg_d2.data.datasets.shapes import ShapesParams, register_shapes


@pytest.fixture(scope="session")
def device() -> str:
    """Device to test: "cuda", or ``OFFSEG_TEST_DEVICE`` to try the tests themselves without one."""
    name = os.environ.get("OFFSEG_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device is available")
    return name


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> list:
    """KEY VALUE changes of a configuration: drawn scenes, a few iterations."""
    root = tmp_path_factory.mktemp("datasets")
    previous = os.environ.get("DETECTRON2_DATASETS")
    os.environ["DETECTRON2_DATASETS"] = str(root)
    register_shapes("gpu_scenes", ShapesParams(num_train=8, num_val=2, size=(96, 128)))
    yield [
        *("DATASETS.TRAIN", "['gpu_scenes_train']", "DATASETS.TEST", "['gpu_scenes_val']"),
        *("SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 0, "SOLVER.IMS_PER_BATCH", 4),
        *("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.LOG_PERIOD", 2, "TEST.EVAL_PERIOD", 0),
        *("INPUT.CROP.SIZE", [64, 96], "DATALOADER.NUM_WORKERS", 2),
    ]
    if previous is None:
        del os.environ["DETECTRON2_DATASETS"]
    else:
        os.environ["DETECTRON2_DATASETS"] = previous
