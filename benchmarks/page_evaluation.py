"""Sections of what evaluation costs: ``label_map.py``, ``memory.py`` and ``evaluator.py``."""

from collections.abc import Iterator
from typing import Any

from page import origin, percent, section, table

FOLDER = "benchmarks/results"


@section("label_map", "From logits to a label map", order=60)
def label_map(result: dict[str, Any]) -> Iterator[str]:
    """One row for each kind of scores and layout."""
    yield (
        "Logits of 150 classes at stride 4 of a 512×683 image become its label map: everything "
        "resized, then argmax; against `interpolated_argmax`, block by block. Processor time is "
        "that of all threads."
    )
    header = [
        "scores, classes", "everything, ms", "blocks, ms", "times as fast",
        "processor, ms", "processor, ms", "times as fast", "same labels",
    ]  # fmt: skip
    yield table(
        header,
        [
            [
                f"{row['scores']}, {row['classes']}",
                row["everything_ms"],
                row["blocks_ms"],
                row["ratio"],
                row["everything_processor_ms"],
                row["blocks_processor_ms"],
                row["processor_ratio"],
                percent(row["agreement"], 4),
            ]
            for row in result["rows"]
        ],
    )
    settings = f"--rounds {result['rounds']} --threads {result['threads']}"
    yield origin(
        result, f"python benchmarks/label_map.py {settings} --output {FOLDER}/label_map.json"
    )


@section("memory", "Memory of label maps", order=70)
def memory(result: dict[str, Any]) -> Iterator[str]:
    """One row for each way of running the model."""
    yield (
        "Peak resident memory of a process that predicts a 3000×4000 image with 150 classes: the "
        "network's activations alone, with `predict_label_maps`, and with all scores resized."
    )
    yield table(
        ["MB", "network", "label maps", "beyond", "everything", "beyond", "same labels"],
        [
            [
                row["case"],
                row["network_mb"],
                row["blocks_mb"],
                _beyond(row, "blocks_mb"),
                row.get("everything_mb"),
                _beyond(row, "everything_mb"),
                percent(row.get("agreement"), 4),
            ]
            for row in result["rows"]
        ],
    )
    yield origin(result, f"python benchmarks/memory.py --output {FOLDER}/memory.json")


def _beyond(row: dict[str, Any], key: str) -> int | None:
    """What a way takes beyond the network; None if it was not run."""
    return row[key] - row["network_mb"] if row.get(key) else None


@section("evaluator", "Evaluation beside the network", order=80)
def evaluator(result: dict[str, Any]) -> Iterator[str]:
    """One row for each evaluator."""
    same = "the same" if result["same"] else "not the same"
    yield (
        "From a 512×683 map of class ids to the statistics of one image, 150 classes of which "
        f"{result['present']} are predicted. Detectron2's evaluator and this project's count "
        f"{same} confusion matrix."
    )
    yield table(
        ["evaluator", "ms", "times as fast", "processor, ms", "times as fast"],
        [
            [row["evaluator"], row["ms"][0], row["ratio"][0], row["ms"][1], row["ratio"][1]]
            for row in result["rows"]
        ],
    )
    settings = f"--rounds {result['rounds']} --threads {result['threads']}"
    yield origin(
        result, f"python benchmarks/evaluator.py {settings} --output {FOLDER}/evaluator.json"
    )
