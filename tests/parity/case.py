"""A parity case: the file of one reference run, and the rows its comparison yields."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.golden import parity_rules

# Where the reference stores no noise floor of its own (see its README).
DEFAULT_TOLERANCE = 2e-5
PIPELINE_TOLERANCE = 2e-4
# Of images and label maps, where neither name nor input of a case says another (see its README).
TRAIN_SIZE = (512, 512)
# A correct float32 implementation is within 1.1 of the reference's float32-float64 difference.
NOISE_FACTOR = 3.0


@dataclass(frozen=True)
class Row:
    """One line of the report; a tolerance of 0 demands equality."""

    case: str
    tensor: str
    difference: float
    tolerance: float
    remark: str = ""

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance  # False for NaN


class SkipCase(Exception):
    """The case needs a model that this project does not build; the message says which."""


class ParityCase:
    """One ``.npz`` file of reference results.

    Args:
        path: the file; its stem is the case's name, which keys inputs and weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.data: Mapping[str, np.ndarray] = np.load(path, allow_pickle=False)

    def __contains__(self, key: str) -> bool:
        return f"{key}__sample" in self.data

    def tensors(self) -> list[str]:
        """Names of the sampled tensors in the file."""
        return [k.removesuffix("__sample") for k in self.data if k.endswith("__sample")]

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the whole tensor that ``key`` is sampled from."""
        return tuple(int(s) for s in self.data[f"{key}__shape"])

    def tolerance(self, key: str, default: float = DEFAULT_TOLERANCE) -> float:
        """Three times the reference's own noise, or ``default`` where it is not recorded."""
        noise = f"{key}__fp64diff"
        return NOISE_FACTOR * float(self.data[noise]) if noise in self.data else default

    def compare(self, key: str, actual: Tensor, default: float = DEFAULT_TOLERANCE) -> Row:
        """Largest difference over the sampled entries."""
        array = actual.detach().double().numpy()
        shape = self.shape(key)
        if array.shape != shape:
            remark = f"shape {array.shape} instead of {shape}"
            return Row(self.name, key, float("inf"), 0.0, remark)
        sample = array.reshape(-1)[:: int(self.data[f"{key}__step"])]
        difference = np.abs(sample - self.data[f"{key}__sample"].astype(np.float64)).max()
        return Row(self.name, key, float(difference), self.tolerance(key, default))

    def compare_relative(self, key: str, actual: float, expected: float, tolerance: float) -> Row:
        """Relative difference of two numbers."""
        return Row(self.name, key, abs(actual - expected) / max(abs(expected), 1e-30), tolerance)

    def compare_all(
        self, found: Mapping[str, Tensor], default: float = DEFAULT_TOLERANCE
    ) -> Iterator[Row]:
        """One row per tensor of the file; a tensor that ``found`` lacks fails."""
        for key in self.tensors():
            if key in found:
                yield self.compare(key, found[key], default)
            else:
                yield Row(self.name, key, float("nan"), 0.0, "not computed")

    def compare_labels(self, key: str, logits: Tensor, margin: float) -> Row:
        """Share of pixels with another label, among those whose top-2 margin exceeds ``margin``.

        Args:
            key: name of the reference label map.
            logits: (K, H, W) or (B, K, H, W).
            margin: logit difference below which rounding may decide.
        """
        top2 = logits.topk(2, dim=-3).values
        clear = (top2.select(-3, 0) - top2.select(-3, 1)) > margin
        expected = torch.from_numpy(self.data[key].astype(np.int64))
        if expected.shape != clear.shape:
            remark = f"shape {tuple(clear.shape)} instead of {tuple(expected.shape)}"
            return Row(self.name, key, float("inf"), 0.0, remark)
        wrong = (logits.argmax(-3) != expected) & clear
        remark = f"{int(clear.sum())} of {clear.numel()} pixels are clear"
        return Row(self.name, key, wrong.double().mean().item(), 0.0, remark)

    def tensor(self, name: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        """A pseudo-random input of the reference."""
        return torch.from_numpy(parity_rules.tensor(f"{self.name}/{name}", shape, scale))

    def size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels: of the name, else of the stored input."""
        match = re.search(r"_(\d+)x(\d+)", self.name)
        if match:
            return int(match[1]), int(match[2])
        return self.shape("input")[-2:] if "input" in self else TRAIN_SIZE

    def result_size(self) -> tuple[int, int]:
        """(height, width) of the prediction in pixels: that of the images if none is named."""
        if "ori_shape" in self.data:
            height, width = (int(x) for x in self.data["ori_shape"])
            return height, width
        match = re.search(r"_to_(\d+)x(\d+)", self.name)
        return (int(match[1]), int(match[2])) if match else self.size()

    def images(self) -> list[Tensor]:
        """The images of the batch, (3, H, W) uint8 RGB each.

        Raises:
            ValueError: if one differs from the reference's.
        """
        stored = self.data["image_crc32"]
        suffixes = [f"/img{i}" for i in range(len(stored))] if stored.ndim else [""]
        images = []
        for suffix, checksum in zip(suffixes, np.atleast_1d(stored), strict=True):
            image = parity_rules.image(self.name + suffix, *self.size())
            if parity_rules.crc(image) != int(checksum):
                raise ValueError(f"{self.path}: image {suffix!r} differs from the reference's.")
            images.append(torch.from_numpy(image).permute(2, 0, 1))
        return images

    def labels(self, num_classes: int, cell: int = 32) -> list[Tensor]:
        """The label maps of the batch, (H, W) int64 each, with blobs of about ``cell`` pixels.

        Raises:
            ValueError: if one differs from the reference's.
        """
        maps = []
        for i, checksum in enumerate(self.data["label_crc32"]):
            name = f"{self.name}/lab{i}"
            labels = parity_rules.labels(name, *self.size(), num_classes, cell=cell)
            if parity_rules.crc(labels) != int(checksum):
                raise ValueError(f"{self.path}: label map {i} differs from the reference's.")
            maps.append(torch.from_numpy(labels))
        return maps


def reference_weight(theirs: str, shape: tuple[int, ...]) -> Tensor:
    """The reference's value of the parameter or buffer that the authors call ``theirs``."""
    value = parity_rules.weight(theirs, shape)
    assert value is not None, f"{theirs} is a constant of the reference"
    return torch.from_numpy(value)


def each_gradient_norm(
    case: ParityCase,
    gradients: Mapping[str, Tensor],
    tolerance: float,
    norms: str = "grad_norms_fp64",
) -> Iterator[Row]:
    """One row per group of gradient norms: the worst relative difference and its name.

    Args:
        case: holds the reference's norms.
        gradients: ours, under the authors' names.
        tolerance: relative.
        norms: the entry of the reference's norms.
    """
    names = [str(n) for n in case.data["grad_names"]]
    worst: dict[str, Row] = {}
    for name, norm in zip(names, case.data[norms].astype(np.float64), strict=True):
        if norm < 1e-9:  # analytically zero, such as biases in front of a batch norm
            continue
        group = name.split(".")[0]
        actual = float(gradients[name].double().norm()) if name in gradients else float("nan")
        difference = abs(actual - norm) / norm
        row = Row(case.name, f"gradient norms {group}.*", difference, tolerance, f"worst: {name}")
        if group not in worst or not difference <= worst[group].difference:
            worst[group] = row
    yield from worst.values()
