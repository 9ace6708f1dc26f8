"""Section of ``inference.py``: forms of each model, and other libraries' models."""

from collections.abc import Iterator
from typing import Any

from page import machine_line, number, percent, section, table

COMMAND = "python benchmarks/inference.py --output benchmarks/results/inference.json"
FORMS_HEADER = ["model, form", "ms", "spread", "times as fast", "label maps agree"]


@section("inference", "Inference", order=10)
def inference(result: dict[str, Any]) -> Iterator[str]:
    """Groups in the order of the file: forms first, then peers."""
    forms = [group for group in result["groups"] if group["model"] != "peers"]
    peers = [group for group in result["groups"] if group["model"] == "peers"]
    yield (
        "From uint8 images in memory to label maps of their size, in float32, with normalisation. "
        "All forms of a model have the same random weights. Each runs in a process of its own, and "
        "they take turns. The forms are the authors' order of operations "
        "(`benchmarks/authors_order`, the baseline), the model as it is built, "
        "`offseg_d2.deploy.optimize(model)` where it exists, and the model's ONNX file "
        "(`offseg export`, fixed size), run by OpenVINO and by onnxruntime. Spread: 10th "
        "to 90th percentile. *Label maps agree* compares with the baseline."
    )
    for title, rows in _by_setting(forms).items():
        yield f"### {title}"
        yield table(FORMS_HEADER, [line for group in rows for line in _form_rows(group)])
    yield (
        "A model has a deployed form if that is at least 1.2 times as fast as the faster runtime "
        "on the ONNX file. The other deployed forms below were measured and then removed."
    )
    yield table(["model", "deployed, times as fast as the faster runtime"], _gains(forms))
    for group in peers:
        yield f"### Beside other libraries, {_setting(group)}"
        yield (
            "Each model gives label maps as its library computes them; a backbone alone gives "
            "features. Weights are random. *Times as fast* compares with OffSeg-T, deployed."
        )
        header = ["model", "library", "ms", "spread", "times as fast"]
        yield table(header, [[row["model"], row["library"], *_cells(row)] for row in group["rows"]])
    yield f"`{COMMAND}`"
    yield "\n".join(dict.fromkeys(f"- {_machine(group)}" for group in result["groups"]))


def _by_setting(groups: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        found.setdefault(_setting(group), []).append(group)
    return found


def _setting(group: dict[str, Any]) -> str:
    (height, width), threads = group["size"], group["threads"]
    return f"{group['batch']} × {height}×{width}, {threads} thread{'s' * (threads != 1)}"


def _form_rows(group: dict[str, Any]) -> Iterator[list[Any]]:
    for row in group["rows"]:
        agreement = percent(row["label_agreement"], 3)
        yield [f"{group['model']}, {row['form']}", *_cells(row), agreement]


def _cells(row: dict[str, Any]) -> list[Any]:
    spread = f"{number(row['p10_ms'])} to {number(row['p90_ms'])}"
    return [row["ms"], spread, f"{row['times_as_fast']:.2f}"]


def _gains(groups: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for group in groups:
        if "deployed_to_best_runtime" in group:
            name = f"{group['model']}, {_setting(group)}"
            yield [name, f"{group['deployed_to_best_runtime']:.2f}"]


def _machine(group: dict[str, Any]) -> str:
    runtimes = [f"{name} {version}" for name, version in group.get("runtimes", {}).items()]
    return "; ".join([machine_line(group)[:-1], *runtimes]) + "."
