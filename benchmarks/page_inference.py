"""Section of ``inference.py``: forms of each model, and other libraries' models."""

from collections.abc import Iterator
from typing import Any

from page import machine_line, number, percent, section, setting_line, table

COMMAND = "python benchmarks/inference.py --output benchmarks/results/inference.json"
BASELINE = "authors' order"
FORMS_HEADER = ["model, form", "ms", "spread", "times as fast", "GMACs", "of GEMM peak"]


@section("inference", "Inference", order=10)
def inference(result: dict[str, Any]) -> Iterator[str]:
    """Groups in the order of the file: forms first, then peers."""
    forms = [group for group in result["groups"] if group["model"] != "peers"]
    peers = [group for group in result["groups"] if group["model"] == "peers"]
    yield (
        "From uint8 images in memory, normalisation included. Three forms of each model with the "
        "same random weights take turns: the authors' order of operations "
        "(`benchmarks/authors_order`, the baseline), the model as it is built, and "
        "`offseg_d2.deploy.optimize(model)`; of OffSeg-T a fourth, `optimize(model, "
        "compile=True)`. Logits are those of the head, at its stride; label "
        "maps are at the image's size. Spread: 10th to 90th percentile. GMACs: convolutions and "
        "matrix products; the GEMM peak is that of the faster of `torch.mm` and a product with "
        "weights that are packed beforehand, on the same threads. Under bfloat16 the deployed "
        "form has its backbone in that type, the others run under autocast. The project's way to "
        "label maps is the quicker the fewer pixels lie at a boundary of classes; how many there "
        "are with these random weights is told as the share of 4×4 squares that hold several "
        "classes."
    )
    for title, rows in _by_setting(forms).items():
        yield f"### {title}"
        yield table(FORMS_HEADER, [line for group in rows for line in _form_rows(group)])
        yield table(
            ["baseline and deployed", "label maps agree", "largest difference of logits",
             "4×4 squares of several classes"],
            [_agreement_row(group) for group in rows],
        )  # fmt: skip
    for group in peers:
        yield f"### Beside other libraries, {_setting(group)}"
        yield (
            "To label maps, each as its library computes them; a backbone alone gives features. "
            "Random weights, nothing is downloaded. Times as fast: as OffSeg-T, deployed."
        )
        header = ["model", "library", "ms", "spread", "times as fast", "GMACs", "of GEMM peak"]
        yield table(header, [[row["model"], row["library"], *_cells(row)] for row in group["rows"]])
    yield f"`{COMMAND}`"
    yield "\n".join(dict.fromkeys(f"- {_machine(group)}" for group in result["groups"]))


def _by_setting(groups: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        found.setdefault(_setting(group), []).append(group)
    return found


def _setting(group: dict[str, Any]) -> str:
    return setting_line(group, group["batch"])


def _form_rows(group: dict[str, Any]) -> Iterator[list[Any]]:
    for row in group["rows"]:
        yield [f"{group['model']} to {row['goal']}, {row['form']}", *_cells(row)]


def _cells(row: dict[str, Any]) -> list[Any]:
    spread = f"{number(row['p10_ms'])} to {number(row['p90_ms'])}"
    share = percent(row["share_of_gemm_peak"])
    return [row["ms"], spread, f"{row['times_as_fast']:.2f}", row["gmacs"], share]


def _agreement_row(group: dict[str, Any]) -> list[Any]:
    return [
        group["model"],
        percent(group["label_agreement"], 3),
        f"{group['largest_logit_difference']:.1e}",
        percent(group["several_classes_in_4x4"]),
    ]


def _machine(group: dict[str, Any]) -> str:
    peak = f"{number(group['gemm_gflops'])} GFLOP/s by {group['gemm_way']}"
    return f"{machine_line(group)[:-1]}; {group['dtype']} GEMM peak {peak}."
