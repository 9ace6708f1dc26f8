"""Section of ``data.py``: images a second of the training pipeline."""

from collections.abc import Iterator
from typing import Any

from page import origin, section, table

CASES = {
    "camvid": "CamVid, 480×360 JPEG",
    "cityscapes_png": "street frames, 2048×1024 PNG",
    "cityscapes_jpeg": "street frames, 2048×1024 JPEG",
    "photograph": "photographs, 2048×1536 JPEG",
    "photograph_reduced": "photographs, decoded at reduced scale",
}


@section("data", "Training data", order=40)
def data(result: dict[str, Any]) -> Iterator[str]:
    """One row for each kind of image."""
    yield (
        "Images a second on one core: reading, decoding, resizing, cropping, flipping, photometric "
        "distortion, train ids. The usual mapper is Mask2Former's for semantic segmentation, "
        "written out with Detectron2's transforms (`benchmarks/usual_mapper.py`)."
    )
    rows = result["rows"]
    with_loader = any("loader" in row for row in rows)
    header = ["images", "usual", "ours", "times as fast", *(["in a loader"] * with_loader)]
    yield table(header, [_cells(row, with_loader) for row in rows])
    steps = [row for row in rows if "steps_ms" in row]
    if steps:
        names = list(steps[0]["steps_ms"]["ours"])
        yield "Milliseconds of each step, ours and (usual):"
        yield table(
            ["images", *names], [[CASES[row["case"]], *_steps(row, names)] for row in steps]
        )
    yield origin(result, "python benchmarks/data.py --output benchmarks/results/data.json")


def _cells(row: dict[str, Any], with_loader: bool) -> list[Any]:
    cells = [CASES[row["case"]], row["usual"]["images_per_s"], row["ours"]["images_per_s"]]
    loader = [row["loader"]["ratio"] if "loader" in row else None] * with_loader
    return [*cells, row["ratio"], *loader]


def _steps(row: dict[str, Any], names: list[str]) -> list[str]:
    ours, usual = row["steps_ms"]["ours"], row["steps_ms"]["usual"]
    return [
        f"{ours[name]:.1f} ({usual[name]:.1f})" if name in usual else f"{ours.get(name, 0):.1f}"
        for name in names
    ]
