"""One of two processes: ``python -m tests.evaluation.two_processes DIRECTORY RANK``."""

import json
import os
import sys
from pathlib import Path

import torch
from detectron2.utils import comm

from offseg_d2.config import ConfigError
from offseg_d2.engine import saved_predictions
from tests.evaluation.samples import Recorder, make_evaluator, process

NAMES = [f"{index}.png" for index in range(7)]
SHARES = {
    "apart": (NAMES[:3], NAMES[3:]),
    # a sampler that pads takes images from the beginning again
    "padded": (NAMES[:4], [*NAMES[4:], NAMES[0]]),
    "all_twice": (NAMES, NAMES[::-1]),
    "repeated_within": ([*NAMES[:4], NAMES[3], NAMES[3]], NAMES[4:]),
    "one_has_none": ([], NAMES),
}


def evaluate(names: list[str], directory: str) -> dict:
    recorder = Recorder()
    settings = {"boundary": True, "observers": [recorder], "output_dir": directory}
    evaluator = make_evaluator(**settings)
    process(evaluator, names)
    results = evaluator.evaluate()
    return {
        "results": results,
        "matrix": evaluator.confusion_matrix.tolist(),
        "calls": recorder.calls,
        "images": recorder.images,
        "total": recorder.total,
    }


def claim(directory: str) -> list[str]:
    """Both processes accept a new folder, and both refuse one of another model."""
    outcomes = []
    for weights in ("first", "first", "other"):
        try:
            saved_predictions._claim(directory, {"weights": weights})
            outcomes.append("accepted")
        except ConfigError:
            outcomes.append("refused")
        os.makedirs(directory, exist_ok=True)
        Path(directory, "a.png").touch()
        comm.synchronize()
    return outcomes


def run(directory: str, rank: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    comm.create_local_process_group(2)
    report = {
        name: evaluate(shares[rank], os.path.join(directory, name))
        for name, shares in SHARES.items()
    }
    report["claims"] = claim(os.path.join(directory, "predictions"))
    (Path(directory) / f"rank_{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
