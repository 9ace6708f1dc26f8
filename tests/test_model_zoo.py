"""The model zoo: its rows are complete, have the published sizes and recipes, and run."""

import functools
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances

import offseg_d2.data
import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config
from tests.common import ROOT, seed_all

CONFIGS = ROOT / "configs"
DOCUMENT = ROOT / "docs" / "MODEL_ZOO.md"
GOLDEN = ROOT / "tests" / "golden" / "official_parameters.json"
SCHEDULES = {"ade20k": "160k", "cityscapes": "160k", "coco_stuff": "80k", "pascal_context": "80k"}
OFFSEG = ("offseg_t", "offseg_b", "offseg_l")
SEGFORMER = tuple(f"segformer_b{i}" for i in range(6))
SEGNEXT = ("segnext_t", "segnext_s", "segnext_b")
ROWS = [
    (dataset, model)
    for dataset in SCHEDULES
    for model in (*OFFSEG, *SEGFORMER, *SEGNEXT)
    if dataset != "pascal_context" or model in SEGNEXT
]
# The mask-query form, which has a recipe of its own.
MASK_QUERY = tuple(f"mask2former_{backbone}" for backbone in ("swin_t", *OFFSEG))
MASK_SCHEDULES = {"ade20k": "160k", "cityscapes": "90k", "coco_stuff": "160k"}
MASK_CROPS = {"ade20k": [512, 512], "cityscapes": [512, 1024], "coco_stuff": [512, 512]}
MASK_ROWS = [
    ("ade20k", "mask2former_r50"),
    *((dataset, model) for dataset in MASK_SCHEDULES for model in MASK_QUERY),
]
# dataset -> crop (height, width), images per iteration, sliding window (crop, stride)
RECIPES = {
    "ade20k": ([512, 512], 16, ([512, 512], [480, 480])),
    "cityscapes": ([1024, 1024], 8, ([1024, 1024], [768, 768])),
    "coco_stuff": ([512, 512], 16, ([512, 512], [480, 480])),
    "pascal_context": ([480, 480], 16, ([480, 480], [320, 320])),
}
CLASSES = {"ade20k": 150, "cityscapes": 19, "coco_stuff": 171, "pascal_context": 59}


def path_of(dataset: str, model: str) -> Path:
    schedule = (MASK_SCHEDULES if model.startswith("mask2former") else SCHEDULES)[dataset]
    return CONFIGS / dataset / f"{model}_offset_{schedule}.yaml"


def load(dataset: str, model: str, *opts: object) -> CfgNode:
    return load_config(str(path_of(dataset, model)), ["MODEL.DEVICE", "cpu", *opts])


def unused_parameters(dataset: str, model: str) -> int:
    """Size of the 1x1 convolution that the authors' offset heads carry without using it."""
    channels = 512 if model == "segnext_b" else 256
    return CLASSES[dataset] * (channels + 1)


@functools.cache
def count_parameters(path: Path) -> int:
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(cfg).parameters())


@pytest.mark.parametrize(("dataset", "model"), ROWS)
def test_row_has_a_configuration_with_the_published_recipe(dataset, model):
    cfg = load(dataset, model)
    crop, batch, (window, stride) = RECIPES[dataset]
    iterations = int(SCHEDULES[dataset].removesuffix("k")) * 1000
    assert iterations == cfg.SOLVER.MAX_ITER
    assert cfg.SOLVER.POLY_END_ITER in (0, iterations)
    assert (crop, batch) == (cfg.INPUT.CROP.SIZE, cfg.SOLVER.IMS_PER_BATCH)
    test = cfg.TEST.SEM_SEG
    whole = model in SEGNEXT and dataset in ("ade20k", "coco_stuff")
    assert ("whole" if whole else "slide") == test.MODE
    assert (window, stride) == (test.CROP_SIZE, test.STRIDE)
    assert (32 if model in SEGNEXT else 0) == test.SIZE_DIVISIBILITY
    assert CLASSES[dataset] == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert cfg.MODEL.WEIGHTS.startswith("weights/")


@pytest.mark.parametrize(("dataset", "model"), [*ROWS, *MASK_ROWS])
def test_row_has_as_many_classes_as_its_datasets(dataset, model):
    cfg = load(dataset, model)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert len(MetadataCatalog.get(name).stuff_classes) == CLASSES[dataset]


@pytest.mark.parametrize(("dataset", "model"), MASK_ROWS)
def test_mask_query_row_has_mask2formers_recipe(dataset, model):
    cfg = load(dataset, model)
    iterations = int(MASK_SCHEDULES[dataset].removesuffix("k")) * 1000
    solver = cfg.SOLVER
    assert (iterations, 16) == (solver.MAX_ITER, solver.IMS_PER_BATCH)
    assert (solver.BASE_LR, solver.BACKBONE_LR_FACTOR, solver.WEIGHT_DECAY) == (1e-4, 0.1, 0.05)
    assert (solver.WARMUP_ITERS, solver.POLY_LR_POWER) == (0, 0.9)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 0.01)
    crop = MASK_CROPS[dataset]
    assert crop == cfg.INPUT.CROP.SIZE
    # short sides from half to twice the crop's (Cityscapes: the image's)
    short = 1024 if dataset == "cityscapes" else crop[0]
    assert [short * i // 10 for i in range(5, 21)] == list(cfg.INPUT.MIN_SIZE_TRAIN)
    assert (cfg.INPUT.DATASET_MAPPER_NAME, cfg.TEST.SEM_SEG.MODE) == ("instances", "whole")
    assert cfg.TEST.SEM_SEG.SIZE_DIVISIBILITY == 32
    assert CLASSES[dataset] == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


def test_mask2former_with_offsets_has_the_authors_size():
    # its head carries no unused layer
    official = json.loads(GOLDEN.read_text())["ade20k/mask2former_swin_t"]
    assert count_parameters(path_of("ade20k", "mask2former_swin_t")) == official


def test_official_sizes_are_known_for_every_row_of_the_paper():
    official = json.loads(GOLDEN.read_text())
    expected = {
        f"{dataset}/{model}"
        for dataset, model in ROWS
        if not (dataset == "cityscapes" and model in SEGFORMER)  # the paper has none
    }
    assert set(official) >= expected


@pytest.mark.parametrize(("dataset", "model"), ROWS)
def test_parameters_are_the_authors_to_the_unit_without_the_unused_convolution(dataset, model):
    official = json.loads(GOLDEN.read_text())
    name = f"{dataset}/{model}"
    if name in official:
        expected = official[name] - unused_parameters(dataset, model)
    else:  # a class costs its representation and its two values of the layer norm
        other = official[f"ade20k/{model}"] - unused_parameters("ade20k", model)
        expected = other - (CLASSES["ade20k"] - CLASSES[dataset]) * (256 + 2)
    assert count_parameters(path_of(dataset, model)) == expected


def random_sample(classes: int) -> dict[str, Any]:
    """A mapper's output for a training crop of 64 x 64, of either kind."""
    instances = Instances((64, 64))
    instances.gt_classes = torch.tensor([0, classes - 1])
    instances.gt_masks = torch.rand(2, 64, 64) < 0.5
    return {
        "image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8),
        "sem_seg": torch.randint(classes, (64, 64)),
        "instances": instances,
    }


# Of a data set but the first, the network knows the number of classes alone.
SMALLEST = ("offseg_t", "segformer_b0", "segnext_t", "mask2former_offseg_t")
RUN = [row for row in (*ROWS, *MASK_ROWS) if row[0] == "ade20k" or row[1] in SMALLEST]


@pytest.mark.parametrize(("dataset", "model"), RUN)
def test_row_trains_and_predicts_at_64_pixels(dataset, model):
    points = ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 256)  # 4096 pixels are there in all
    cfg = load(dataset, model, "INPUT.CROP.SIZE", [64, 64], *points)
    seed_all(0)
    network = build_model(cfg).train()
    classes = CLASSES[dataset]
    batch = [random_sample(classes) for _ in range(2)]
    loss = sum(network(batch).values())
    loss.backward()
    assert torch.isfinite(loss)
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert not without, without
    with torch.no_grad():
        result = network.eval()([{"image": batch[0]["image"]}])[0]["sem_seg"]
    assert result.shape == (classes, 64, 64) and bool(result.isfinite().all())


def documented_rows() -> dict[str, int]:
    """Configuration -> parameters, as in docs/MODEL_ZOO.md."""
    pattern = re.compile(r"^\| \[([\w/]+)\]\(\.\./configs/\1\.yaml\) \| ([\d ]+) \|", re.M)
    text = DOCUMENT.read_text(encoding="utf-8")
    return {name: int(number.replace(" ", "")) for name, number in pattern.findall(text)}


def test_document_lists_every_benchmark_configuration():
    leaves = {
        path.relative_to(CONFIGS).with_suffix("").as_posix()
        for dataset in SCHEDULES
        for path in (CONFIGS / dataset).glob("*.yaml")
    }
    assert set(documented_rows()) == leaves


FEW = ("ade20k/segformer_b0_offset_160k", "ade20k/segnext_t_offset_160k")


def documented_numbers() -> dict[str, list[str]]:
    """Configuration -> texts of parameters and of both multiply-accumulates."""
    cells = [line.split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines()]
    rows = documented_rows()
    names = {f"[{name}](../configs/{name}.yaml)": name for name in rows}
    return {
        names[row[1].strip()]: [cell.strip() for cell in row[2:5]]
        for row in cells
        if len(row) > 4 and row[1].strip() in names
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
        for name in sorted(documented_rows())
    ],
)
def test_document_has_the_true_multiply_accumulates(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    make_zoo = runpy.run_path(str(ROOT / "benchmarks/make_zoo.py"))
    assert documented_numbers()[name] == make_zoo["numbers"](name)


def test_document_has_the_digits_that_the_paper_prints_for_offseg():
    numbers = documented_numbers()
    convolutions = {name: row[1] for name, row in numbers.items() if "/offseg_" in name}
    for size, ade20k, cityscapes in (("t", "5.3", "44.8"), ("b", "10.3", "86.5"),
                                     ("l", "17.1", "143.4")):  # fmt: skip
        assert convolutions[f"ade20k/offseg_{size}_offset_160k"] == ade20k
        assert convolutions[f"cityscapes/offseg_{size}_offset_160k"] == cityscapes


@pytest.mark.parametrize(("name", "parameters"), sorted(documented_rows().items()))
def test_document_has_the_true_number_of_parameters(name, parameters):
    assert count_parameters(CONFIGS / f"{name}.yaml") == parameters
