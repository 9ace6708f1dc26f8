"""Cases of whole models: backbone (C), segmentor (D, E, F), pipeline (H), training loss (I)."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.checkpoint.key_maps import KeyMap
from offseg_d2.checkpoint.key_tables import KEY_MAPS
from offseg_d2.config import load_config
from offseg_d2.modeling import EfficientFormerV2
from offseg_d2.modeling.meta_arch import window_origins
from offseg_d2.modeling.meta_arch.inference import pad_to_multiple, resize_logits
from tests.golden import parity_rules
from tests.parity.case import (
    DEFAULT_TOLERANCE,
    PIPELINE_TOLERANCE,
    ParityCase,
    Row,
    SkipCase,
    each_gradient_norm,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "base"
MODEL_NAME = re.compile(
    r"[A-Z]+_(?P<name>(?P<model>\w+?)(?P<baseline>_baseline)?_(?P<dataset>[a-z0-9]+))"
    r"_(?:(?:whole_|slide_)?\d+x\d+.*|train.*)"
)
# The reference's names of data sets, where ours are others.
DATASETS = {"cocostuff": "coco_stuff", "pascal59": "pascal_context"}


@dataclass(frozen=True)
class CaseModel:
    """A model with the reference's weights, and where they came from."""

    model: nn.Module
    key_map: KeyMap
    manifest: str  # name of the reference's list of entries
    num_classes: int


def build_case_model(case: ParityCase, dtype: torch.dtype = torch.float32) -> CaseModel:
    """The model that the case's name names, filled by name through our key map.

    Classes and sliding windows are those of the data set, padding is that of the model.

    Raises:
        SkipCase: if the project has no such model.
    """
    match = MODEL_NAME.fullmatch(case.name)
    if match is None:
        raise SkipCase(f"no model is named in {case.name}")
    dataset = CONFIGS / "datasets" / f"{DATASETS.get(match['dataset'], match['dataset'])}.yaml"
    host = CONFIGS / "models" / f"{match['model']}.yaml"
    for file, name in ((host, match["model"]), (dataset, match["dataset"])):
        if not file.is_file():
            raise SkipCase(f"{name} is not built yet")
    cfg = load_config(str(dataset))
    cfg.merge_from_other_cfg(CfgNode(CfgNode.load_yaml_with_base(str(host))))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER = "plain" if match["baseline"] else "offset"
    cfg.TEST.SEM_SEG.MODE = "slide" if "_slide_" in case.name else "whole"
    key = (cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME, cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER)
    if key not in KEY_MAPS:
        raise SkipCase(f"no key map for {key}")
    model = build_model(cfg)
    fill_model(model, KEY_MAPS[key])
    if dtype == torch.float64:
        model.normalise = _normalise_in_float32
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return CaseModel(model.to(dtype).eval(), KEY_MAPS[key], match["name"], num_classes)


def fill_model(model: nn.Module, key_map: KeyMap) -> None:
    """Load the reference's weights, generated under the authors' names and mapped to ours."""
    theirs = {}
    for name, own in key_map.to_theirs(model.state_dict()).items():
        value = parity_rules.weight(name, tuple(own.shape))
        theirs[name] = own if value is None else torch.from_numpy(value)
    ours, dropped = key_map.from_theirs(theirs)
    assert not dropped, dropped
    model.load_state_dict(ours, strict=True)


def inject_bases(model: nn.Module, batch: int) -> None:
    """The reference's NMF bases are one fixed draw for ``batch`` images; give ours the same."""
    for module in model.modules():
        if hasattr(module, "injected_bases"):
            shape = (batch, module.channels, module.rank)
            bases = torch.from_numpy(parity_rules.uniform("nmf_bases", shape))
            module.injected_bases = F.normalize(bases, dim=1)


def manifest_row(case: ParityCase, built: CaseModel) -> Iterator[Row]:
    """Every entry of the authors' state dict is mapped or dropped, shapes equal, none left."""
    path = case.path.parent / f"manifest_{built.manifest}.json"
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
    match = re.fullmatch(r"C_efficientformerv2_(S0|S1|S2|L)_\d+x\d+", case.name)
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
    normalised = torch.stack([_normalise(image) for image in case.images()])
    with torch.no_grad():
        found |= {f"out{i}": x for i, x in enumerate(network(normalised).values())}
    found["input"] = normalised
    yield from case.compare_all(found)


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
    images = case.images()
    inject_bases(model, len(images))
    with torch.no_grad():
        normalised = torch.stack([model.normalise(image) for image in images])
        features = model.backbone(normalised)
        logits = model.sem_seg_head(features)
    found |= {f"backbone{int(k[3:]) - 2}": v for k, v in features.items()}
    found |= {"input": normalised, "logits": logits}
    baseline = "_baseline_" in case.name
    yield from case.compare_all(found, PIPELINE_TOLERANCE if baseline else DEFAULT_TOLERANCE)
    if "logits_argmax" in case.data:
        yield case.compare_labels("logits_argmax", logits, 1e-4)


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


def pipeline(case: ParityCase) -> Iterator[Row]:
    """H: from the image to the label map at its original size."""
    model = build_case_model(case).model
    inject_bases(model, 1)  # the reference's windows ran one at a time
    settings = model.inference
    (image,) = case.images()
    height, width = case.result_size()
    crops = _record_crops(model)
    with torch.no_grad():
        logits = model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]
    padded = pad_to_multiple(model.normalise(image)[None], settings.size_divisibility)
    found = {"input": padded, "seg_logits": logits}
    found |= {f"crop{i}": crop[None] for i, crop in enumerate(crops)}
    if settings.mode == "slide":
        sizes = zip(padded.shape[-2:], settings.crop_size, settings.stride, strict=True)
        count = prod(len(window_origins(*along)) for along in sizes)
        yield Row(case.name, "number of windows", abs(count - int(case.data["n_crops"])), 0.0)
    yield from case.compare_all(found, PIPELINE_TOLERANCE)
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
    built = build_case_model(case, torch.float64)
    model = built.model.train()
    _silence(model)
    if case.name.endswith("_bneval"):
        for module in model.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    model.train_size = case.size()
    pairs = zip(case.images(), case.labels(built.num_classes), strict=True)
    batch = [{"image": image, "sem_seg": labels} for image, labels in pairs]
    inject_bases(model, len(batch))
    accuracy = _record_accuracy(model)
    loss = model(batch)["loss_sem_seg"]
    loss.backward()
    yield case.compare_relative("loss_fp64", loss.item(), float(case.data["loss_fp64"]), 1e-9)
    yield case.compare_relative(
        "acc_seg", accuracy[0], float(case.data["loss__decode.acc_seg"]), 1e-4
    )
    parameters = dict(model.named_parameters())
    gradients = built.key_map.to_theirs(
        {n: p.grad for n, p in parameters.items() if p.grad is not None}
    )
    yield Row(case.name, "parameters without gradient", len(parameters) - len(gradients), 0.0)
    yield from each_gradient_norm(case, gradients, 1e-9)
    buffers = built.key_map.to_theirs(model.state_dict())
    for key in case.tensors():
        if key.startswith("grad."):
            yield case.compare(key, gradients[key.removeprefix("grad.")])
        elif key.startswith("after."):
            yield case.compare(key, buffers[key.removeprefix("after.")])


def _normalise(image: Tensor) -> Tensor:
    return torch.from_numpy(parity_rules.normalise(image.permute(1, 2, 0).numpy()))[0]


def _normalise_in_float32(image: Tensor) -> Tensor:
    """The float64 reference starts from an image that was normalised in float32."""
    return _normalise(image).double()


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
