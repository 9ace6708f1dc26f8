"""What 8, 64 and 256 GPUs would give: an estimate on paper, from sizes that are counted here.

::

    python benchmarks/scaling.py                       table of all models as Markdown
    python benchmarks/scaling.py --model offseg_t --step-seconds 0.19     one that was timed

Counted on the models themselves: trained parameters (what gradients are exchanged), batch norms
(each is synchronised on its own), operations of a forward pass. Everything else is an assumption,
an argument of this script, and printed above the table: no GPU and no network was measured.

B images a GPU, F operations of a forward pass for one image, S bytes of gradients, L batch norms,
n nodes of g GPUs, N = n g.

    compute         t_c = 3 F B / (peak * utilisation)      (backward costs two forward passes)
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

import torch
from detectron2.modeling import build_model
from torch import nn
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
    peak: float = 312e12
    utilisation: float = 0.15
    gpu_rate: float = 200e9
    node_rate: float = 100e9
    hop: float = 5e-6
    image_bytes: float = 60e3


def count(config_file: Path) -> Sizes:
    """Build the model of a configuration and run one image of its crop size through it."""
    cfg = load_config(str(config_file), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(cfg).eval()
    height, width = cfg.INPUT.CROP.SIZE
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model([{"image": image, "height": height, "width": width}])
    trained = [value for value in model.parameters() if value.requires_grad]
    return Sizes(
        parameters=sum(value.numel() for value in trained),
        batch_norms=sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
        operations=counter.get_total_flops(),
    )


def compute_seconds(sizes: Sizes, machine: Machine) -> float:
    """Seconds of one iteration's forward and backward pass on one GPU."""
    operations = 3 * sizes.operations * machine.images_per_gpu
    return operations / (machine.peak * machine.utilisation)


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
        "| model | parameters (M) | gradients (MB) | batch norms | GMAC | compute (ms) | "
        + " | ".join(f"{gpus} GPUs" for gpus in GPUS)
        + " | data of a node (MB/s) |"
    )
    yield "|---" * (7 + len(GPUS)) + "|"
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
