"""Exported models at work: an ONNX file in place of configuration and checkpoint.

Shapes: K classes, H x W image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from torch import Tensor
from torch.nn import functional as F

from offseg_d2.data.augmentation import CvResizeTransform, keep_ratio_size
from offseg_d2.export.description import KEY, ModelDescription
from offseg_d2.export.requirements import require
from offseg_d2.modeling.meta_arch import predict


class OnnxSegmenter:
    """A file by tools/export_model.py at work; called like ``Predictor``.

    Args:
        path: the ONNX file; it says itself what it needs.
        threads: of onnxruntime; 0 leaves the choice to it.
        providers: of onnxruntime, the preferred one first.

    Attributes:
        description: what the file says about itself.
        metadata: names and colours of the classes.

    Raises:
        OSError: if onnxruntime is not installed or the file cannot be read.
        ValueError: if the file is no ONNX model, or none by tools/export_model.py.
    """

    def __init__(
        self,
        path: str,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        with PathManager.open(path, "rb") as file:
            content = file.read()
        self.session = open_session(content, path, threads=threads, providers=providers)
        texts = self.session.get_modelmeta().custom_metadata_map
        if KEY not in texts:
            raise ValueError(
                f"`{path}` must be a model by tools/export_model.py, but describes no classes."
            )
        self.description = ModelDescription.from_json(texts[KEY], path)
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
        scores = predict(self._run, self._prepare(image), self.description.inference)
        return self._resized(scores, image.shape[:2])[0]

    def label_map(self, image: np.ndarray) -> np.ndarray:
        """Best class of each pixel; (H, W, 3) uint8 **BGR** -> (H, W) integer class ids.

        A label map of another size than the image is resized by the nearest index.
        """
        return self.label_maps([image])[0]

    def label_maps(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """:meth:`label_map` of several images.

        Those of one :meth:`input_size` share batches, but for sliding windows, where each image
        has many. A file that gives logits needs memory for the scores of a whole batch.

        Args:
            images: each (H, W, 3) uint8 **BGR**, of any sizes.

        Returns:
            (H, W) integer class ids of each, in the same order.
        """
        places: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(self.input_size(*image.shape[:2]), []).append(place)
        found: dict[int, np.ndarray] = {}
        for chosen in places.values():
            batch = torch.cat([self._prepare(images[place]) for place in chosen])
            sizes = [images[place].shape[:2] for place in chosen]
            found.update(zip(chosen, self._label_maps(batch, sizes), strict=True))
        return [found[place] for place in range(len(images))]

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which the network sees an image of this height and width."""
        description = self.description
        if description.size is None or description.mode != "whole":
            return keep_ratio_size(height, width, description.test_scale)
        factor = min(description.size[0] / height, description.size[1] / width)
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def _label_maps(self, batch: Tensor, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """(B, 3, h, w), (H, W) of each -> class ids (H, W) of each."""
        found = []
        if self.description.output == "logits":
            together = 1 if self.description.mode == "slide" else len(batch)
            remaining = iter(sizes)
            for part in batch.split(together):
                for scores in predict(self._run, part, self.description.inference):
                    resized = self._resized(scores[None], next(remaining))[0]
                    found.append(resized.argmax(dim=0).numpy())
            return found
        for labels, size in zip(self._run(batch).numpy(), sizes, strict=True):
            rows, columns = (
                np.arange(after) * before // after
                for before, after in zip(labels.shape, size, strict=True)
            )
            found.append(labels[rows][:, columns])
        return found

    @staticmethod
    def _resized(scores: Tensor, size: tuple[int, ...]) -> Tensor:
        """(1, K, h, w) -> (1, K, H, W)."""
        if scores.shape[-2:] == size:
            return scores
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)

    def network_inputs(self, image: np.ndarray) -> list[Tensor]:
        """What the network sees of an image (H, W, 3) BGR: batches (B, 3, h, w), padded."""
        inputs: list[Tensor] = []

        def record(images: Tensor) -> Tensor:
            inputs.append(self._padded(images))
            return torch.zeros(len(images), 1, *images.shape[-2:])

        predict(record, self._prepare(image), self.description.inference)
        return inputs

    def _prepare(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) BGR -> (1, 3, h, w) RGB at the size for the network, 0..255, uint8."""
        height, width = image.shape[:2]
        new_size = self.input_size(height, width)
        resized = CvResizeTransform(height, width, *new_size).apply_image(image)
        planes = np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1))
        return torch.from_numpy(planes)[None]

    def _run(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) of any size that the file can take -> its output for these pixels."""
        height, width = images.shape[-2:]
        padded = self._padded(images)
        batch = self.description.batch or len(padded)
        parts = padded.split(batch)
        outputs = []
        for part in parts:  # a file of a fixed batch gets the last images repeated
            filled = part if len(part) == batch else part[torch.arange(batch) % len(part)]
            result = self.session.run(None, {"image": filled.numpy()})[0]
            outputs.append(torch.from_numpy(result)[: len(part)])
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


def open_session(
    model: bytes,
    path: str,
    *,
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
):
    """An onnxruntime session.

    Args:
        model: content of an ONNX file.
        path: of that file, for messages.
        threads: within an operator; 0 leaves the choice to onnxruntime.
        providers: the preferred one first.

    Raises:
        OSError: if onnxruntime is not installed.
        ValueError: if the content is no model that it can run.
    """
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # onnxruntime's own classes derive from nothing narrower
        first_line = str(error).splitlines()[0]
        raise ValueError(f"`{path}` must be an ONNX model, but: {first_line}") from None
