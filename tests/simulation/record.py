"""Writes ``costs.json``, with which the tests compare: ``python -m tests.simulation.record``.

With ``--full`` also, slowly, the rows of full size, which no test reads: 150 classes, 512 x 512
pixels, two images a step.
"""

import json
import sys
from pathlib import Path

from detectron2.config import CfgNode

from offseg_d2.analysis.simulation import Cost
from tests.common import offseg_config
from tests.modeling.test_hosts import HOSTS, MASK_QUERY
from tests.simulation.steps import label_maps, training_step

SIZE, FULL_SIZE = (64, 96), (512, 512)
TABLE = Path(__file__).with_name("costs.json")


def config(host: str, classifier: str = "offset") -> CfgNode:
    opts = (*HOSTS[host], "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, *_groups(host))
    return offseg_config(*opts, model=host)


def full_config(host: str) -> CfgNode:
    opts = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150, *_groups(host))
    return offseg_config(*opts, model=host)


def _groups(host: str) -> tuple[str, str]:
    return "SOLVER.PARAM_GROUPS", "mask_query" if host == MASK_QUERY else "per_pixel"


def row(cost: Cost) -> dict[str, int]:
    return {"kernels": cost.kernels.total(), "bytes": cost.moved, "waits": len(cost.waits)}


def main(full: bool) -> None:
    rows = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    sizes = {"": (config, SIZE), **({", full size": (full_config, FULL_SIZE)} if full else {})}
    for end, (build, size) in sizes.items():
        for host in HOSTS:
            for name, work in (("training step", training_step), ("label map", label_maps)):
                rows[f"{host} {name}{end}"] = row(work(build(host), size))
                TABLE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("--full" in sys.argv)
