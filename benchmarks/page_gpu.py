"""Section of ``simulate_gpu.py``: operations of a step on a pretended GPU."""

from collections.abc import Iterator
from typing import Any

from page import columns_table, origin, section

COMMAND = "python benchmarks/simulate_gpu.py --output benchmarks/results/simulated_gpu.json"


@section("simulated_gpu", "Operations on a GPU (simulated, not measured)", order=15)
def simulated_gpu(result: dict[str, Any]) -> Iterator[str]:
    """Two rows for each piece of work: the authors' order and ours."""
    height, width = result["size"]
    yield (
        f"No GPU was used. Tensors without values went through a whole training step "
        f"({result['batch']} images, {result['dtype']}, with optimizer) and through the label map "
        f"of one image, {height} x {width} pixels, {result['classes']} classes. The table counts "
        "the operations that PyTorch would start on a GPU, the waits of the host for the device, "
        "the bytes that the operations read and write, and the floating-point operations. CARAFE "
        "is one operation in both forms; our Triton kernels are one each. The authors' order is "
        "`benchmarks/authors_order`, so its waits are those of our version of it."
    )
    gpus = list(result["rows"][0]["least_ms"])
    columns = {
        "model": "model",
        "work": "work",
        "form": "form",
        "operations": "operations",
        "waits": "waits",
        "GB moved": lambda row: row["bytes"] / 1e9,
        "GFLOP": lambda row: row["flops"] / 1e9,
        **{f"at least, ms, {gpu}": lambda row, gpu=gpu: row["least_ms"][gpu] for gpu in gpus},
    }
    yield columns_table(result["rows"], columns)
    yield (
        "*At least*: the largest of the operations times 5 µs, the bytes over the bandwidth, and "
        "the floating-point operations over the peak of the data sheet. A real step takes longer."
    )
    yield origin(result["machine"], COMMAND)
