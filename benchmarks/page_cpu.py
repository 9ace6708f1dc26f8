"""Sections of training, its data, label maps and evaluation on a CPU."""

from collections.abc import Iterator
from typing import Any

from page import columns_table, origin, percent, section

FOLDER = "benchmarks/results"
DATA_CASES = {
    "camvid": "CamVid, 480×360 JPEG",
    "cityscapes_png": "street frames, 2048×1024 PNG",
    "cityscapes_jpeg": "street frames, 2048×1024 JPEG",
    "photograph": "photographs, 2048×1536 JPEG",
    "photograph_reduced": "photographs, decoded at reduced scale",
}


@section("training_step", "Training step", order=20)
def training_step(result: dict[str, Any]) -> Iterator[str]:
    """Two rows for each model."""
    yield (
        "Forward and backward pass of one batch with 150 classes. The authors' order of operations "
        "(the baseline) and the models as they are trained take turns. *Checkpointed* is with "
        "`MODEL.BACKBONE.ACTIVATION_CHECKPOINTING`, which computes the backbone's blocks again in "
        "the backward pass. Memory is the peak of a process for each form; *beyond libraries* "
        "leaves out what the process takes before the first step. Gradients: relative difference "
        "to the baseline's, median over all parameters."
    )
    notes = {"ours": "", "frugal": ", checkpointed"}
    rows = [
        {**row, "form": row[form], "note": note}
        for row in result["rows"]
        for form, note in notes.items()
    ]
    columns = {
        "model, batch": lambda row: "{model}, {batch} × {size}×{size}{note}".format(**row),
        "baseline, s": lambda row: row["baseline"]["seconds"],
        "ours, s": lambda row: row["form"]["seconds"],
        "times as fast": lambda row: f"{row['form']['times_faster']:.2f}",
        "baseline, MB": lambda row: row["baseline"]["peak_mb"],
        "ours, MB": lambda row: row["form"]["peak_mb"],
        "of its memory": lambda row: f"{row['form']['memory_ratio']:.2f}",
        "beyond libraries": lambda row: f"{row['form']['memory_ratio_beyond_libraries']:.2f}",
        "gradients differ by": lambda row: (
            f"{row['form']['median_relative_gradient_difference']:.1e}"
        ),
    }
    yield columns_table(rows, columns)
    options = f"--threads {result['threads']} --output {FOLDER}/training_step.json"
    yield origin(result, f"python benchmarks/training_step.py {options}")


@section("data", "Training data", order=40)
def data(result: dict[str, Any]) -> Iterator[str]:
    """One row for each kind of image."""
    yield (
        "Images per second on one core: reading, decoding, resizing, cropping, flipping, "
        "photometric distortion and train ids. The usual mapper does the same with Detectron2's "
        "transforms (`benchmarks/usual_mapper.py`). *In a loader*: times as fast in a `DataLoader` "
        "with two workers."
    )
    columns = {
        "images": lambda row: DATA_CASES[row["case"]],
        "usual": lambda row: row["usual"]["images_per_s"],
        "ours": lambda row: row["ours"]["images_per_s"],
        "times as fast": "ratio",
        "in a loader": lambda row: row.get("loader", {}).get("ratio"),
    }
    yield columns_table(result["rows"], columns)
    yield origin(result, f"python benchmarks/data.py --workers 2 --output {FOLDER}/data.json")


@section("label_map", "From logits to a label map", order=60)
def label_map(result: dict[str, Any]) -> Iterator[str]:
    """One row for each kind of scores and layout."""
    yield (
        "From the logits of 150 classes at stride 4 of a 512×683 image to its label map. Resizing "
        "everything and then taking the argmax is compared with `interpolated_argmax`, which works "
        "block by block."
    )
    columns = {
        "scores, classes": lambda row: f"{row['scores']}, {row['classes']}",
        "everything, ms": "everything_ms",
        "blocks, ms": "blocks_ms",
        "times as fast": "ratio",
        "same labels": lambda row: percent(row["agreement"], 4),
    }
    yield columns_table(result["rows"], columns)
    options = f"--threads {result['threads']} --output {FOLDER}/label_map.json"
    yield origin(result, f"python benchmarks/label_map.py {options}")


@section("memory", "Memory of label maps", order=70)
def memory(result: dict[str, Any]) -> Iterator[str]:
    """One row for each way of running the model."""
    yield (
        "Peak memory of a process that predicts a 3000×4000 image with 150 classes: for the "
        "network's activations alone, with `predict_label_maps`, and with all scores resized."
    )

    def beyond(row: dict[str, Any], key: str) -> int | None:
        return row[key] - row["network_mb"] if row.get(key) else None

    columns = {
        "MB": "case",
        "network": "network_mb",
        "label maps": "blocks_mb",
        "beyond the network": lambda row: beyond(row, "blocks_mb"),
        "everything": lambda row: row.get("everything_mb"),
        "everything, beyond": lambda row: beyond(row, "everything_mb"),
        "same labels": lambda row: percent(row.get("agreement"), 4),
    }
    yield columns_table(result["rows"], columns)
    yield origin(result, f"python benchmarks/memory.py --output {FOLDER}/memory.json")


@section("evaluator", "Evaluation beside the network", order=80)
def evaluator(result: dict[str, Any]) -> Iterator[str]:
    """One row for each evaluator."""
    same = "the same" if result["same"] else "not the same"
    yield (
        "From a 512×683 map of class ids to the statistics of one image, 150 classes of which "
        f"{result['present']} are predicted. Detectron2's evaluator and this project's count "
        f"{same} confusion matrix."
    )
    yield columns_table(
        result["rows"], {"evaluator": "evaluator", "ms": "ms", "times as fast": "ratio"}
    )
    options = f"--threads {result['threads']} --output {FOLDER}/evaluator.json"
    yield origin(result, f"python benchmarks/evaluator.py {options}")
