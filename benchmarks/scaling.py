"""What 8, 64 and 256 GPUs would give: an estimate on paper, from sizes that are counted here.

::

    python benchmarks/scaling.py                       table of all models as Markdown
    python benchmarks/scaling.py --model offseg_t --step-seconds 0.19     one that was timed

Counted on the models themselves, without running them: trained parameters (what gradients are
exchanged), batch norms (each is synchronised on its own), operations (convolutions and matrix
products) and calls of tensor operations, as a measure of kernels, in a forward pass. Everything
else is an assumption, an argument of this script, and printed above the table: no GPU and no
network was measured.

B images a GPU, F operations of a forward pass for one image, K kernels of a forward pass, S bytes
of gradients, L batch norms, n nodes of g GPUs, N = n g.

    compute         t_c = 3 max(F B / (peak * utilisation), K launch)
                                                            (backward costs two forward passes)
    all-reduce      t_r = 2 (g-1)/g S/b_gpu + 2 (n-1)/n S/b_node + buckets * latency(N)
    hidden          t_h = 2/3 t_c * (1 - 1/buckets)          (all but the last bucket overlap)
    exposed         t_e = max(t_r / buckets, t_r - t_h)
    synchronised    t_s = 2 L latency(N)                    (batch norms, forward and backward)
                        + 2 latency(N)                      (loss and stop flag)
    latency(N)          = 2 ceil(log2 N) * hop               (a tree, up and down)
    efficiency          = t_c / (t_c + t_e + t_s)
    images a second     = N B / (t_c + t_e + t_s)
    data of a node      = g B / (t_c + t_e + t_s) * bytes of an image and its labels
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    path.stem.removesuffix("_offset_160k"): path
    for path in sorted((ROOT / "configs" / "ade20k").glob("*_offset_160k.yaml"))
}
GPUS = (8, 64, 256)
BUCKET = 25 * 2**20  # bytes of gradients that DistributedDataParallel sends at once


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is counted on a model."""

    parameters: int
    batch_norms: int
    operations: int  # of a forward pass for one image, a multiply-add counts as two
    kernels: int  # of a forward pass, whatever the number of images

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.parameters

    @property
    def buckets(self) -> int:
        return max(1, math.ceil(self.gradient_bytes / BUCKET))


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is assumed. Rates in bytes (operations) a second, times in seconds."""

    images_per_gpu: int = 2
    gpus_per_node: int = 8
    peak: float = 19.5e12
    utilisation: float = 0.4
    launch: float = 10e-6
    gpu_rate: float = 200e9
    node_rate: float = 100e9
    hop: float = 5e-6
    image_bytes: float = 60e3


class KernelCounter(TorchDispatchMode):
    """Counts operations that compute something; views and shapes cost no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def count(config_file: Path) -> Sizes:
    """Build the model of a configuration and send the shape of one training crop through it."""
    cfg = load_config(str(config_file), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    height, width = cfg.INPUT.CROP.SIZE
    model = build_model(cfg).eval()
    trained = [value for value in model.parameters() if value.requires_grad]
    model.requires_grad_(False)  # the counter stumbles over gradients that are switched off
    kernels = KernelCounter()
    # Fake tensors are shapes without values: nothing is computed.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        image = torch.zeros(1, 3, height, width)
        with FlopCounterMode(display=False) as counter, kernels:
            model.sem_seg_head(model.backbone(image))
    return Sizes(
        parameters=sum(value.numel() for value in trained),
        batch_norms=sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
        operations=counter.get_total_flops(),
        kernels=kernels.number,
    )


def compute_seconds(sizes: Sizes, machine: Machine) -> float:
    """Seconds of one iteration's forward and backward pass on one GPU."""
    busy = sizes.operations * machine.images_per_gpu / (machine.peak * machine.utilisation)
    return 3 * max(busy, sizes.kernels * machine.launch)


def latency(gpus: int, machine: Machine) -> float:
    """Seconds of an exchange of nothing."""
    return 2 * math.ceil(math.log2(gpus)) * machine.hop


def reduce_seconds(sizes: Sizes, gpus: int, machine: Machine) -> float:
    """Seconds in which the gradients are added up, first within the nodes, then between them."""
    local = min(gpus, machine.gpus_per_node)
    nodes = gpus / local
    inside = 2 * (local - 1) / local * sizes.gradient_bytes / machine.gpu_rate
    between = 2 * (nodes - 1) / nodes * sizes.gradient_bytes / machine.node_rate
    return inside + between + sizes.buckets * latency(gpus, machine)


def step_seconds(sizes: Sizes, gpus: int, machine: Machine, compute: float) -> float:
    """Seconds of one iteration.

    Args:
        compute: seconds of the forward and backward pass on one GPU.
    """
    if gpus == 1:
        return compute
    reduce = reduce_seconds(sizes, gpus, machine)
    hidden = 2 / 3 * compute * (1 - 1 / sizes.buckets)
    exposed = max(reduce / sizes.buckets, reduce - hidden)
    return compute + exposed + 2 * (sizes.batch_norms + 1) * latency(gpus, machine)


def row(name: str, sizes: Sizes, machine: Machine, compute: float) -> str:
    """One line of the table."""
    cells = [
        name,
        f"{sizes.parameters / 1e6:.1f}",
        f"{sizes.gradient_bytes / 1e6:.0f}",
        str(sizes.batch_norms),
        f"{sizes.operations / 2e9:.1f}",
        str(sizes.kernels),
        f"{1e3 * compute:.0f}",
    ]
    for gpus in GPUS:
        seconds = step_seconds(sizes, gpus, machine, compute)
        rate = gpus * machine.images_per_gpu / seconds
        cells.append(f"{100 * compute / seconds:.0f} % ({rate:,.0f}/s)")
    local = min(GPUS[-1], machine.gpus_per_node)
    seconds = step_seconds(sizes, GPUS[-1], machine, compute)
    data = local * machine.images_per_gpu / seconds * machine.image_bytes
    return "| " + " | ".join([*cells, f"{data / 1e6:.0f}"]) + " |"


def table(names: list[str], machine: Machine, timed: float) -> Iterator[str]:
    """Lines of the table; ``timed`` replaces the estimated compute time where it is not 0."""
    yield (
        "| model | parameters (M) | gradients (MB) | batch norms | GMAC | kernels | compute (ms) | "
        + " | ".join(f"{gpus} GPUs" for gpus in GPUS)
        + " | data of a node (MB/s) |"
    )
    yield "|---" * (8 + len(GPUS)) + "|"
    for name in names:
        sizes = count(MODELS[name])
        yield row(name, sizes, machine, timed or compute_seconds(sizes, machine))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="*", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--step-seconds", type=float, default=0.0, help="measured on one GPU")
    for field in dataclasses.fields(Machine):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default)
    args = parser.parse_args()
    machine = Machine(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(Machine)}
    )
    print("Assumed:", ", ".join(f"{k} {v:g}" for k, v in dataclasses.asdict(machine).items()), "\n")
    for line in table(args.model, machine, args.step_seconds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
