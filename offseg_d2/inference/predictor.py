"""Prediction of single images, and the files of a demonstration.

:class:`Predictor` is used like Detectron2's ``DefaultPredictor``, but resizes as the dataset mapper
does, with OpenCV, and reads checkpoints of any known origin without executing anything.
"""

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from offseg_d2.checkpoint import build_checkpointer
from offseg_d2.config import ConfigError
from offseg_d2.data import ImageReader, ImageSettings, build_augmentations, ensure_registered
from offseg_d2.inference.preprocessing import to_sample
from offseg_d2.modeling import (
    AugmentedModel,
    Segmentor,
    available_device,
    build_evaluation_model,
    build_model,
)
from offseg_d2.modeling.meta_arch.scores import resized_blocks
from offseg_d2.utils.io import is_system_entry, list_folder
from offseg_d2.visualization.classes import to_labels

logger = logging.getLogger(__name__)

# What a folder is searched for; a file that is named itself may end as it likes.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# A header of some bytes can announce more than any memory holds.
MAX_PIXELS = 200_000_000
_WRITTEN_SUFFIXES = (".jpeg", ".jpg", ".png")  # others become .png


class Predictor:
    """A trained model for single images.

    Args:
        cfg: configuration; ``MODEL.WEIGHTS`` names the checkpoint, and the first of
            ``DATASETS.TEST`` (else of ``DATASETS.TRAIN``) gives names and colours of the classes.
        metadata: names and colours of the classes, where the dataset is not known.

    Attributes:
        cfg: configuration with the device that is really used.
        model: in evaluation mode, as it was trained; with ``TEST.DEPLOY`` a faster copy predicts.
        metadata: of the dataset.
        read: reads image files as the configuration says, up to 200 megapixels.

    Raises:
        ConfigError: ``MODEL.WEIGHTS`` is empty, the dataset has another number of classes, or
            ``TEST.DEPLOY`` is True for a model without a deployed form.
        FileNotFoundError, CheckpointError: the checkpoint cannot be used.
    """

    def __init__(self, cfg: CfgNode, *, metadata: Metadata | None = None) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError("`MODEL.WEIGHTS` must name the file to predict with, but is ''.")
        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
        self.cfg.freeze()
        self.metadata = metadata or _metadata_of([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN])
        self._check_classes()
        self.read = ImageReader(ImageSettings.from_config(cfg)._replace(max_pixels=MAX_PIXELS))
        self._resizes = build_augmentations(self.cfg, is_train=False)
        self.model = build_model(self.cfg).eval()
        checkpointer = build_checkpointer(self.cfg, self.model)
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[], complete=True)
        self._network = self._predicting_form()
        self._evaluation_model = build_evaluation_model(self.cfg, self._network)

    def _predicting_form(self) -> nn.Module:
        if not self.cfg.TEST.DEPLOY:
            return self.model
        from offseg_d2.deploy.from_config import deployed  # only where it is asked for

        return deployed(self.cfg, self.model)

    def _check_classes(self) -> None:
        num_classes = self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        known = len(getattr(self.metadata, "stuff_classes", []))
        if not known:  # no data set is named
            known, names = num_classes, [f"class {index}" for index in range(num_classes)]
            self.metadata = Metadata(name=self.metadata.name, stuff_classes=names)
        if num_classes != known:
            raise ConfigError(
                f"`MODEL.SEM_SEG_HEAD.NUM_CLASSES` must be {known} for dataset "
                f"'{self.metadata.name}', but is {num_classes}."
            )

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> Tensor:
        """Predict one image.

        Args:
            image: (H, W, 3) uint8 **BGR**, as OpenCV reads it.

        Returns:
            (K, H, W) scores on the model's device; probabilities with test-time augmentation.
        """
        sample = self.sample(image)
        if isinstance(self._evaluation_model, AugmentedModel):
            return self._evaluation_model.mean_probabilities(sample)
        return self._network([sample])[0]["sem_seg"]

    def label_map(self, image: np.ndarray) -> np.ndarray:
        """Predict the best class of each pixel; takes less memory and time than all scores.

        Args:
            image: (H, W, 3) uint8 **BGR**, as OpenCV reads it.

        Returns:
            (H, W) integer class ids.
        """
        return self.label_maps([image])[0]

    @torch.inference_mode()
    def label_maps(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Predict several images together.

        Those of one size for the network (:meth:`input_size`) go through it as one batch, others
        one after another. An image's label map does not depend on the others, but for ties within
        rounding.

        Args:
            images: each (H, W, 3) uint8 **BGR**, of any sizes; all are in memory at once.

        Returns:
            (H, W) integer class ids of each, in the same order.
        """
        if not images:
            return []
        outputs = self._evaluation_model([self.sample(image) for image in images])
        return [to_labels(output["sem_seg"]) for output in outputs]

    @torch.inference_mode()
    def probability_blocks(self, image: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        """Predict the probabilities of all classes, some rows at a time.

        Mask-query models give each class a sum over the queries; it is divided by that of all.

        Args:
            image: (H, W, 3) uint8 **BGR**, as OpenCV reads it.

        Yields:
            first row, and (K, n, W) from there on, whose sum over the classes is 1; each row once,
            from top to bottom. With test-time augmentation all rows at once.
        """
        if isinstance(self._evaluation_model, AugmentedModel) or not isinstance(
            self._network, Segmentor
        ):
            scores = self(image)
            is_augmented = isinstance(self._evaluation_model, AugmentedModel)
            blocks = iter([(0, scores if is_augmented else scores.softmax(0))])
        else:
            blocks = self._stream_probabilities(image)
        for first, block in blocks:
            yield first, block / block.sum(0, keepdim=True).clamp(min=torch.finfo(block.dtype).tiny)

    def _stream_probabilities(self, image: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        for _, scores in self._network.stream_scores([self.sample(image)]):
            for first, block in resized_blocks(scores, image.shape[:2]):
                yield first, self._network.probabilities(block)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the network sees an image of this height and width."""
        for resize in self._resizes:
            height, width = resize.draw_size(height, width)
        return height, width

    def sample(self, image: np.ndarray) -> dict[str, Any]:
        """Resize an image (H, W, 3) BGR to the test scale and lay it out as the model takes it."""
        return to_sample(image, self.input_size(*image.shape[:2]), self.cfg.INPUT.FORMAT)


def _metadata_of(dataset_names: Sequence[str]) -> Metadata:
    try:
        ensure_registered(dataset_names[:1])
    except FileNotFoundError as error:  # a model may travel without its data
        logger.warning("Classes have no names in the pictures: %s", error)
    return MetadataCatalog.get(dataset_names[0] if dataset_names else "__unnamed__")


def find_images(inputs: Iterable[str], also: tuple[str, ...] = ()) -> list[str]:
    """List the images that ``inputs`` name, each once.

    Args:
        inputs: image files, folders (their images are taken, not those of folders inside) and
            patterns such as ``"frames/*.jpg"``.
        also: further suffixes that are taken from folders.

    Raises:
        ValueError: one of them matches nothing.
    """
    found: dict[str, None] = {}
    suffixes = IMAGE_SUFFIXES + also
    for name in inputs:
        if "://" in name:
            found[_fetched(name)] = None
            continue
        if PathManager.isdir(name):
            entries = (os.path.join(name, entry) for entry in list_folder(name))
            matches = [path for path in entries if path.lower().endswith(suffixes)]
        elif PathManager.isfile(name):
            matches = [name]
        else:
            matches = [
                path
                for path in glob.glob(name, recursive=True)
                if os.path.isfile(path) and not is_system_entry(path)
            ]
        if not matches:
            raise ValueError(
                f"`--input` must name images, folders of images or patterns of such, "
                f"but nothing matches '{name}'."
            )
        found.update(dict.fromkeys(sorted(matches)))
    return list(found)


def _fetched(address: str) -> str:
    """Local copy of a file that iopath can fetch.

    Raises:
        ValueError: it cannot.
    """
    try:
        path = PathManager.get_local_path(address)
        if not os.path.isfile(path):  # iopath takes an unknown kind of address for a path
            raise FileNotFoundError("there is no such file")
        return path
    except Exception as error:  # of the network, or of iopath
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"`--input` must name files that can be read, but '{address}' cannot be: {reason}."
        ) from None


def output_paths(
    images: Sequence[str], output_dir: str, suffixes: Mapping[str, str] | None = None
) -> list[str]:
    """Choose the picture files: named as the image; .jpg and .png stay, all others become .png.

    Args:
        images: files.
        output_dir: folder.
        suffixes: image -> suffix of its picture, where it is another one.

    Raises:
        ValueError: an image would be overwritten, or two images would share a picture file.
    """
    originals = {os.path.realpath(path): path for path in images}
    chosen: dict[str, str] = {}  # picture -> image
    for image in images:
        stem, suffix = os.path.splitext(os.path.basename(image))
        suffix = suffix if suffix.lower() in _WRITTEN_SUFFIXES else ".png"
        suffix = (suffixes or {}).get(image, suffix)
        path = os.path.join(output_dir, stem + suffix)
        if os.path.realpath(path) in originals:
            raise ValueError(
                f"`--output` must be a folder where no image is overwritten, but '{path}' is one "
                f"of the images; name another folder."
            )
        if path in chosen:
            raise ValueError(
                f"`--input` must name images of different names, but '{chosen[path]}' and "
                f"'{image}' would both be drawn into '{path}'."
            )
        chosen[path] = image
    return list(chosen)
