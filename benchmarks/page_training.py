"""Sections of ``training_step.py`` and ``kept_memory.py``: time and memory on the CPU."""

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


@section("kept_memory", "Freed memory that is kept", order=22)
def kept_memory(result: dict[str, Any]) -> Iterator[str]:
    """One row for each call."""
    yield (
        "On a CPU the programs that train and predict have the C library keep freed memory for the "
        "next tensors (`offseg_d2.process_memory`). Otherwise (*usual*) much of it goes back to "
        "the system and is handed out anew page by page; page faults are those of one call. "
        "Training: forward, backward and AdamW on a batch of the CamVid recipes. Label map: of a "
        "512×512 image, 150 classes, by the deployed model. There is a process of either way, "
        f"which take turns call by call; medians of {result['calls']} calls, times as fast: of "
        "the ratios of two calls in succession, with their quartiles."
    )
    header = [
        "call", "usual, s", "kept, s", "times as fast", "quartiles", "page faults", "kept",
        "peak, MB", "kept, MB",
    ]  # fmt: skip
    yield table(header, [_kept_cells(row) for row in result["rows"]])
    options = f"--calls {result['calls']} --threads {result['threads']}"
    yield origin(
        result, f"python benchmarks/kept_memory.py {options} --output {FOLDER}/kept_memory.json"
    )


def _kept_cells(row: dict[str, Any]) -> list[Any]:
    kind = "label map" if row["predicts"] else "training"
    pairs = [[row[way][key] for way in ("usual", "kept")] for key in ("faults", "peak_mb")]
    seconds = [row[way]["seconds"] for way in ("usual", "kept")]
    low, high = row["spread"]
    return [
        f"{kind}, {row['case']}", *seconds, f"{row['times_faster']:.2f}",
        f"{low:.2f} to {high:.2f}", *pairs[0], *pairs[1],
    ]  # fmt: skip
