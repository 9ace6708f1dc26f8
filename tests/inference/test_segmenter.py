"""A checkpoint and an image to a segmentation."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from offseg_d2 import Segmenter
from offseg_d2.checkpoint import CheckpointError
from offseg_d2.config import ConfigError, load_config
from offseg_d2.data import ImageReader
from offseg_d2.engine import Trainer
from offseg_d2.inference.predictor import Predictor
from offseg_d2.inference.segmenter import _read
from tests.common import ROOT, SMALL_OFFSEG, spread_weights

CONFIG = ROOT / "configs/shapes/offseg_t_offset_demo.yaml"
SMALL = (*SMALL_OFFSEG[:-2], "INPUT.RESIZE.SCALE_TEST", [48, 32], "MODEL.DEVICE", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """Checkpoint as a training writes it."""
    folder = tmp_path_factory.mktemp("run")
    options = [*SMALL, "OUTPUT_DIR", str(folder), "DATASETS.TEST", "()", "SEED", 1]
    trainer = Trainer(load_config(str(CONFIG), options))
    spread_weights(trainer.model)
    trainer.iter = 0
    trainer.save_checkpoint("model_final")
    return str(folder / "model_final.pth")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def test_checkpoint_is_enough(checkpoint, image):
    result = Segmenter.from_checkpoint(checkpoint)(image)
    cfg = load_config(str(CONFIG), [*SMALL, "MODEL.WEIGHTS", checkpoint])
    expected = Predictor(cfg).label_map(np.ascontiguousarray(image[..., ::-1]))
    assert np.array_equal(result.labels, expected)
    assert len(np.unique(result.labels)) > 1
    assert np.array_equal(result.image, image)


def test_arrays_files_and_pil_images_are_the_same(checkpoint, image, tmp_path):
    segment = Segmenter.from_checkpoint(checkpoint, device="cpu")
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    expected = segment(image).labels
    assert np.array_equal(segment(tmp_path / "image.png").labels, expected)
    assert np.array_equal(segment(Image.fromarray(image)).labels, expected)
    grey = image[..., 0]
    assert np.array_equal(segment(grey).labels, segment(np.stack([grey] * 3, axis=2)).labels)


def pillow_images(image):
    """Images as PIL holds them, and options of ``save`` that keep them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(image)
    turned.info["exif"] = exif.tobytes()
    opacity = np.linspace(0, 255, image[..., 0].size, dtype=np.uint8).reshape(image.shape[:2])
    wide = Image.fromarray(image[..., 0].astype(np.uint16) * 256 + 77)
    palette = Image.fromarray(image).quantize(40)
    return {
        "turned": (turned, {"exif": exif.tobytes()}),
        "RGBA": (Image.fromarray(np.dstack([image, opacity])), {}),
        "LA": (Image.fromarray(np.dstack([image[..., 0], opacity])), {}),
        "P": (palette, {}),
        "1": (Image.fromarray(image[..., 0] > 99), {}),
        "I;16": (wide, {}),
    }


@pytest.mark.parametrize("kind", ["turned", "RGBA", "LA", "P", "1", "I;16"])
def test_pil_image_is_seen_as_its_file_is(image, tmp_path, kind):
    pillow, options = pillow_images(image)[kind]
    pillow.save(tmp_path / "image.png", **options)
    with Image.open(tmp_path / "image.png") as opened:
        _, expected = _read(tmp_path / "image.png", ImageReader())
        assert np.array_equal(_read(opened, ImageReader())[1], expected)
        assert expected.shape == ((96, 64, 3) if kind == "turned" else (64, 96, 3))


@pytest.mark.parametrize("mode", ["F", "I", "CMYK", "HSV"])
def test_pil_images_of_no_single_meaning_are_refused(mode):
    with pytest.raises(ValueError, match=rf"`image` must be of one .* but is '{mode}'"):
        _read(Image.new(mode, (3, 3)), ImageReader())


def test_a_list_of_images_gives_a_list_of_segmentations(checkpoint, image):
    segment = Segmenter.from_checkpoint(checkpoint)
    images = [image, image[::-1], Image.fromarray(image[:40])]
    results = segment.batch(images)
    assert [result.labels.shape for result in results] == [(64, 96), (64, 96), (40, 96)]
    for result, picture in zip(results, images, strict=True):
        alone = segment(picture)
        assert np.array_equal(result.image, alone.image)
        assert np.mean(result.labels == alone.labels) > 0.999


def test_areas_and_masks_cover_the_image(checkpoint, image, tmp_path):
    result = Segmenter.from_checkpoint(checkpoint)(image)
    areas = result.areas()
    assert sum(areas.values()) == pytest.approx(1.0)
    assert list(areas.values()) == sorted(areas.values(), reverse=True)
    assert {name: result.mask(name).mean() for name in areas} == pytest.approx(areas)
    with pytest.raises(ValueError, match="`name` must be one of"):
        result.mask("unicorn")
    result.save(str(tmp_path / "overlay.png"))
    assert np.array_equal(cv2.imread(str(tmp_path / "overlay.png"))[..., ::-1], result.overlay())
    assert np.array_equal(result.overlay(opacity=0.0).shape, image.shape)
    assert len(np.unique(result.colors().reshape(-1, 3), axis=0)) == len(areas)


def test_names_of_the_classes_travel_with_the_checkpoint(checkpoint, image, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    names = MetadataCatalog.get("shapes_train").stuff_classes
    assert content["classes"]["names"] == list(names)
    content["cfg"] = content["cfg"].replace("shapes_train", "unknown_here")
    torch.save(content, tmp_path / "travelled.pth")
    segment = Segmenter.from_checkpoint(str(tmp_path / "travelled.pth"))
    assert set(segment(image).areas()) <= set(names)


def test_checkpoint_without_configuration_needs_one(checkpoint, image, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    path = str(tmp_path / "weights.pth")
    torch.save({"model": content["model"]}, path)
    with pytest.raises(CheckpointError, match="must carry a configuration to be used alone"):
        Segmenter.from_checkpoint(path)
    options = [str(option) for option in SMALL]
    segment = Segmenter.from_checkpoint(path, config_file=str(CONFIG), opts=options)
    expected = Segmenter.from_checkpoint(checkpoint)(image)
    assert np.array_equal(segment(image).labels, expected.labels)


def test_configuration_of_a_checkpoint_is_plain_yaml(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["cfg"] = "!!python/object/apply:os.system ['true']"
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match="is not a plain YAML configuration"):
        Segmenter.from_checkpoint(str(tmp_path / "bad.pth"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "uint8 values, but is float64"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"shape \(H, W, 3\), but has \(4, 4, 4\)"),
        (3, "but is int"),
    ],
)
def test_what_is_no_image_is_refused(checkpoint, image, message):
    with pytest.raises(ValueError, match=message):
        Segmenter.from_checkpoint(checkpoint)(image)
