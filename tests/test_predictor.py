"""Predictions of single images: scores, label maps, test-time augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from offseg_d2.config import load_config
from offseg_d2.demo import DrawOptions, draw_labels
from offseg_d2.predictor import Predictor
from tests.common import ROOT, SMALL_OFFSEG, assert_close, seed_all, spread_weights

CONFIG = ROOT / "configs/shapes/offseg_t_offset_demo.yaml"
SMALL = (*SMALL_OFFSEG[:-2], "INPUT.RESIZE.SCALE_TEST", [48, 32], "MODEL.DEVICE", "cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    seed_all()
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    model = spread_weights(build_model(load_config(str(CONFIG), SMALL)))
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def predictor(weights: Path, *opts: object) -> Predictor:
    return Predictor(load_config(str(CONFIG), [*SMALL, "MODEL.WEIGHTS", str(weights), *opts]))


def test_the_label_map_is_the_best_class_of_the_scores(weights, image):
    predict = predictor(weights)
    labels, scores = predict.label_map(image), predict(image)
    assert labels.shape == (64, 96) and scores.shape == (8, 64, 96)
    assert np.array_equal(labels, scores.argmax(0).numpy())
    assert len(np.unique(labels)) > 1


def test_augmentation_sees_the_image_as_it_is(weights, image):
    opts = ("TEST.SEM_SEG.TTA.ENABLED", True, "TEST.SEM_SEG.TTA.RATIOS", [0.5])
    predict = predictor(weights, *opts, "TEST.SEM_SEG.TTA.FLIP", False)
    probabilities = predict(image)
    assert_close(probabilities.sum(0), torch.ones(64, 96))
    assert np.array_equal(predict.label_map(image), probabilities.argmax(0).numpy())
    # Half of 64x96 is the test scale of the plain predictor: the same view.
    assert_close(probabilities, predictor(weights)(image).softmax(0))


def test_classes_without_names_are_drawn_too(weights, image):
    predict = predictor(weights, "DATASETS.TEST", "()", "DATASETS.TRAIN", "()")
    assert predict.metadata.stuff_classes == [f"class {index}" for index in range(8)]
    labels = predict.label_map(image)
    coloured = draw_labels(image, labels, predict.metadata, DrawOptions(opacity=1.0))
    assert len(np.unique(coloured.reshape(-1, 3), axis=0)) > 1
