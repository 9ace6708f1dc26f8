"""Arms, suites and recipes of the accuracy experiment.

One recipe for all arms of a suite; it was tuned on the plain arm alone, on validation data, with
seeds that the experiment does not use. The head learns ten times as fast as the backbone, as in the
paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Overrides = Mapping[str, Any]  # configuration key -> value

_HEAD = "MODEL.SEM_SEG_HEAD"


@dataclass(frozen=True)
class Arm:
    """One of the classifiers that are compared.

    Attributes:
        title: for tables and plots.
        overrides: what distinguishes it, in the configuration.
    """

    title: str
    overrides: Overrides


def _offset(
    class_offset: bool, feature_offset: bool, *, small_lr: bool = False, **head: Any
) -> dict:
    """Overrides of an offset classifier; ``small_lr``: a tenth of the rate for its projections."""
    head |= {"CLASSIFIER": "offset", "CLASS_OFFSET": class_offset, "FEATURE_OFFSET": feature_offset}
    overrides = {f"{_HEAD}.{key}": value for key, value in head.items()}
    return {**overrides, **({"SOLVER.OFFSET_LR_FACTOR": 0.1} if small_lr else {})}


ARMS = {
    "plain": Arm("plain", {f"{_HEAD}.CLASSIFIER": "plain"}),
    "class": Arm("class offset", _offset(True, False)),
    "feature": Arm("feature offset", _offset(False, True)),
    "both": Arm("both offsets", _offset(True, True)),
    # Not run by default: they separate the offsets' part in a difference from that of the norm
    # over the class scores, and of the rate, which was tuned on the plain arm.
    "norm": Arm("no offsets, norm over classes", _offset(False, False)),
    "class_lr0.1": Arm("class offset, lr×0.1", _offset(True, False, small_lr=True)),
    "both_lr0.1": Arm("both offsets, lr×0.1", _offset(True, True, small_lr=True)),
    "class_lr0.1_no_norm": Arm(
        "class offset, lr×0.1, no norm",
        _offset(True, False, small_lr=True, CLASS_NORM=False),
    ),
    "both_lr0.1_no_norm": Arm(
        "both offsets, lr×0.1, no norm", _offset(True, True, small_lr=True, CLASS_NORM=False)
    ),
    "no_norm": Arm("no offsets, no norm", _offset(False, False, CLASS_NORM=False)),
    # Projections that are zero at first: training begins without offsets.
    "both_zero": Arm("both offsets, from zero", _offset(True, True, OFFSET_INIT_STD=0.0)),
    "both_no_norm_zero": Arm(
        "both offsets, no norm, from zero",
        _offset(True, True, CLASS_NORM=False, OFFSET_INIT_STD=0.0),
    ),
    "both_lr0.1_no_norm_zero": Arm(
        "both offsets, lr×0.1, no norm, from zero",
        _offset(True, True, small_lr=True, CLASS_NORM=False, OFFSET_INIT_STD=0.0),
    ),
}
DEFAULT_ARMS = ("plain", "class", "feature", "both")

# From one arm to another that differs from it in one thing: a norm, offsets, a rate, a beginning.
CHANGES = (
    ("no_norm", "norm"),
    ("norm", "class"),
    ("norm", "feature"),
    ("norm", "both"),
    ("class", "both"),
    ("feature", "both"),
    ("norm", "both_lr0.1"),  # without offsets the rate has no effect
    ("no_norm", "both_lr0.1_no_norm"),
    ("class", "class_lr0.1"),
    ("both", "both_lr0.1"),
    ("both_lr0.1", "both_lr0.1_no_norm"),
    ("both", "both_zero"),
    ("both_lr0.1_no_norm", "both_lr0.1_no_norm_zero"),
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
        axis: what the conditions differ in, for plots.
        conditions: name -> (its place on that axis, further changes).
    """

    title: str
    config: str
    recipe: Overrides
    curve_set: str
    test_set: str = ""
    axis: str = ""
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


def _scenes(kind: str) -> dict[str, Any]:
    return {"DATASETS.TRAIN": [f"shapes_{kind}_train"], "DATASETS.TEST": [f"shapes_{kind}_val"]}


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

_CAMVID: Overrides = {**_COMMON, "SOLVER.BASE_LR": 0.0005, "DATASETS.TEST": ["camvid_val"]}
_CAMVID_SETS = {"curve_set": "camvid_val", "test_set": "camvid_test"}
_SEGFORMER = Suite(
    title="CamVid, SegFormer-B0 from scratch",
    config="configs/camvid/segformer_b0_offset_cpu.yaml",
    recipe={
        **_CAMVID,
        **_length(1000, 100),
        "SOLVER.IMS_PER_BATCH": 8,
        "INPUT.CROP.SIZE": [144, 192],
        "INPUT.RESIZE.RATIO_RANGE": [0.4, 0.7],
        "INPUT.RESIZE.SCALE_TEST": [240, 180],
    },
    **_CAMVID_SETS,
)


def _scenes_suite(title: str, iterations: int, axis: str, **conditions: Any) -> Suite:
    return Suite(
        title=title,
        config="configs/shapes/offseg_mobilenetv2_offset_cpu.yaml",
        recipe={**_SCENES, **_length(iterations, iterations // 10)},
        curve_set=f"shapes_{next(iter(conditions))[0]}*_val",
        axis=axis,
        conditions=conditions,
    )


_VARIATION = "within-class variation between images, %"
SUITES: dict[str, Suite] = {
    "scenes_classes": _scenes_suite(
        "Generated scenes of 8, 32 and 150 classes",
        600,
        "number of classes",
        **{
            f"k{number}": (number, _scenes(f"k{number}") | {f"{_HEAD}.NUM_CLASSES": number})
            for number in (8, 32, 150)
        },
    ),
    "camvid_offseg": Suite(
        title="CamVid, OffSeg decoder on MobileNetV2 with ImageNet weights",
        config="configs/camvid/offseg_mobilenetv2_offset_cpu.yaml",
        recipe={
            **_CAMVID,
            **_length(600, 60),
            "SOLVER.IMS_PER_BATCH": 4,
            "INPUT.CROP.SIZE": [192, 256],
            "INPUT.RESIZE.RATIO_RANGE": [0.5, 0.9],
            "INPUT.RESIZE.SCALE_TEST": [320, 240],
        },
        **_CAMVID_SETS,
    ),
    "camvid_segformer": _SEGFORMER,
    # The same recipe by one later state of the code and on one machine, with the form of own data.
    "camvid_segformer_forms": replace(_SEGFORMER, title=f"{_SEGFORMER.title}, three forms"),
    "scenes": _scenes_suite(
        "Generated scenes, OffSeg decoder on MobileNetV2 with ImageNet weights",
        400,
        _VARIATION,
        **{f"v{percent}": (percent, _scenes(f"v{percent}")) for percent in (0, 50, 100)},
    ),
    "scenes_long": _scenes_suite(
        "Generated scenes of full variation, four times as long",
        1600,
        _VARIATION,
        v100=(100, _scenes("v100")),
    ),
}
