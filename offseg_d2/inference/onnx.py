"""Exported models at work: an ONNX file in place of configuration and checkpoint.

Shapes: B images of one size, K classes, H x W image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from torch import Tensor

from offseg_d2.data import ImageReader, ImageSettings
from offseg_d2.data.augmentation import CvResizeTransform, keep_ratio_size
from offseg_d2.export.description import KEY, ModelDescription
from offseg_d2.export.sessions import open_session
from offseg_d2.inference.predictor import MAX_PIXELS
from offseg_d2.inference.preprocessing import to_sample
from offseg_d2.modeling.meta_arch import predict
from offseg_d2.modeling.meta_arch.common import group_by_size
from offseg_d2.modeling.meta_arch.inference import resize_logits


class OnnxSegmenter:
    """A file by ``offseg export`` at work; called like ``Predictor``.

    Args:
        path: the ONNX file, which describes all that is needed.
        options: "runtime", "threads", "providers" of :func:`offseg_d2.export.open_session`.

    Attributes:
        description: what the file says about itself.
        metadata: names and colours of the classes.
        session: the file, opened by the runtime.
        read: reads image files as the exported configuration said, up to 200 megapixels.

    Raises:
        OSError: if the runtime is not installed or the file cannot be read.
        ValueError: if the file is no ONNX model, or none by ``offseg export``.
    """

    def __init__(self, path: str, **options: Any) -> None:
        with PathManager.open(path, "rb") as file:
            content = file.read()
        self.session = open_session(content, path, **options)
        if KEY not in self.session.metadata:
            raise ValueError(
                f"`{path}` must be a model by `offseg export`, but describes no classes."
            )
        self.description = ModelDescription.from_json(self.session.metadata[KEY], path)
        settings = ImageSettings(self.description.max_value_16_bit, self.description.bands)
        self.read = ImageReader(settings._replace(max_pixels=MAX_PIXELS))
        self.metadata = Metadata(
            name=path,
            stuff_classes=list(self.description.classes),
            stuff_colors=[list(color) for color in self.description.colors],
        )

    def __call__(self, image: np.ndarray) -> Tensor:
        """Class scores of one image.

        Args:
            image: (H, W, 3) uint8 **BGR**, as OpenCV reads it.

        Returns:
            (K, H, W) scores.

        Raises:
            ValueError: if the file gives label maps.
        """
        if self.description.output != "logits":
            raise ValueError(
                "`output` of an exported model must be 'logits' to give scores, but is "
                f"{self.description.output!r}."
            )
        scores = predict(self._run, self._sample(image)["image"][None], self.description.inference)
        return resize_logits(scores, image.shape[:2])[0]

    def label_map(self, image: np.ndarray) -> np.ndarray:
        """Best class of each pixel; (H, W, 3) uint8 **BGR** -> (H, W) integer class ids.

        A label map of another size than the image is resized by the nearest index.
        """
        return self.label_maps([image])[0]

    def label_maps(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """:meth:`label_map` of several images; those of one :meth:`input_size` share batches.

        A file that gives logits needs memory for the scores of a whole batch.

        Args:
            images: each (H, W, 3) uint8 **BGR**, of any sizes.

        Returns:
            (H, W) integer class ids of each, in the same order.
        """
        samples = [self._sample(image) for image in images]
        found: dict[int, np.ndarray] = {}
        for same_size in group_by_size([sample["image"] for sample in samples]):
            batch = torch.stack([samples[i]["image"] for i in same_size])
            if self.description.output == "logits":
                outputs = predict(self._run, batch, self.description.inference)
            else:
                outputs = self._run(batch)
            for i, output in zip(same_size, outputs, strict=True):
                found[i] = _labels(output, images[i].shape[:2])
        return [found[i] for i in range(len(images))]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the network sees an image of this height and width."""
        description = self.description
        if description.size is None or description.mode != "whole":
            return keep_ratio_size(height, width, description.test_scale)
        factor = min(description.size[0] / height, description.size[1] / width)
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def network_inputs(self, image: np.ndarray) -> list[Tensor]:
        """Return the network's inputs for an image (H, W, 3) BGR: batches (B, 3, h, w), padded."""
        inputs: list[Tensor] = []

        def keep(images: Tensor) -> Tensor:
            inputs.append(self._padded(images))
            return torch.zeros(len(images), 1, *images.shape[-2:])

        predict(keep, self._sample(image)["image"][None], self.description.inference)
        return inputs

    def _sample(self, image: np.ndarray) -> dict[str, Any]:
        return to_sample(image, self.input_size(*image.shape[:2]), "RGB")

    def _run(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) of any size that the file can take -> its output for these pixels."""
        height, width = images.shape[-2:]
        padded = self._padded(images)
        batch = self.description.batch or len(padded)
        outputs = []
        for part in padded.split(batch):  # a file of a fixed batch gets the last images repeated
            filled = part if len(part) == batch else part[torch.arange(batch) % len(part)]
            outputs.append(self.session.run(filled)[0][: len(part)])
        return torch.cat(outputs)[..., :height, :width]

    def _padded(self, images: Tensor) -> Tensor:
        """Pad (right, bottom) with the mean colour, which is zero after the normalisation."""
        description = self.description
        height, width = images.shape[-2:]
        multiple = description.multiple
        target = description.size or tuple(
            max(side + -side % multiple, 2 * multiple) for side in (height, width)
        )
        if height > target[0] or width > target[1]:
            raise ValueError(
                f"An image for this exported model must have at most {target[0]} x {target[1]} "
                f"pixels, but has {height} x {width}."
            )
        dtype = getattr(torch, description.input_type)
        mean = torch.tensor(description.pixel_mean)
        mean = (mean.round() if dtype == torch.uint8 else mean).to(dtype)
        padded = mean.view(1, 3, 1, 1).repeat(len(images), 1, *target)
        padded[..., :height, :width] = images
        return padded


def _labels(output: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Class ids (H, W) of ``size`` from scores (K, h, w) or class ids (h, w)."""
    if output.ndim == 3:
        return resize_logits(output[None], size)[0].argmax(dim=0).numpy()
    resize = CvResizeTransform(*output.shape, *size)
    return resize.apply_segmentation(output.numpy())
