"""Section of ``training_step.py``: time and memory of a training step."""

from collections.abc import Iterator
from typing import Any

from page import origin, section, table

FOLDER = "benchmarks/results"


@section("training_step", "Training step", order=20)
def training_step(result: dict[str, Any]) -> Iterator[str]:
    """One row for each model."""
    yield (
        "Forward and backward pass of one batch with 150 classes, in the authors' order of "
        "operations (the baseline) and as the models are trained, in turn. Memory is the peak of "
        "a process for each form; beyond libraries: without what it takes before the first step. "
        "Gradients: relative difference of the two forms, median over all parameters."
    )
    header = [
        "model, batch", "baseline, s", "ours, s", "times as fast", "baseline, MB", "ours, MB",
        "of its memory", "beyond libraries", "gradients differ by",
    ]  # fmt: skip
    yield table(header, [_cells(row) for row in result["rows"]])
    settings = f"--threads {result['threads']}"
    yield origin(
        result,
        f"python benchmarks/training_step.py {settings} --output {FOLDER}/training_step.json",
    )


def _cells(row: dict[str, Any]) -> list[Any]:
    forms = row["baseline"], row["ours"]
    return [
        f"{row['model']}, {row['batch']} × {row['size']}×{row['size']}",
        *(form["seconds"] for form in forms),
        f"{row['times_faster']:.2f}",
        *(form["peak_mb"] for form in forms),
        f"{row['memory_ratio']:.2f}",
        f"{row['memory_ratio_beyond_libraries']:.2f}",
        f"{row['median_relative_gradient_difference']:.1e}",
    ]
