"""Description in an exported file, with which it can be used without a configuration.

The description travels as one JSON text: in the metadata of an ONNX file under ``offseg_d2``, in a
``torch.export`` archive as the extra file ``offseg_d2.json``.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from offseg_d2.modeling import InferenceSettings
from offseg_d2.version import __version__

KEY = "offseg_d2"
FORMAT = 1  # grows when a reader of an older file would misunderstand a newer one
OUTPUTS = ("labels", "logits")
INPUT_TYPES = ("float32", "uint8")


@dataclass(frozen=True)
class ModelDescription:
    """Everything that whoever runs the file has to know.

    The input is ``image`` (B, 3, H, W), RGB, 0..255; normalisation is part of the graph.

    Attributes:
        classes: names, K of them.
        colors: RGB triples of the classes, or empty.
        output: "labels" (B, H, W) class ids, or "logits" (B, K, H, W) class scores.
        input_type: of the image, "float32" or "uint8".
        size: (height, width) that every image has; None if it may change.
        multiple: where the size may change, height and width are multiples of this, at
            least twice of it.
        batch: images at once; None if it may change.
        test_scale: (long, short) side in pixels into which an image is scaled, aspect kept.
        pixel_mean: RGB; the value of padding, which the normalisation turns into zero.
        mode: "whole" or "slide".
        crop_size: (height, width) of a sliding window.
        stride: (vertical, horizontal) step between windows.
        max_value_16_bit: value of 16-bit images that becomes 255.
        bands: numbers of the bands of TIFF files that are red, green and blue, or empty.
        precision: "float32" or "int8".
        max_difference: largest difference of a score from PyTorch's, when the file was written.
        label_agreement: share of the pixels with PyTorch's label, when the file was written.
        model: name of the meta-architecture.
        version: of offseg_d2.
        format: see ``FORMAT``.
    """

    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    output: str
    input_type: str
    size: tuple[int, int] | None
    multiple: int
    batch: int | None
    test_scale: tuple[int, int]
    pixel_mean: tuple[float, float, float]
    mode: str
    crop_size: tuple[int, int]
    stride: tuple[int, int]
    max_value_16_bit: int = 65535
    bands: tuple[int, ...] = ()
    precision: str = "float32"
    max_difference: float | None = None
    label_agreement: float | None = None
    model: str = ""
    version: str = __version__
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def inference(self) -> InferenceSettings:
        """Inference mode of the network; padding is a matter of the file's own size."""
        return InferenceSettings(self.mode, self.crop_size, self.stride, self.batch or 1)

    @classmethod
    def from_json(cls, text: str, path: str) -> "ModelDescription":
        """Read what :meth:`to_json` wrote.

        Args:
            text: JSON.
            path: of the file it is from, for messages.

        Raises:
            ValueError: if the text is no description that this version understands.
        """
        try:
            fields = json.loads(text)
            version = fields["format"]
            if version == FORMAT:
                return cls(**{name: _tuples(value) for name, value in fields.items()})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"`{path}` must hold a description by `offseg export`, but it cannot be "
                f"read: {error!r}."
            ) from None
        raise ValueError(
            f"`{path}` must have description format {FORMAT}, but has {version!r}; export it again."
        )


def _tuples(value: Any) -> Any:
    """Lists become tuples, as the fields are."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
