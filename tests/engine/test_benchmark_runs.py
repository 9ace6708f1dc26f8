"""Each benchmark's configuration trains and evaluates from end to end, with a small model."""

import math
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from offseg_d2.data.datasets import datasets_root
from tests.common import ROOT, SMALL_OFFSEG
from tests.data.datasets import common

REAL_ROOT = os.path.abspath(datasets_root())
BASE = ROOT / "configs" / "base"
SIDE = 64  # of the crops and windows, in pixels
SMALL_MODEL = {
    key: value
    for key, value in zip(SMALL_OFFSEG[::2], SMALL_OFFSEG[1::2], strict=True)
    if key != "MODEL.SEM_SEG_HEAD.NUM_CLASSES"  # the benchmark says how many
}
SETTINGS: dict[str, Any] = {
    **SMALL_MODEL,
    "MODEL.DEVICE": "cpu",
    "INPUT.RESIZE.SCALE": [2 * SIDE, SIDE],
    "INPUT.RESIZE.SCALE_TEST": [2 * SIDE, SIDE],
    "INPUT.CROP.SIZE": [SIDE, SIDE],
    "TEST.SEM_SEG.CROP_SIZE": [SIDE, SIDE],
    "TEST.SEM_SEG.STRIDE": [SIDE // 2, SIDE // 2],
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SEED": 1,
}


@pytest.fixture
def train_net(tmp_path, loggers) -> Callable[..., Any]:
    """Calls tools/train_net.py's main for a benchmark; returns the results of the evaluation."""
    main = runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="train_net")["main"]

    def call(benchmark: str, *flags: str, **options: Any) -> Any:
        files = ("runtime", f"datasets/{benchmark}", "models/offseg_t")
        config = tmp_path / f"{benchmark}.yaml"
        config.write_text(yaml.safe_dump({"_BASE_": [str(BASE / f"{f}.yaml") for f in files]}))
        settings = {**SETTINGS, "OUTPUT_DIR": str(tmp_path / "run"), **options}
        pairs = [str(entry) for key_value in settings.items() for entry in key_value]
        return main(["--config-file", str(config), *flags, *pairs])

    return call


def train_and_evaluate(train_net, run: Path, benchmark: str, **options: Any) -> None:
    """Two iterations; then --eval-only must repeat the final evaluation."""
    trained = train_net(benchmark, **options)
    lines = (run / "metrics.json").read_text().splitlines()
    assert '"total_loss"' in "".join(lines)
    weights = run / "model_final.pth"
    evaluated = train_net(benchmark, "--eval-only", **options, **{"MODEL.WEIGHTS": weights})
    scores, again = trained["sem_seg"], evaluated["sem_seg"]
    assert 0 <= scores["mIoU"] <= 100 and math.isfinite(scores["mIoU"])
    for key in ("mIoU", "mACC", "pACC"):
        assert again[key] == scores[key]
    assert "have no effect" not in (run / "log.txt").read_text()  # of keys in our own recipes


@pytest.mark.parametrize(
    ("benchmark", "write"),
    [
        ("ade20k", common.write_ade20k),
        ("cityscapes", common.write_cityscapes),
        ("coco_stuff", common.write_coco_stuff),
        ("pascal_context", common.write_pascal_context),
    ],
)
def test_benchmark_trains_and_evaluates(train_net, tmp_path, monkeypatch, benchmark, write):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    write(tmp_path / "data")
    train_and_evaluate(train_net, tmp_path / "run", benchmark)


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("benchmark", "folder", "part", "split"),
    [
        # The folder, what must be there of it, and the split that is trained on.
        ("ade20k", "ADEChallengeData2016", "images/validation", "ade20k_150_val"),
        ("cityscapes", "cityscapes", "leftImg8bit/val", "cityscapes_19_val"),
        ("coco_stuff", "coco_stuff164k", "images/train2017", "coco_stuff_171_train"),
        ("pascal_context", "VOCdevkit", "VOC2010/JPEGImages", "pascal_context_59_train"),
    ],
)
def test_benchmark_trains_and_evaluates_on_real_files(
    train_net, tmp_path, monkeypatch, benchmark, folder, part, split
):
    source = Path(REAL_ROOT, folder)
    if not (source / part).is_dir():
        pytest.skip(f"there is no {source / part}; DETECTRON2_DATASETS names the folder above")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / folder).symlink_to(source)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    train_and_evaluate(train_net, tmp_path / "run", benchmark, **{"DATASETS.TRAIN": (split,)})
