"""Cases of the mask-query host: predictions (G), pipeline (H), training losses (G, train).

An attention mask is a threshold on predicted masks, so one bit that flips through rounding changes
all that follows. Therefore the strict comparisons run the whole model in float64; in float32 what
comes after the reference's first near-tie is compared loosely.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from offseg_d2.data.dataset_mapper import class_instances
from tests.golden import parity_rules
from tests.parity.case import PIPELINE_TOLERANCE, ParityCase, Row, each_gradient_norm
from tests.parity.models import CaseModel, build_case_model, manifest_row

# A correct implementation is this much of the reference's float32-float64 difference away.
STRICT_NOISE_FACTOR = 1.1
# In float32 a flipped bit after prediction 2 moves the later ones by up to this much.
FLIPPED_TOLERANCE = 5e-3
LOSS_TOLERANCE = 1e-4
# The reference chose its uncertain points in float32. A point that float64 chooses otherwise moves
# a mask loss by at most 5 |logit| / (29 masks * 12544 points), about 1e-4 each.
MASK_LOSS_TOLERANCE_FLOAT64 = 3e-4
GRADIENT_TOLERANCE = 2e-4


def record(model: nn.Module) -> dict[str, Tensor]:
    """Fills the returned dict, under the reference's names, while the model runs."""
    found: dict[str, Tensor] = {}

    def keep_features(_: nn.Module, inputs: tuple, output: dict[str, Tensor]) -> None:
        found["input"] = inputs[0]
        found.update({f"backbone{i}": level for i, level in enumerate(output.values())})

    def keep_levels(_: nn.Module, __: tuple, output: list[Tensor]) -> None:
        found["pixel_decoder.0"] = output[0]
        found.update({f"pixel_decoder.1.{i}": x for i, x in enumerate(reversed(output[1:]))})

    def keep_each(module: nn.Module, key: str) -> None:
        number = itertools.count()

        def keep(_: nn.Module, __: tuple, output: Tensor) -> None:
            found[f"{key}{next(number)}"] = output

        module.register_forward_hook(keep)

    head = model.sem_seg_head
    model.backbone.register_forward_hook(keep_features)
    head.pixel_decoder.register_forward_hook(keep_levels)
    keep_each(head.predictor.class_embed, "cls_pred")
    keep_each(head.predictor.mask_predictor, "mask_pred")
    return found


def predictions(case: ParityCase) -> Iterator[Row]:
    """G: all predictions and the scores, in float64 strictly, then in float32."""
    for dtype in (torch.float64, torch.float32):
        built = build_case_model(case, dtype)
        if dtype == torch.float64:
            yield from manifest_row(case, built)
        found = record(built.model)
        with torch.no_grad():
            results = built.model([{"image": image} for image in case.images()])
        found["sem_seg"] = torch.stack([result["sem_seg"] for result in results])
        for row in case.compare_all(found):
            tolerance, noise = row.tolerance, f"{row.tensor}__fp64diff"
            if not tolerance:  # a wrong shape
                pass
            elif dtype == torch.float64 and noise in case.data:
                tolerance = STRICT_NOISE_FACTOR * float(case.data[noise])
            elif _may_be_flipped(row.tensor):
                tolerance = max(tolerance, FLIPPED_TOLERANCE)
            remark = row.remark or str(dtype).removeprefix("torch.")
            yield replace(row, tolerance=tolerance, remark=remark)


def _may_be_flipped(key: str) -> bool:
    match = re.fullmatch(r"(?:cls|mask)_pred(\d+)", key)
    return match is not None and int(match[1]) > 2


def pipeline(case: ParityCase) -> Iterator[Row]:
    """H: from the image to scores and label map at its original size."""
    model = build_case_model(case, torch.float64).model
    found = record(model)
    (image,) = case.images()
    height, width = case.result_size()
    with torch.no_grad():
        scores = model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]
    found["seg_logits"] = scores
    yield from case.compare_all(found, PIPELINE_TOLERANCE)
    if "label_map" in case.data:
        # Random weights: half of the pixels have a margin below 1e-5.
        yield case.compare_labels("label_map", scores, 1e-5)


class ReferencePoints:
    """The reference's random numbers, call by call."""

    def __init__(self) -> None:
        self.shapes: list[list[int]] = []

    def __call__(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        value = parity_rules.uniform(f"m2f_rand{len(self.shapes)}", shape)
        self.shapes.append(list(shape))
        return torch.from_numpy(value).to(device)


def training_losses(case: ParityCase) -> Iterator[Row]:
    """G, train: losses of all predictions, in both precisions; gradient norms in float64."""
    images = case.images()
    for dtype in (torch.float32, torch.float64):
        built = build_case_model(case, dtype)
        model = built.model.train()
        instances = [class_instances(x) for x in case.labels(built.num_classes, cell=128)]
        batch = [
            {"image": image, "instances": x} for image, x in zip(images, instances, strict=True)
        ]
        model.train_size = case.size()
        model.criterion.draw = ReferencePoints()
        found = record(model)
        with torch.set_grad_enabled(dtype == torch.float64):
            losses = model(batch)
        yield case.compare("input", found["input"])
        wrong = model.criterion.draw.shapes != json.loads(str(case.data["rand_calls_json"]))
        yield Row(case.name, "order of the random numbers", float(wrong), 0.0)
        yield from _loss_rows(case, losses, dtype)
    sum(losses.values()).backward()
    yield from _gradient_rows(case, built)


def _loss_rows(case: ParityCase, losses: dict[str, Tensor], dtype: torch.dtype) -> Iterator[Row]:
    precision = str(dtype).removeprefix("torch.")
    for name, loss in losses.items():
        part, _, index = name.removeprefix("loss_").partition("_")
        of_masks = part in ("mask", "dice") and dtype == torch.float64
        tolerance = MASK_LOSS_TOLERANCE_FLOAT64 if of_masks else LOSS_TOLERANCE
        part = {"ce": "cls"}.get(part, part)
        key = "loss__decode." + (f"d{index}." if index else "") + f"loss_{part}"
        difference = abs(loss.item() - float(case.data[key]))
        yield Row(case.name, name, difference, tolerance, precision)
    total, expected = sum(losses.values()), float(case.data["loss_total"])
    row = case.compare_relative("loss_total", total.item(), expected, LOSS_TOLERANCE / 10)
    yield Row(row.case, row.tensor, row.difference, row.tolerance, precision)


def _gradient_rows(case: ParityCase, built: CaseModel) -> Iterator[Row]:
    parameters = dict(built.model.named_parameters())
    found = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    yield Row(case.name, "parameters without gradient", len(parameters) - len(found), 0.0)
    gradients = built.key_map.to_theirs(found)
    names = [str(name) for name in case.data["grad_names"]]
    yield Row(case.name, "names of gradients", len(set(names) ^ set(gradients)), 0.0)
    yield from each_gradient_norm(case, gradients, GRADIENT_TOLERANCE, "grad_norms")
