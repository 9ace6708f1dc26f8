"""Write parameters and multiply-accumulates into the tables of docs/MODEL_ZOO.md.

::

    python benchmarks/make_zoo.py [--page docs/MODEL_ZOO.md] [--only offseg_t]

Parameters are those of the model that a configuration builds. Multiply-accumulates are counted in
the authors' order of operations (``authors_order/``) from the network's input to its logits, at
the sizes of ``SIZES``, by ``offseg_d2.analysis``, which documents what counts. Nothing is
computed, so this takes seconds for each model. Rows and their last two columns stay as they are.
"""

import argparse
import re
from pathlib import Path

import torch
from authors_order import authors_order
from detectron2.modeling import build_model
from torch import nn

from offseg_d2.analysis import InputSpec, Network, count_macs
from offseg_d2.config import load_config
from offseg_d2.utils.io import write_atomically

ROOT = Path(__file__).resolve().parents[1]
# dataset -> height and width, as the paper has them
SIZES = {
    "ade20k": (512, 512),
    "cityscapes": (1024, 2048),
    "coco_stuff": (512, 512),
    "pascal_context": (512, 512),
}
ROW = re.compile(r"^\| \[(?P<name>[\w/]+)\]\(\.\./configs/(?P=name)\.yaml\) \| [\d ]+ \|.*$", re.M)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    page = str(ROOT / "docs/MODEL_ZOO.md")
    parser.add_argument("--page", default=page, metavar="FILE", help="default %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with this in their name")
    args = parser.parse_args()
    text = Path(args.page).read_text(encoding="utf-8")
    written = ROW.sub(lambda row: rewritten(row) if args.only in row["name"] else row[0], text)
    write_atomically(args.page, lambda file: file.write(written.encode()))


def rewritten(row: re.Match) -> str:
    """A row of a table with its numbers counted again."""
    name = row["name"]
    print(name, flush=True)
    cells = [f"[{name}](../configs/{name}.yaml)", *numbers(name), *cells_of(row[0])[-2:]]
    return f"| {' | '.join(cells)} |"


def cells_of(row: str) -> list[str]:
    """Contents of the columns of a row."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def numbers(name: str) -> list[str]:
    """Parameters, G of convolutions and G of all operations of a configuration, as texts."""
    model = build(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    network = Network(authors_order(model).eval())
    images = torch.empty(1, 3, *InputSpec(*SIZES[name.split("/")[0]]).padded_size(model))
    counted = count_macs(network, images, warm_up=False)
    macs = (counted.as_in_paper, counted.all)
    return [f"{parameters:,}".replace(",", " "), *(f"{number / 1e9:.1f}" for number in macs)]


def build(name: str) -> nn.Module:
    """The model of a configuration, with room for weights but none."""
    opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    with torch.device("meta"):
        model = build_model(load_config(str(ROOT / f"configs/{name}.yaml"), opts))
    return model.eval().to_empty(device="cpu")


if __name__ == "__main__":
    main()
