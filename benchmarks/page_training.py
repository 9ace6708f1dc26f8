"""Section of ``training_step.py``: time and memory of a training step."""

from collections.abc import Iterator
from typing import Any

from page import origin, section, table

FOLDER = "benchmarks/results"


@section("training_step", "Training step", order=20)
def training_step(result: dict[str, Any]) -> Iterator[str]:
    """Two rows for each model."""
    yield (
        "Forward and backward pass of one batch with 150 classes, in the authors' order of "
        "operations (the baseline) and as the models are trained, in turn; *again*: with "
        "`MODEL.BACKBONE.ACTIVATION_CHECKPOINTING`, the backbone's blocks computed again in the "
        "backward pass. Memory is the peak of a process for each form; beyond libraries: without "
        "what it takes before the first step. Gradients: relative difference to the baseline's, "
        "median over all parameters."
    )
    header = [
        "model, batch", "baseline, s", "ours, s", "times as fast", "baseline, MB", "ours, MB",
        "of its memory", "beyond libraries", "gradients differ by",
    ]  # fmt: skip
    forms = ("ours", "frugal")
    yield table(header, [_cells(row, form) for row in result["rows"] for form in forms])
    settings = f"--threads {result['threads']}"
    yield origin(
        result,
        f"python benchmarks/training_step.py {settings} --output {FOLDER}/training_step.json",
    )


def _cells(row: dict[str, Any], name: str) -> list[Any]:
    base, form = row["baseline"], row[name]
    note = ", again" if name == "frugal" else ""
    return [
        f"{row['model']}, {row['batch']} × {row['size']}×{row['size']}{note}",
        *(f["seconds"] for f in (base, form)),
        f"{form['times_faster']:.2f}",
        *(f["peak_mb"] for f in (base, form)),
        f"{form['memory_ratio']:.2f}",
        f"{form['memory_ratio_beyond_libraries']:.2f}",
        f"{form['median_relative_gradient_difference']:.1e}",
    ]
