"""Section of ``quantisation.py``: costs and gains of eight bits."""

from collections.abc import Iterator
from typing import Any

from page import machine_line, section, table


@section("quantisation", "Exported models with eight bits", order=50)
def quantisation(result: dict[str, Any]) -> Iterator[str]:
    """One row for each model."""
    yield (
        "ONNX files in onnxruntime: float32 against static quantisation to int8, calibrated on "
        "training frames of CamVid, scored on its test frames."
    )
    header = [
        "model", "mIoU float", "mIoU int8", "labels agree", "float, ms", "int8, ms",
        "times as fast", "file, MB (float, int8)",
    ]  # fmt: skip
    models = result["models"]
    yield table(header, [_cells(name, entry) for name, entry in models.items()])
    last = next(reversed(models.values()))
    machine = (last.get("speed") or last["accuracy"])["machine"]
    yield f"`python benchmarks/quantisation.py {{accuracy,speed}} ...`  \n{machine_line(machine)}"


def _cells(name: str, entry: dict[str, Any]) -> list[Any]:
    accuracy, speed = entry.get("accuracy", {}), entry.get("speed", {})
    sizes = [entry["file_bytes"][kind] / 1e6 for kind in ("float", "int8")]
    agreement = accuracy.get("label_agreement")
    return [
        name,
        *(accuracy.get(key) for key in ("float_mIoU", "int8_mIoU")),
        None if agreement is None else f"{100 * agreement:.2f} %",
        *(speed.get(key) for key in ("float_ms", "int8_ms", "ratio")),
        f"{sizes[0]:.1f}, {sizes[1]:.1f}",
    ]
