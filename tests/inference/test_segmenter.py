"""A checkpoint and an image to a segmentation."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from offseg_d2 import Segmenter
from offseg_d2.checkpoint import CheckpointError
from offseg_d2.config import ConfigError, load_config
from offseg_d2.data import ImageReader
from offseg_d2.engine import Trainer
from offseg_d2.inference.predictor import Predictor
from offseg_d2.inference.segmenter import Segmentation, _read
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


def test_names_in_the_checkpoint_win_over_those_of_a_data_set_here(checkpoint, image, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    names = [f"own {name}" for name in content["classes"]["names"]]
    content["classes"]["names"] = names
    torch.save(content, tmp_path / "renamed.pth")
    segment = Segmenter.from_checkpoint(str(tmp_path / "renamed.pth"))
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


# ---------------------------------------------------------------------- probabilities and shapes


@pytest.mark.parametrize("opts", [(), ("TEST.SEM_SEG.TTA.ENABLED", True, "TEST.DEPLOY", False)])
def test_confidence_is_the_probability_of_the_chosen_class(checkpoint, image, opts):
    segment = Segmenter.from_checkpoint(checkpoint, opts=opts)
    probabilities = segment.probabilities(image)
    assert probabilities.shape == (8, 64, 96) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    result = segment(image, confidence=True)
    np.testing.assert_array_equal(result.labels, probabilities.argmax(0))
    np.testing.assert_array_equal(result.confidence, probabilities.max(0))
    np.testing.assert_array_equal(result.labels, segment(image).labels)
    assert segment(image).confidence is None
    if not opts:
        bgr = np.ascontiguousarray(image[..., ::-1])
        expected = segment.predictor(bgr).softmax(0).numpy()
        np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)


def drawn(labels) -> Segmentation:
    labels = np.array(labels)
    metadata = Metadata(stuff_classes=["sky", "tree"])
    return Segmentation(np.zeros((*labels.shape, 3), np.uint8), labels, metadata)


def test_polygons_are_the_outlines_of_connected_parts():
    labels = np.zeros((8, 10), dtype=int)
    labels[1:7, 1:6] = 1
    labels[3, 3] = 0  # a hole
    labels[2:4, 7:9] = 1
    result = drawn(labels)
    large, small = result.polygons("tree")
    assert {tuple(corner) for corner in large.tolist()} == {(1, 1), (5, 1), (5, 6), (1, 6)}
    assert {tuple(corner) for corner in small.tolist()} == {(7, 2), (8, 2), (8, 3), (7, 3)}
    assert len(result.polygons("tree", min_area=2)) == 1
    assert drawn([[0, 0]]).polygons("tree") == []
    with pytest.raises(ValueError, match="`name` must be one of"):
        result.polygons("road")


def test_run_lengths_are_those_of_coco_and_json():
    labels = np.random.default_rng(0).integers(0, 2, (7, 9))
    rle = json.loads(json.dumps(drawn(labels).rle("tree")))
    assert rle["size"] == [7, 9]
    np.testing.assert_array_equal(coco_mask.decode(rle), labels)


# ---------------------------------------------------------------------- large images


class ByColour(Segmenter):
    """Labels a window by its red channel, and notes its size."""

    def __init__(self):
        self.sizes = []

    def __call__(self, image):
        self.sizes.append(image.shape[:2])
        return drawn(image[..., 0])


@pytest.mark.parametrize("size", [(30, 47), (20, 20), (21, 20), (7, 50), (60, 40)])
@pytest.mark.parametrize("overlap", [0, 5, 9])
def test_windows_cover_an_image_once_and_are_no_larger(size, overlap):
    segment = ByColour()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(segment.large(image, window=20, overlap=overlap), image[..., 0])
    assert set(segment.sizes) == {(min(size[0], 20), min(size[1], 20))}


def test_overlapping_windows_count_up_to_the_middle():
    class Numbered(ByColour):
        def __call__(self, image):
            super().__call__(image)
            return drawn(np.full(image.shape[:2], len(self.sizes)))

    labels = Numbered().large(np.zeros((1, 16, 3), np.uint8), window=10, overlap=4)
    assert labels.tolist() == [[1] * 8 + [2] * 8]


def test_label_map_of_a_large_image_goes_into_a_file(tmp_path):
    image = np.memmap(tmp_path / "image", dtype=np.uint8, mode="w+", shape=(30, 25, 3))
    image[:, 12:] = 1
    out = np.memmap(tmp_path / "labels", dtype=np.uint8, mode="w+", shape=(30, 25))
    assert ByColour().large(image, window=20, overlap=4, out=out) is out
    assert (out[:, :12] == 0).all() and (out[:, 12:] == 1).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"overlap": 10}, "`overlap` must be at least 0 and less than half"),
        ({"overlap": -1}, "`overlap` must be at least 0"),
        ({"out": np.zeros((3, 3), np.uint8)}, r"`out` must be integers of the shape \(4, 4\)"),
        ({"out": np.zeros((4, 4))}, "`out` must be integers"),
    ],
)
def test_impossible_windows_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ByColour().large(np.zeros((4, 4, 3), np.uint8), **{"window": 20, "overlap": 2, **options})
    with pytest.raises(ValueError, match=r"`image` must be uint8 values of the shape \(H, W, 3\)"):
        ByColour().large(np.zeros((4, 4), np.uint8))
