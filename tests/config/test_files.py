"""Every configuration file loads, builds, and is what its name says."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config
from offseg_d2.data import adapt_to_folders
from offseg_d2.modeling.classifiers import (
    OffsetClassifier,
    OffsetMaskPredictor,
    PlainClassifier,
    PlainMaskPredictor,
)
from offseg_d2.solver import build_optimizer
from tests.common import ROOT

CONFIGS = ROOT / "configs"
BASE = CONFIGS / "base"
LEAVES = sorted(path for path in CONFIGS.rglob("*.yaml") if BASE not in path.parents)
PARTS = sorted(BASE.rglob("*.yaml"))
# Their models are built and run in test_model_zoo.py.
OWN_DATA = "own_data"  # of no data set: its name and classes come with the command
ZOO_FOLDERS = ("ade20k", "cityscapes", "coco_stuff", "pascal_context")
NAME = re.compile(r"(?P<model>\w+?)_(?P<classifier>offset|plain)_(?P<schedule>\w+)")
# `make demo` and the documentation name this folder.
OTHER_OUTPUT_DIRS = {"shapes/offseg_t_offset_demo": "output/demo"}
# Backbone -> the key that holds its variant.
VARIANT_KEYS = {
    "EfficientFormerV2": "EFFICIENTFORMER_V2",
    "MiT": "MIT",
    "MSCAN": "MSCAN",
    "Swin": "SWIN",
}
# Model in a file's name, without "mask2former_" -> variant of its backbone.
VARIANTS = {"offseg_t": "s1", "offseg_b": "s2", "offseg_l": "l"}


def label(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def raw(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load(path: Path, *opts: object) -> CfgNode:
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu", *opts])
    cfg.freeze()
    return cfg


def variant_of(model: str) -> str:
    return VARIANTS.get(model.removeprefix("mask2former_"), model.rsplit("_", 1)[-1])


def last_layer_is(model: nn.Module, classifier: str) -> bool:
    """Return True if the network's last layer, of either form, is the one CLASSIFIER names."""
    kinds = {
        "offset": (OffsetClassifier, OffsetMaskPredictor),
        "plain": (PlainClassifier, PlainMaskPredictor),
    }
    head = model.sem_seg_head
    layer = head.classifier if hasattr(head, "classifier") else head.predictor.mask_predictor
    return isinstance(layer, kinds[classifier])


def test_there_are_leaves_of_every_dataset():
    assert {path.parent.name for path in LEAVES} == {"camvid", "shapes", OWN_DATA, *ZOO_FOLDERS}


@pytest.mark.parametrize("path", LEAVES, ids=label)
def test_leaf_is_named_after_what_it_is_composed_of(path):
    match = NAME.fullmatch(path.stem)
    assert match is not None, "a leaf is called MODEL_CLASSIFIER_SCHEDULE.yaml"
    bases = [Path(base) for base in raw(path)["_BASE_"]]
    assert bases[0] == Path("../base/runtime.yaml")
    parts = {base.parent.name: base.stem for base in bases[1:]}
    assert parts["models"] == match["model"]
    assert parts["datasets"] == path.parent.name
    asks_queries = match["model"].startswith("mask2former_")
    schedule = f"mask_query_{match['schedule']}" if asks_queries else match["schedule"]
    assert parts["schedules"] in (schedule, f"{path.parent.name}_{schedule}")
    recipe = {"recipes": "mask_query"} if asks_queries else {}
    assert {key: parts[key] for key in parts if key == "recipes"} == recipe
    assert list(parts) == ["datasets", "models", *recipe, "schedules"]  # later files win


@pytest.mark.parametrize("path", LEAVES, ids=label)
def test_leaf_says_the_same_as_its_name(path):
    match, cfg = NAME.fullmatch(path.stem), load(path)
    assert match is not None
    assert match["classifier"] == cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER
    assert OTHER_OUTPUT_DIRS.get(label(path), f"output/{label(path)}") == cfg.OUTPUT_DIR
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert name.startswith(f"{path.parent.name}_")
    if cfg.MODEL.BACKBONE.NAME in VARIANT_KEYS:
        group = cfg.MODEL[VARIANT_KEYS[cfg.MODEL.BACKBONE.NAME]]
        assert variant_of(match["model"]) == group.VARIANT
    thousands = re.fullmatch(r"(\d+)k", match["schedule"])
    if thousands:
        assert int(thousands[1]) * 1000 == cfg.SOLVER.MAX_ITER
    if match["schedule"] in ("cpu", "demo"):
        assert raw_device(path) == "cpu"


def raw_device(path: Path) -> str:
    return load_config(str(path)).MODEL.DEVICE


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if path.parent.name not in ZOO_FOLDERS], ids=label
)
def test_leaf_builds_and_has_the_datasets_classes(path):
    name = "camvid_train" if path.parent.name == OWN_DATA else load(path).DATASETS.TRAIN[0]
    cfg = load(path, "DATASETS.TRAIN", (name,)).clone()
    adapt_to_folders(cfg)
    classes = MetadataCatalog.get(name).stuff_classes
    assert len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    model = build_model(cfg).eval()
    build_optimizer(cfg, model)  # its rules must fit the names
    assert last_layer_is(model, cfg.MODEL.SEM_SEG_HEAD.CLASSIFIER)
    with torch.no_grad():
        result = model([{"image": torch.zeros(3, 64, 64)}])[0]["sem_seg"]
    assert result.shape == (len(classes), 64, 64)


@pytest.mark.parametrize("path", LEAVES, ids=label)
def test_leaf_trains_on_crops_of_a_fixed_size_and_warms_up_before_it_ends(path):
    cfg = load(path)
    assert cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute"
    assert all(isinstance(x, int) and x > 0 for x in cfg.INPUT.CROP.SIZE)
    assert cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER
    assert cfg.SOLVER.CHECKPOINT_PERIOD <= cfg.SOLVER.MAX_ITER
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED and raw_device(path) == "cpu":
        assert cfg.SOLVER.AMP.DTYPE == "bfloat16"  # there is no gradient scaler on the CPU


@pytest.mark.parametrize(
    "path", [path for path in LEAVES if path.parent.name == OWN_DATA], ids=label
)
def test_leaf_for_own_data_has_the_safe_form_of_the_offsets_and_no_data(path):
    cfg = load(path)
    head = cfg.MODEL.SEM_SEG_HEAD
    assert (head.CLASS_NORM, head.OFFSET_INIT_STD, cfg.SOLVER.OFFSET_LR_FACTOR) == (False, 0.0, 1.0)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == ((), ())


@pytest.mark.parametrize("classifier", ["offset", "plain"])
@pytest.mark.parametrize("path", sorted((BASE / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_model_builds_with_either_classifier(path, classifier):
    cfg = load(path, "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, "MODEL.DEVICE", "meta")
    assert raw(path)["MODEL"]["SEM_SEG_HEAD"]["CLASSIFIER"] == "offset"
    if cfg.MODEL.BACKBONE.NAME in VARIANT_KEYS:
        group = cfg.MODEL[VARIANT_KEYS[cfg.MODEL.BACKBONE.NAME]]
        assert variant_of(path.stem) == group.VARIANT
    with torch.device("meta"):
        model = build_model(cfg)
    assert last_layer_is(model, classifier)


@pytest.mark.parametrize("path", PARTS, ids=label)
def test_part_loads_on_its_own_and_inherits_from_nothing(path):
    assert "_BASE_" not in raw(path)
    load(path)


@pytest.mark.parametrize("path", PARTS, ids=label)
def test_part_keeps_to_its_subject(path):
    groups = set(raw(path))
    subject = path.parent.name
    if subject == "models":
        assert groups <= {"MODEL", "TEST"}
        # the authors' SegNeXt pads its test images
        assert set(raw(path).get("TEST", {}).get("SEM_SEG", {})) <= {"SIZE_DIVISIBILITY"}
        assert set(raw(path).get("TEST", {})) <= {"SEM_SEG"}
    elif subject == "datasets":
        assert groups <= {"DATASETS", "INPUT", "MODEL", "TEST"}
        assert set(raw(path).get("MODEL", {})) <= {"SEM_SEG_HEAD"}
