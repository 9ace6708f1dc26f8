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
import json
import os
import resource
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from common import machine, write_json
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
def run(case: str, way: str, file: str) -> None:
    """One way in this process: prints its peak, and writes its label map."""
    settings, size = CASES[case]
    model, image = build_model(settings), make_image(size)
    record = {"image": image, "height": HEIGHT, "width": WIDTH}
    if way == "network":
        batch = model.normalise(image)[None]
        if settings.mode == "slide":  # the image, and one batch of windows
            crop = batch[..., : settings.crop_size[0], : settings.crop_size[1]]
            model.forward_scores(crop.repeat(settings.window_batch, 1, 1, 1))
        else:
            model.forward_scores(batch)
    else:
        if way == "blocks":
            labels = model.predict_label_maps([record])[0]["sem_seg"]
        else:
            labels = model([record])[0]["sem_seg"].argmax(dim=0).to(torch.uint8)
        np.save(file, labels.numpy())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # kilobytes on Linux


def peak(case: str, way: str, file: str) -> int | None:
    """Peak memory in bytes; None if the process did not get what it wanted."""
    command = [sys.executable, __file__, "--case", case, "--way", way, "--file", file]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode < 0:  # killed, most likely for want of memory
        return None
    if done.returncode > 0:
        sys.exit(done.stderr)
    return int(done.stdout.split()[-1])


def measure(case: str, ways: tuple[str, ...]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        files = {way: os.path.join(folder, f"{way}.npy") for way in ways}
        peaks = {way: peak(case, way, file) for way, file in files.items()}
        row = {"case": case, **{f"{way}_mb": p and round(p / MEGABYTE) for way, p in peaks.items()}}
        if all(os.path.isfile(files.get(way, "")) for way in WAYS[1:]):
            ours, plain = (np.load(files[way]) for way in WAYS[1:])
            row["agreement"] = float((ours == plain).mean())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-everything", action="store_true")
    parser.add_argument("--output", default="", metavar="FILE", help="write the rows as JSON")
    for name in ("case", "way", "file"):  # of a process that measures itself
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.case:
        run(args.case, args.way, args.file)
        return
    ways = WAYS[:2] if args.without_everything else WAYS
    rows = []
    print(f"{'MB':32} {'network':>8} {'blocks':>8} {'beyond':>8} {'everything':>11} {'beyond':>8}")
    for case in CASES:
        row = measure(case, ways if CASES[case][0].mode == "whole" else WAYS[:2])
        rows.append(row)
        network, blocks, everything = (row.get(f"{way}_mb") for way in WAYS)
        numbers = f"{network:8} {blocks:8} {blocks - network:8}"
        if everything:
            numbers += f" {everything:11} {everything - network:8}"
            numbers += f"   agreement {100 * row['agreement']:.5f} %"
        print(f"{case:32} {numbers}", flush=True)
    if args.output:
        write_json(args.output, {**machine(), "rows": rows})
    else:
        print(json.dumps(machine()))


if __name__ == "__main__":
    main()
