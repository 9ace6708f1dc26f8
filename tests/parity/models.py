"""Cases of whole models: backbone (C), segmentor (D, E, F), pipeline (H), training loss (I)."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor, nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.checkpoint.key_maps import KeyMap
from offseg_d2.checkpoint.key_tables import KEY_MAPS
from offseg_d2.config import load_config
from offseg_d2.modeling import EfficientFormerV2
from offseg_d2.modeling.meta_arch import InferenceSettings, window_origins
from offseg_d2.modeling.meta_arch.inference import resize_logits
from tests.golden import parity_rules
from tests.parity.case import (
    PIPELINE_TOLERANCE,
    ParityCase,
    Row,
    SkipCase,
    each_gradient_norm,
    reference_weight,
)

MODEL_CONFIGS = Path(__file__).parents[2] / "configs" / "base" / "models"
NUM_CLASSES = {"ade20k": 150, "cityscapes": 19, "cocostuff": 171, "pascal59": 59}
MODEL_NAME = re.compile(
    r"(?P<model>[a-z0-9_]+?)(?P<baseline>_baseline)?_(?P<dataset>ade20k|cityscapes|cocostuff|pascal59)"
    r"_(?P<rest>.*)"
)


@dataclass(frozen=True)
class CaseModel:
    """A model with the reference's weights, and where they came from."""

    model: nn.Module
    key_map: KeyMap
    num_classes: int
    dataset: str
    rest: str  # what follows the data set in the case's name


def build_case_model(case: ParityCase) -> CaseModel:
    """The model that the case's name names, filled by name through our key map.

    Raises:
        SkipCase: if the project has no such model.
    """
    match = MODEL_NAME.fullmatch(_without_letter(case.name))
    if match is None:
        raise SkipCase(f"no model is named in {case.name}")
    config_file = MODEL_CONFIGS / f"{match['model']}.yaml"
    if not config_file.is_file():
        raise SkipCase(f"{match['model']} is not built yet")
    num_classes = NUM_CLASSES[match["dataset"]]
    classifier = "plain" if match["baseline"] else "offset"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes]
    cfg = load_config(str(config_file), [*opts, "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier])
    key = (cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, classifier)
    if key not in KEY_MAPS:
        raise SkipCase(f"no key map for {key}")
    model = build_model(cfg)
    fill_model(model, KEY_MAPS[key])
    return CaseModel(model.eval(), KEY_MAPS[key], num_classes, match["dataset"], match["rest"])


def _without_letter(name: str) -> str:
    """Such as D_offseg_t_ade20k_512x512 -> offseg_t_ade20k_512x512."""
    return name.split("_", 1)[1]


def fill_model(model: nn.Module, key_map: KeyMap) -> None:
    """Load the reference's weights, generated under the authors' names and mapped to ours."""
    state = model.state_dict()
    theirs = {
        name: reference_weight(name, tuple(tensor.shape))
        for name, tensor in key_map.to_theirs(state).items()
    }
    ours, dropped = key_map.from_theirs(theirs)
    assert not dropped, dropped
    model.load_state_dict(ours, strict=True)
    _fix_injected_bases(model)


def _fix_injected_bases(model: nn.Module) -> None:
    """The reference's NMF bases are one fixed draw; give ours the same."""
    for module in model.modules():
        if hasattr(module, "injected_bases"):
            shape = (1, module.channels, module.rank)
            bases = torch.from_numpy(parity_rules.uniform("nmf_bases", shape))
            module.injected_bases = F.normalize(bases, dim=1)


def manifest_row(case: ParityCase, built: CaseModel) -> Iterator[Row]:
    """Every entry of the authors' state dict is mapped or dropped, shapes equal, none left."""
    name = _without_letter(case.name).removesuffix(f"_{built.rest}")
    path = case.path.parent / f"manifest_{name}.json"
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        entries = json.load(file)
    theirs = {e["key"]: torch.empty(e["shape"], device="meta") for e in entries}
    ours, _ = built.key_map.from_theirs(theirs)
    state = built.model.state_dict()
    wrong = {k for k in ours if k not in state or ours[k].shape != state[k].shape}
    wrong |= set(state) - set(ours)
    yield Row(case.name, "names and shapes", len(wrong), 0.0, ", ".join(sorted(wrong)[:3]))


def backbone(case: ParityCase) -> Iterator[Row]:
    """C: EfficientFormerV2 alone."""
    match = re.fullmatch(r"C_efficientformerv2_(S0|S1|S2|L)_(\d+)x(\d+)", case.name)
    if match is None:
        raise SkipCase(f"{case.name} names no EfficientFormerV2 variant")
    network = EfficientFormerV2(variant=match[1].lower())
    holder = nn.ModuleDict({"backbone": network}).eval()
    fill_model(holder, KEY_MAPS["OffSegPixelDecoder", "offset"])
    found = _record(
        {
            "patch_embed": network.stem,
            "network.1": network.downsamples[0],
            "network.3": network.downsamples[1],
            "network.5": network.downsamples[2],
        }
    )
    height, width = int(match[2]), int(match[3])
    normalised = torch.from_numpy(
        parity_rules.normalise(case.image(height, width).permute(1, 2, 0).numpy())
    )
    with torch.no_grad():
        found |= {f"out{i}": x for i, x in enumerate(network(normalised).values())}
    found["input"] = normalised
    for key in case.tensors():
        yield case.compare(key, found[key])


def _record(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Fills the returned dict with the modules' outputs when they run."""
    found: dict[str, Tensor] = {}
    for name, module in modules.items():

        def keep(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
            found[name] = output

        module.register_forward_hook(keep)
    return found


def _intermediates(decoder: nn.Module) -> dict[str, nn.Module]:
    """The reference's names of the pixel decoder's steps -> our modules."""
    modules: dict[str, nn.Module] = {}
    name = type(decoder).__name__
    if name == "OffSegPixelDecoder":
        modules = {f"pre{i}": m for i, m in enumerate(decoder.reduce)}
        modules["align"] = decoder.align
    elif name == "SegFormerPixelDecoder":
        modules = {f"convs{i}": m for i, m in enumerate(decoder.reduce)}
        modules |= {"fusion_conv": decoder.fuse, "maxpool": decoder.pool}
    elif name == "LightHamPixelDecoder":
        modules = {"squeeze": decoder.squeeze, "hamburger": decoder.hamburger}
        modules |= {"ham": decoder.hamburger.decomposition, "align": decoder.align}
    return modules


def segmentor(case: ParityCase) -> Iterator[Row]:
    """D, E, F: a whole model up to its logits, with intermediates."""
    built = build_case_model(case)
    yield from manifest_row(case, built)
    model, decoder = built.model, built.model.sem_seg_head.pixel_decoder
    found = _record(_intermediates(decoder))
    _record_special_steps(decoder, found)
    height, width = (int(x) for x in built.rest.split("x"))
    image = case.image(height, width)
    with torch.no_grad():
        normalised = model.normalise(image)[None]
        features = model.backbone(normalised)
        logits = model.sem_seg_head(features)
    found |= {f"backbone{int(k[3:]) - 2}": v for k, v in features.items()}
    found |= {"input": normalised, "logits": logits}
    baseline = "_baseline_" in case.name
    for key in case.tensors():
        yield case.compare(key, found[key], PIPELINE_TOLERANCE if baseline else 2e-5)
    if "logits_argmax" in case.data:
        yield case.compare_labels("logits_argmax", logits[0], 1e-4)


def _record_special_steps(decoder: nn.Module, found: dict[str, Tensor]) -> None:
    """Steps of the reference that are not the output of a module of ours."""
    for i, fusion in enumerate(getattr(decoder, "fusions", ())):

        def keep(module: nn.Module, inputs: tuple, output: tuple, i: int = i) -> None:
            found[f"freqfusion{i}.0"] = module.predict_kernels(*inputs)[2]
            found[f"freqfusion{i}.1"], found[f"freqfusion{i}.2"] = output

        fusion.register_forward_hook(keep)
    if hasattr(decoder, "hamburger"):

        def keep_input(_: nn.Module, inputs: tuple) -> None:
            found["ham_in"] = inputs[0]

        decoder.hamburger.decomposition.register_forward_pre_hook(keep_input)


# (crop, stride) of the authors' sliding windows, in pixels
WINDOWS = {"cityscapes": (1024, 768), "pascal59": (480, 320)}
PIPELINE = re.compile(r"(?P<mode>slide|whole)_(?P<h>\d+)x(?P<w>\d+)(_to_(?P<oh>\d+)x(?P<ow>\d+))?")


def pipeline(case: ParityCase) -> Iterator[Row]:
    """H: from the image to the label map at its original size."""
    built = build_case_model(case)
    match = PIPELINE.fullmatch(built.rest)
    if match is None:
        raise SkipCase(f"{built.rest!r} names no inference mode and size")
    model = built.model
    pad = 32 if "segnext" in case.name else 0  # as in the authors' test settings
    crop, stride = WINDOWS.get(built.dataset, (512, 480))
    model.inference = InferenceSettings(
        match["mode"], (crop, crop), (stride, stride), size_divisibility=pad
    )
    height, width = int(match["h"]), int(match["w"])
    rows, columns = height + -height % (pad or 1), width + -width % (pad or 1)
    result = {"height": int(match["oh"] or height), "width": int(match["ow"] or width)}
    crops = _record_crops(model)
    image = case.image(height, width)
    with torch.no_grad():
        logits = model([{"image": image, **result}])[0]["sem_seg"]
    padded = F.pad(model.normalise(image)[None], [0, columns - width, 0, rows - height])
    found = {"input": padded, "seg_logits": logits}
    found |= {f"crop{i}": crop for i, crop in enumerate(crops)}
    if match["mode"] == "slide":
        count = len(window_origins(rows, crop, stride)) * len(window_origins(columns, crop, stride))
        difference = abs(count - int(case.data["n_crops"]))
        yield Row(case.name, "number of windows", difference, 0.0)
    for key in case.tensors():
        actual = found[key]
        if case.shape(key)[0] == 1 and actual.ndim == 3:
            actual = actual[None]
        yield case.compare(key, actual, PIPELINE_TOLERANCE)
    if "label_map" in case.data:
        yield case.compare_labels("label_map", logits, 1e-3)


def _record_crops(model: nn.Module) -> list[Tensor]:
    """Collects the logits of every window, in order."""
    crops: list[Tensor] = []
    forward: Callable[[Tensor], Tensor] = model.forward_network

    def keep(images: Tensor) -> Tensor:
        logits = forward(images)
        crops.extend(logits)
        return logits

    model.forward_network = keep
    return crops


def training_loss(case: ParityCase) -> Iterator[Row]:
    """I: loss, gradients and updated batch norm statistics, strictly in float64."""
    built = build_case_model(case)
    model = built.model.double().train()
    _silence(model)
    if case.name.endswith("_bneval"):
        for module in model.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    model.train_size = (512, 512)
    model.normalise = _normalise_in_float32
    batch = [
        {
            "image": case.image(512, 512, f"/img{i}"),
            "sem_seg": case.labels(i, built.num_classes),
        }
        for i in range(2)
    ]
    accuracy = _record_accuracy(model)
    loss = model(batch)["loss_sem_seg"]
    loss.backward()
    yield case.compare_relative("loss_fp64", loss.item(), float(case.data["loss_fp64"]), 1e-9)
    yield case.compare_relative(
        "acc_seg", accuracy[0], float(case.data["loss__decode.acc_seg"]), 1e-4
    )
    parameters = dict(model.named_parameters())
    gradients = {
        name: tensor
        for name, tensor in built.key_map.to_theirs(
            {n: p.grad for n, p in parameters.items() if p.grad is not None}
        ).items()
    }
    yield Row(case.name, "parameters without gradient", len(parameters) - len(gradients), 0.0)
    yield from each_gradient_norm(case, gradients, 1e-9, 1e-9)
    buffers = built.key_map.to_theirs(model.state_dict())
    for key in case.tensors():
        if key.startswith("grad."):
            yield case.compare(key, gradients[key.removeprefix("grad.")])
        elif key.startswith("after."):
            yield case.compare(key, buffers[key.removeprefix("after.")])


def _normalise_in_float32(image: Tensor) -> Tensor:
    """The float64 reference starts from an image that was normalised in float32."""
    return torch.from_numpy(parity_rules.normalise(image.permute(1, 2, 0).numpy()))[0].double()


def _silence(model: nn.Module) -> None:
    """The reference ran without dropout and stochastic depth."""
    for module in model.modules():
        if hasattr(module, "rate"):
            module.rate = 0.0
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0


def _record_accuracy(model: nn.Module) -> list[float]:
    """Percent of labelled pixels that the training forward pass classifies correctly."""
    accuracy: list[float] = []
    losses = model.sem_seg_head.losses

    def keep(logits: Tensor, targets: Tensor, resized: tuple[int, int]) -> dict[str, Tensor]:
        height, width = targets.shape[-2:]
        full = resize_logits(logits.detach(), resized)[..., :height, :width]
        labelled = targets != 255
        correct = (full.argmax(1) == targets) & labelled
        accuracy.append(100.0 * correct.sum().item() / labelled.sum().item())
        return losses(logits, targets, resized)

    model.sem_seg_head.losses = keep
    return accuracy
