"""Peak memory of label maps of a 3000x4000 image with 150 classes, against the plain way.

::

    python benchmarks/memory.py [--output FILE]

Three ways of running the same model, each in a process of its own, whose peak resident memory is
what the operating system reports:

network     the model's own activations: normalised image and logits at stride 4, no more;
blocks      ``model.predict_label_maps``;
everything  the argmax of ``model(...)``, which resizes all scores to the image's size (7.2 GB);
            for whole images only, windows would take half as much again.

The network is one 1x1 convolution at stride 4, so that little besides the logits is the model's.
The plain way needs about 10 GB of free memory; ``--without-everything`` leaves it out.
"""

import argparse
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
import torch.nn.functional as F
from common import in_new_process, machine, peak_memory, write_json
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn

from offseg_d2.modeling import InferenceSettings, PerPixelHead, PerPixelSegmentor

NUM_CLASSES, HEIGHT, WIDTH = 150, 3000, 4000
# name -> settings, and (height, width) of the image that the network sees
CASES = {
    "whole, at 512x683": (InferenceSettings("whole"), (512, 683)),
    "whole, at 3000x4000": (InferenceSettings("whole"), (HEIGHT, WIDTH)),
    "windows 512/480, at 3000x4000": (InferenceSettings("slide"), (HEIGHT, WIDTH)),
}
WAYS = ("network", "blocks", "everything")
MEGABYTE = 2**20


class Quarter(Backbone):
    """Features at stride 4: the image, averaged."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=3, stride=4)}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"res2": F.avg_pool2d(image, 4)}


class Finest(nn.Module):
    def forward(self, features: dict[str, Tensor]) -> list[Tensor]:
        return list(features.values())


def build_model(settings: InferenceSettings) -> PerPixelSegmentor:
    classifier = nn.Conv2d(3, NUM_CLASSES, 1)
    nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(classifier.bias, generator=torch.Generator().manual_seed(1))
    return PerPixelSegmentor(
        backbone=Quarter(),
        sem_seg_head=PerPixelHead(pixel_decoder=Finest(), classifier=classifier),
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        inference=settings,
    ).eval()


def make_image(size: tuple[int, int]) -> Tensor:
    """(3, *size) uint8: soft blobs of all colours."""
    coarse = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
    return image.mul_(255).byte()


@torch.inference_mode()
def run(case: str, way: str) -> tuple[int, np.ndarray | None]:
    """Peak memory of this process in bytes, and the label map (none of the network alone)."""
    torch.set_num_threads(1)
    settings, size = CASES[case]
    model, image = build_model(settings), make_image(size)
    sample = {"image": image, "height": HEIGHT, "width": WIDTH}
    labels = None
    if way == "network":
        batch = model.normalise(image)[None]
        if settings.mode == "slide":  # the image, and one batch of windows
            crop = batch[..., : settings.crop_size[0], : settings.crop_size[1]]
            batch = crop.repeat(settings.window_batch, 1, 1, 1)
        model.forward_scores(batch)
    elif way == "blocks":
        labels = model.predict_label_maps([sample])[0]["sem_seg"]
    else:
        labels = model([sample])[0]["sem_seg"].argmax(dim=0).to(torch.uint8)
    return peak_memory(), None if labels is None else labels.numpy()


def measure(case: str, ways: tuple[str, ...]) -> dict:
    """One row: MB of each way (None if its process was killed), and the share of equal labels."""
    row, maps = {"case": case}, []
    for way in ways:
        try:
            peak, labels = in_new_process(run, case, way)
        except BrokenProcessPool:
            row[f"{way}_mb"] = None
            continue
        row[f"{way}_mb"] = round(peak / MEGABYTE)
        maps += [] if labels is None else [labels]
    if len(maps) == 2:
        row["agreement"] = float((maps[0] == maps[1]).mean())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-everything", action="store_true")
    parser.add_argument("--output", default="", metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args()
    ways = WAYS[:2] if args.without_everything else WAYS
    rows = []
    for case in CASES:
        row = measure(case, ways if CASES[case][0].mode == "whole" else WAYS[:2])
        rows.append(row)
        print(row, flush=True)
    if args.output:
        write_json(args.output, {**machine(), "rows": rows})


if __name__ == "__main__":
    main()
