"""Cases of the mask-query host: predictions (G), pipeline (H), training losses (G, train).

An attention mask is a threshold on predicted masks, so one bit that flips through rounding changes
all that follows. Therefore the strict comparisons run the whole model in float64; in float32 what
comes after the reference's first near-tie is compared loosely.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.checkpoint.mask_query_tables import MASK2FORMER_OFFSET
from offseg_d2.config import load_config
from offseg_d2.data.dataset_mapper import class_instances
from offseg_d2.modeling import InferenceSettings
from tests.golden import parity_rules
from tests.parity.case import PIPELINE_TOLERANCE, ParityCase, Row

CONFIG = Path(__file__).parents[2] / "configs" / "base" / "models" / "mask2former_swin_t.yaml"
NUM_CLASSES = 150
# A correct implementation is this much of the reference's float32-float64 difference away.
STRICT_NOISE_FACTOR = 1.1
# In float32 a flipped bit after prediction 2 moves the later ones by up to this much.
FLIPPED_TOLERANCE = 5e-3
LOSS_TOLERANCE = 1e-4
# The reference chose its uncertain points in float32. A point that changes places in float64 moves
# a mask loss by at most 5 |logit| / (29 masks * 12544 points), about 1e-4 each.
MASK_LOSS_TOLERANCE_FLOAT64 = 3e-4
GRADIENT_TOLERANCE = 2e-4


def build(dtype: torch.dtype) -> nn.Module:
    """Mask2Former with offsets and the reference's weights, in evaluation mode."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES]
    model = build_model(load_config(str(CONFIG), [*opts, "MODEL.SWIN.DROP_PATH_RATE", 0.0]))
    theirs = {}
    for name, own in MASK2FORMER_OFFSET.to_theirs(model.state_dict()).items():
        value = parity_rules.weight(name, tuple(own.shape))
        theirs[name] = own if value is None else torch.from_numpy(value)
    ours, _ = MASK2FORMER_OFFSET.from_theirs(theirs)
    model.load_state_dict(ours, strict=True)
    # The reference normalises in float32 whatever follows.
    model.normalise = lambda image: torch.from_numpy(
        parity_rules.normalise(image.permute(1, 2, 0).numpy())
    )[0].to(dtype)
    return model.to(dtype).eval()


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


def manifest_row(case: ParityCase, model: nn.Module) -> Iterator[Row]:
    """Every entry of the authors' state dict has its place here, shapes equal, none left."""
    path = case.path.parent / "manifest_mask2former_swin_t_ade20k.json"
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        entries = json.load(file)
    theirs = {e["key"]: torch.empty(e["shape"], device="meta") for e in entries}
    ours, _ = MASK2FORMER_OFFSET.from_theirs(theirs)
    state = model.state_dict()
    wrong = {k for k in ours if k not in state or ours[k].shape != state[k].shape}
    wrong |= set(state) - set(ours)
    yield Row(case.name, "names and shapes", len(wrong), 0.0, ", ".join(sorted(wrong)[:3]))


def predictions(case: ParityCase) -> Iterator[Row]:
    """G: all ten predictions and the scores, in float64 strictly, then in float32."""
    for dtype in (torch.float64, torch.float32):
        model = build(dtype)
        if dtype == torch.float64:
            yield from manifest_row(case, model)
        found = record(model)
        with torch.no_grad():
            scores = model([{"image": case.image(512, 512)}])[0]["sem_seg"]
        found["sem_seg"] = scores[None]
        for key in case.tensors():
            row = case.compare(key, found[key])
            tolerance = row.tolerance
            if dtype == torch.float64 and f"{key}__fp64diff" in case.data:
                tolerance = STRICT_NOISE_FACTOR * float(case.data[f"{key}__fp64diff"])
            elif key.startswith(("cls_pred", "mask_pred")) and int(key[-1]) > 2:
                tolerance = FLIPPED_TOLERANCE
            name = str(dtype).removeprefix("torch.")
            yield Row(row.case, key, row.difference, tolerance, row.remark or name)


def pipeline(case: ParityCase) -> Iterator[Row]:
    """H: from the image to scores and label map at its original size."""
    model = build(torch.float64)
    model.inference = InferenceSettings("whole", size_divisibility=32)
    found = record(model)
    height, width = (int(x) for x in case.data["ori_shape"])
    batch = [{"image": case.image(450, 600), "height": height, "width": width}]
    with torch.no_grad():
        scores = model(batch)[0]["sem_seg"]
    found["seg_logits"] = scores
    for key in case.tensors():
        yield case.compare(key, found[key], PIPELINE_TOLERANCE)
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
    batch = [
        {
            "image": case.image(512, 512, f"/img{i}"),
            "instances": class_instances(case.labels(i, NUM_CLASSES, cell=128)),
        }
        for i in range(2)
    ]
    for dtype in (torch.float32, torch.float64):
        model = build(dtype).train()
        model.train_size = (512, 512)
        model.criterion.draw = ReferencePoints()
        found = record(model)
        with torch.set_grad_enabled(dtype == torch.float64):
            losses = model(batch)
        yield case.compare("input", found["input"])
        wrong = model.criterion.draw.shapes != json.loads(str(case.data["rand_calls_json"]))
        yield Row(case.name, "order of the random numbers", float(wrong), 0.0)
        yield from _loss_rows(case, losses, dtype)
    sum(losses.values()).backward()
    yield from _gradient_rows(case, model)


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


def _gradient_rows(case: ParityCase, model: nn.Module) -> Iterator[Row]:
    parameters = dict(model.named_parameters())
    found = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    yield Row(case.name, "parameters without gradient", len(parameters) - len(found), 0.0)
    gradients = MASK2FORMER_OFFSET.to_theirs(found)
    names = [str(name) for name in case.data["grad_names"]]
    yield Row(case.name, "names of gradients", len(set(names) ^ set(gradients)), 0.0)
    expected = case.data["grad_norms"].astype(np.float64)
    actual = np.array([float(gradients[name].norm()) for name in names])
    differences = np.abs(actual - expected) / expected
    for group in ("backbone", "decode_head"):
        inside = [i for i, name in enumerate(names) if name.startswith(f"{group}.")]
        worst = max(inside, key=lambda i: differences[i])
        yield Row(
            case.name,
            f"gradient norms {group}.*",
            float(differences[worst]),
            GRADIENT_TOLERANCE,
            f"{len(inside)} tensors, worst: {names[worst]}",
        )
