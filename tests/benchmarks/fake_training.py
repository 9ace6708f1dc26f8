"""Stands for tools/train_net.py: as many "iterations" as asked for, resumable, without a model.

Each iteration takes FAKE_SECONDS; with FAKE_STATUS it fails. A line in FAKE_LOG records a training.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    flag, options = sys.argv[3], sys.argv[4:]
    values = dict(zip(options[::2], options[1::2], strict=True))
    folder = Path(values["OUTPUT_DIR"])
    score = 40.0 + int(values["SEED"]) + (values["MODEL.SEM_SEG_HEAD.CLASSIFIER"] == "offset")
    if os.environ.get("FAKE_STATUS"):
        sys.exit("no luck")
    if flag == "--eval-only":
        report = folder / "inference" / "test_set" / "metrics.json"
        report.parent.mkdir(parents=True)
        summary = {"mIoU": score, "pACC": 80.0}
        classes = [{"name": "sky", "IoU": None}, {"name": "road", "IoU": 50.0}]
        report.write_text(json.dumps({"summary": summary, "classes": classes}))
        return
    checkpoint, last = folder / "last", int(values["SOLVER.MAX_ITER"])
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    with open(folder / "metrics.json", "a") as metrics:
        for iteration in range(start, last):
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
            entry = {"iteration": iteration, "total_loss": 1.0 / (iteration + 1)}
            metrics.write(json.dumps(entry) + "\n")
            metrics.flush()
            (folder / "unfinished").write_text(str(iteration + 1))
            os.replace(folder / "unfinished", checkpoint)
        metrics.write(json.dumps({"iteration": last, "sem_seg/mIoU": score + 10}) + "\n")
    (folder / "model_final.pth").write_text("")
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write(f"{folder.parent.name}/{folder.name} from {start}\n")


if __name__ == "__main__":
    main()
