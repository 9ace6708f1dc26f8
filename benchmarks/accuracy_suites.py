"""What the accuracy experiment compares: arms, suites and their recipes.

One recipe for all arms of a suite; it was tuned on the plain arm alone, on validation data, with
seeds that the experiment does not use. The head learns ten times as fast as the backbone, as in the
paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Overrides = Mapping[str, Any]  # configuration key -> value

_CLASSIFIER, _CLASS, _FEATURE = (
    f"MODEL.SEM_SEG_HEAD.{key}" for key in ("CLASSIFIER", "CLASS_OFFSET", "FEATURE_OFFSET")
)
_SLOW = "SOLVER.OFFSET_LR_FACTOR"
_NORM = "MODEL.SEM_SEG_HEAD.CLASS_NORM"
_INIT = "MODEL.SEM_SEG_HEAD.OFFSET_INIT_STD"
ARMS: dict[str, Overrides] = {
    "plain": {_CLASSIFIER: "plain"},
    "class": {_CLASSIFIER: "offset", _CLASS: True, _FEATURE: False},
    "feature": {_CLASSIFIER: "offset", _CLASS: False, _FEATURE: True},
    "both": {_CLASSIFIER: "offset", _CLASS: True, _FEATURE: True},
    # What the offset classifier is without offsets: no dropout, and a norm over the class scores.
    # Not run by default; it tells the offsets' part in a difference from the norm's.
    "norm": {_CLASSIFIER: "offset", _CLASS: False, _FEATURE: False},
    # The head's rate was tuned on the plain arm. One step of it moves the class vectors through
    # their projection further than directly (features are positive and many), so these two arms
    # let the projections learn at a tenth of it.
    "class_slow": {_CLASSIFIER: "offset", _CLASS: True, _FEATURE: False, _SLOW: 0.1},
    "both_slow": {_CLASSIFIER: "offset", _CLASS: True, _FEATURE: True, _SLOW: 0.1},
    # As the paper's text has it, without the norm over the class scores of the authors' models.
    "class_free": {_CLASSIFIER: "offset", _CLASS: True, _FEATURE: False, _SLOW: 0.1, _NORM: False},
    "both_free": {_CLASSIFIER: "offset", _CLASS: True, _FEATURE: True, _SLOW: 0.1, _NORM: False},
    "free": {_CLASSIFIER: "offset", _CLASS: False, _FEATURE: False, _NORM: False},
    # Projections that are zero at first: all begin as the classifier without offsets does.
    "both_zero": {_CLASSIFIER: "offset", _CLASS: True, _FEATURE: True, _INIT: 0.0},
    "both_free_zero": {
        **{_CLASSIFIER: "offset", _CLASS: True, _FEATURE: True},
        **{_SLOW: 0.1, _NORM: False, _INIT: 0.0},
    },
}
DEFAULT_ARMS = ("plain", "class", "feature", "both")
ARM_TITLES = {
    "plain": "plain",
    "class": "class offset",
    "feature": "feature offset",
    "both": "both offsets",
    "norm": "neither offset, norm over classes",
    "class_slow": "class offset, slow projections",
    "both_slow": "both offsets, slow projections",
    "class_free": "class offset, slow projections, no norm",
    "both_free": "both offsets, slow projections, no norm",
    "free": "neither offset, no norm",
    "both_zero": "both offsets, projections from zero",
    "both_free_zero": "both offsets, slow projections from zero, no norm",
}

# From one arm to another that differs from it in one thing: a norm, offsets, a rate, a beginning.
CHANGES: tuple[tuple[str, str], ...] = (
    ("free", "norm"),
    ("norm", "class"),
    ("norm", "feature"),
    ("norm", "both"),
    ("class", "both"),
    ("feature", "both"),
    ("norm", "class_slow"),  # the rate is idle without projections
    ("norm", "both_slow"),
    ("free", "class_free"),
    ("free", "both_free"),
    ("class", "class_slow"),
    ("both", "both_slow"),
    ("class_slow", "class_free"),
    ("both_slow", "both_free"),
    ("both", "both_zero"),
    ("both_free", "both_free_zero"),
)


@dataclass(frozen=True)
class Suite:
    """A set of runs that are compared with each other.

    Attributes:
        title: for tables and plots.
        config: file, relative to the project.
        recipe: what is changed in it, for all arms.
        curve_set: data set that is scored while training, at ``NUM_POINTS`` iterations.
        test_set: data set that the final model is scored on; "" takes the last point of the curve.
        conditions: name -> (place on the axis of strengths, further changes).
    """

    title: str
    config: str
    recipe: Overrides
    curve_set: str
    test_set: str = ""
    conditions: Mapping[str, tuple[float, Overrides]] = field(
        default_factory=lambda: {"": (0.0, {})}
    )


NUM_POINTS = 4
# Single-threaded processes side by side: no data workers. No best checkpoint: the final model is
# what counts, so that no arm gains by a lucky moment.
_COMMON: Overrides = {
    "MODEL.DEVICE": "cpu",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.HEAD_LR_FACTOR": 10.0,
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.BEST_METRIC": "",
    "SOLVER.KEEP_CHECKPOINTS": 1,
    "TEST.SEM_SEG.MODE": "whole",
    "TEST.SEM_SEG.BOUNDARY_IOU": True,
}


def _length(iterations: int, warmup: int) -> Overrides:
    """Length of a run, a multiple of 40, which is scored at each of ``NUM_POINTS`` points."""
    return {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": warmup,
        # Scores are written at once, and a checkpoint some iterations before: a run that is killed
        # while it is scored will be scored again.
        "SOLVER.LOG_PERIOD": 10,
        "SOLVER.CHECKPOINT_PERIOD": iterations // NUM_POINTS - 5,
        "TEST.EVAL_PERIOD": iterations // NUM_POINTS,
    }


def _scenes(percent: int) -> Overrides:
    return {
        "DATASETS.TRAIN": [f"shapes_v{percent}_train"],
        "DATASETS.TEST": [f"shapes_v{percent}_val"],
    }


_SCENES: Overrides = {
    **_COMMON,
    "SOLVER.BASE_LR": 0.0005,
    "SOLVER.IMS_PER_BATCH": 4,
    "INPUT.CROP.SIZE": [96, 128],
    "INPUT.RESIZE.RATIO_RANGE": [0.5, 0.75],
    "INPUT.RESIZE.SCALE_TEST": [128, 96],
    # It would vary the looks of the classes where the scenes are to have none of it.
    "INPUT.PHOTOMETRIC_DISTORTION": False,
}

SUITES: dict[str, Suite] = {
    "camvid_offseg": Suite(
        title="CamVid, OffSeg decoder on MobileNetV2 with ImageNet weights",
        config="configs/camvid/offseg_mobilenetv2_offset_cpu.yaml",
        recipe={
            **_COMMON,
            **_length(600, 60),
            "SOLVER.BASE_LR": 0.0005,
            "SOLVER.IMS_PER_BATCH": 4,
            "INPUT.CROP.SIZE": [192, 256],
            "INPUT.RESIZE.RATIO_RANGE": [0.5, 0.9],
            "INPUT.RESIZE.SCALE_TEST": [320, 240],
            "DATASETS.TEST": ["camvid_val"],
        },
        curve_set="camvid_val",
        test_set="camvid_test",
    ),
    "camvid_segformer": Suite(
        title="CamVid, SegFormer-B0 from scratch",
        config="configs/camvid/segformer_b0_offset_cpu.yaml",
        recipe={
            **_COMMON,
            **_length(1000, 100),
            "SOLVER.BASE_LR": 0.0005,
            "SOLVER.IMS_PER_BATCH": 8,
            "INPUT.CROP.SIZE": [144, 192],
            "INPUT.RESIZE.RATIO_RANGE": [0.4, 0.7],
            "INPUT.RESIZE.SCALE_TEST": [240, 180],
            "DATASETS.TEST": ["camvid_val"],
        },
        curve_set="camvid_val",
        test_set="camvid_test",
    ),
    "scenes": Suite(
        title="Generated scenes, OffSeg decoder on MobileNetV2 with ImageNet weights",
        config="configs/shapes/offseg_mobilenetv2_offset_cpu.yaml",
        recipe={**_SCENES, **_length(400, 40)},
        curve_set="shapes_v*_val",
        conditions={f"v{percent}": (percent / 100, _scenes(percent)) for percent in (0, 50, 100)},
    ),
    "scenes_long": Suite(
        title="Generated scenes of full variation, four times as long",
        config="configs/shapes/offseg_mobilenetv2_offset_cpu.yaml",
        recipe={**_SCENES, **_length(1600, 160)},
        curve_set="shapes_v*_val",
        conditions={"v100": (1.0, _scenes(100))},
    ),
}
