"""Balanced class weights from the training labels, by hand."""

import logging

import numpy as np
import pytest

from offseg_d2.config import load_config
from offseg_d2.data import adapt_to_folders, balance_class_weights, class_weights
from tests.data.common import write_image, write_label

KEY = "MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS"


@pytest.fixture
def root(tmp_path):
    """8 labelled pixels: 6 of a, 2 of b, none of c."""
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    for index, row in enumerate(([0, 0, 0, 1, 255], [0, 0, 0, 1, 255])):
        write_image(tmp_path / f"images/train/{index}.png", 1, 5)
        write_label(tmp_path / f"annotations/train/{index}.png", np.array([row]))
    return tmp_path


def config(root, *opts):
    cfg = load_config("", ["DATASETS.TRAIN", f"('folder:{root}:train',)", *opts])
    adapt_to_folders(cfg)
    cfg.freeze()
    return cfg


def test_weights_are_inverse_to_the_pixels(root, caplog):
    cfg = config(root, KEY, "balanced")
    with caplog.at_level(logging.INFO, logger="offseg_d2.data"):
        balance_class_weights(cfg)
    # N / (K n): 8 / (2 * 6), 8 / (2 * 2); c does not occur
    assert cfg.MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS == [0.6667, 2.0, 1.0]
    assert cfg.is_frozen()
    assert "a 0.6667, b 2, c 1" in caplog.text
    balance_class_weights(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS == [0.6667, 2.0, 1.0]


def test_large_sets_are_sampled(root, monkeypatch):
    monkeypatch.setattr(class_weights, "_MAX_LABELS", 1)
    write_label(root / "annotations/train/1.png", np.array([[1, 1, 1, 1, 1]]))
    cfg = config(root, KEY, "balanced")
    balance_class_weights(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.LOSS.CLASS_WEIGHTS == [0.6667, 2.0, 1.0]


@pytest.mark.parametrize("opts", [(), (KEY, "[1, 2, 3]")])
def test_other_values_stay(root, opts):
    cfg = config(root, *opts)
    before = cfg.clone()
    balance_class_weights(cfg)
    assert cfg == before
