"""Cost of evaluation beside the network: this project's evaluator and Detectron2's in turn.

::

    python benchmarks/evaluator.py [--seconds 2] [--threads 1] [--present 15] [--output FILE]

Measured is the way from a map of class ids to the statistics of one image, 512x683 pixels and 150
classes: everything an evaluator does after its argmax. Reading the label file is on neither side:
both get the label from memory (Detectron2's own reader fails on numpy 2). Detectron2's evaluator
counts pairs, counts its multi-class "boundary" (whose classes are wrong, see
offseg_d2/evaluation/boundary.py) and encodes each class for a JSON file, always; here the right
Boundary IoU is shown as a row of its own, and nothing is encoded unless asked for. Encoding takes
Detectron2 longer the more classes a prediction holds: ``--present`` of the 150.

The evaluators take turns in each round, and the ratio is the median over the rounds.
"""

import argparse
import itertools
from collections.abc import Callable

import cv2
import numpy as np
import torch
from common import machine, write_json
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator as Detectron2Evaluator

from offseg_d2.analysis import measure_interleaved, speedup
from offseg_d2.evaluation import SemSegEvaluator

HEIGHT, WIDTH, NUM_CLASSES, IGNORED = 512, 683, 150, 255


class AfterArgmax:
    """Stands for scores whose argmax is known and costs nothing."""

    def __init__(self, class_ids: torch.Tensor) -> None:
        self.class_ids = class_ids

    def argmax(self, dim: int) -> torch.Tensor:
        return self.class_ids


def draw_maps(present: int) -> tuple[np.ndarray, torch.Tensor]:
    """Label (uint8, 2 % ignored) and prediction (int64) of smooth regions and their mix-ups."""
    rng = np.random.default_rng(0)
    classes = rng.choice(NUM_CLASSES, present, replace=False)
    scores = np.stack([cv2.resize(rng.normal(size=(7, 9)), (WIDTH, HEIGHT)) for _ in classes])
    noise = np.stack([cv2.resize(rng.normal(size=(32, 43)), (WIDTH, HEIGHT)) for _ in classes])
    label = classes[scores.argmax(axis=0)].astype(np.uint8)
    label[:10] = IGNORED
    return label, torch.from_numpy(classes[(scores + 0.3 * noise).argmax(axis=0)])


def make_detectron2(label: np.ndarray) -> tuple[Detectron2Evaluator, Callable]:
    DatasetCatalog.register("benchmark", lambda: [{"file_name": "0", "sem_seg_file_name": "0"}])
    names = [str(index) for index in range(NUM_CLASSES)]
    MetadataCatalog.get("benchmark").set(stuff_classes=names, ignore_label=IGNORED)
    evaluator = Detectron2Evaluator(
        "benchmark", distributed=False, sem_seg_loading_fn=lambda path, dtype: label.astype(dtype)
    )
    evaluator.reset()

    def process(class_ids: torch.Tensor) -> None:
        evaluator.process([{"file_name": "0"}], [{"sem_seg": AfterArgmax(class_ids)}])

    return evaluator, process


def make_own(label: np.ndarray, boundary: bool) -> tuple[SemSegEvaluator, Callable]:
    names = [str(index) for index in range(NUM_CLASSES)]
    evaluator = SemSegEvaluator(names, IGNORED, lambda sample: label, boundary=boundary)
    numbers = itertools.count()  # an image counts once, so each call has its own

    def process(class_ids: torch.Tensor) -> None:
        evaluator.process([{"file_name": str(next(numbers))}], [{"sem_seg": class_ids}])

    return evaluator, process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each evaluator")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--present", type=int, default=15, help="classes of the maps, 1..150")
    parser.add_argument("--output", default="", metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    label, class_ids = draw_maps(args.present)
    theirs, process_theirs = make_detectron2(label)
    ours, process_ours = make_own(label, boundary=False)
    _, process_with_boundary = make_own(label, boundary=True)
    small = class_ids.to(torch.uint8)
    process_theirs(class_ids)
    process_ours(class_ids)
    same = bool((ours._counts[:-1, :-1] == theirs._conf_matrix[:-1, :-1].T).all())
    calls = {
        "detectron2": lambda: process_theirs(class_ids),
        "offseg_d2": lambda: process_ours(class_ids),
        "offseg_d2, ids in uint8": lambda: process_ours(small),
        "offseg_d2, Boundary IoU": lambda: process_with_boundary(class_ids),
    }
    timings = measure_interleaved(calls, seconds=args.seconds)
    rows = []
    for name, timing in timings.items():
        ratio = round(speedup(timings["detectron2"], timing), 1)
        rows.append({"evaluator": name, "ms": round(1000 * timing.median, 2), "ratio": ratio})
        print(rows[-1])
    present = len(np.unique(class_ids))
    print(f"{present} of {NUM_CLASSES} classes predicted; same confusion matrix: {same}")
    result = {**machine(), "present": present, "same": same, "rows": rows}
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
