"""Predictions of single images: scores, label maps, test-time augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from offseg_d2.config import load_config
from offseg_d2.inference.predictor import Predictor, find_images
from offseg_d2.visualization.drawing import DrawOptions, draw_labels
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


def pictures() -> list[np.ndarray]:
    """Images of three sizes, two of which are one for the network."""
    random = np.random.default_rng(1)
    sizes = [(64, 96), (128, 192), (96, 64), (64, 96), (50, 70)]
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("TEST.SEM_SEG.MODE", "slide", "TEST.SEM_SEG.CROP_SIZE", [32, 32],
         "TEST.SEM_SEG.STRIDE", [24, 24]),
        ("TEST.SEM_SEG.TTA.ENABLED", True, "TEST.SEM_SEG.TTA.RATIOS", [0.5]),
        ("TEST.DEPLOY", True),
    ],
    ids=["whole", "slide", "augmented", "deployed"],
)  # fmt: skip
def test_a_batch_gives_what_each_image_gives_alone(weights, opts):
    predict, images = predictor(weights, *opts), pictures()
    together = predict.label_maps(images)
    for image, labels in zip(images, together, strict=True):
        assert labels.shape == image.shape[:2]
        assert np.mean(labels == predict.label_map(image)) > 0.999
    assert predict.label_maps([]) == []


def test_images_of_one_size_for_the_network_are_one_batch(weights):
    predict = predictor(weights)
    batches = []
    predict.model.backbone.register_forward_pre_hook(lambda _, args: batches.append(args[0].shape))
    predict.label_maps(pictures())
    assert sorted(shape[0] for shape in batches) == [1, 1, 3]
    for image in pictures():
        assert predict.input_size(*image.shape[:2]) == predict.sample(image)["image"].shape[1:]


def test_the_deployed_model_predicts_the_same_and_leaves_the_trained_one(weights, image):
    plain, fast = predictor(weights), predictor(weights, "TEST.DEPLOY", True)
    assert_close(fast(image), plain(image), 1e-4, reason="merged and folded convolutions")
    assert np.mean(fast.label_map(image) == plain.label_map(image)) > 0.999
    assert fast.model.state_dict().keys() == plain.model.state_dict().keys()
    calls = []
    fast.model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    fast.label_map(image)
    assert not calls


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x.jpg", "nowhere://x.jpg"])
def test_address_that_cannot_be_read_is_named(address):
    with pytest.raises(ValueError, match=f"`--input` must name files .* '{address}' cannot be"):
        find_images([address])
