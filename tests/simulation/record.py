"""Writes ``costs.json``, with which the tests compare: ``python -m tests.simulation.record``."""

import json
from pathlib import Path

from detectron2.config import CfgNode

from offseg_d2.analysis.simulation import Cost
from tests.common import offseg_config
from tests.modeling.test_hosts import HOSTS, MASK_QUERY
from tests.simulation.steps import label_maps, training_step

SIZE = (64, 96)
TABLE = Path(__file__).with_name("costs.json")


def config(host: str, classifier: str = "offset") -> CfgNode:
    opts = (*HOSTS[host], "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier, *_groups(host))
    return offseg_config(*opts, model=host)


def _groups(host: str) -> tuple[str, str]:
    return "SOLVER.PARAM_GROUPS", "mask_query" if host == MASK_QUERY else "per_pixel"


def row(cost: Cost) -> dict[str, int]:
    return {"kernels": cost.kernels.total(), "bytes": cost.moved, "waits": len(cost.waits)}


def main() -> None:
    rows = {}
    for host in HOSTS:
        for name, work in (("training step", training_step), ("label map", label_maps)):
            rows[f"{host} {name}"] = row(work(config(host), SIZE))
    TABLE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
