"""Cuts the golden files of this folder: ``python -m tests.golden.make DIR``.

DIR holds the full reference cases of the authors' code (about 13 MB, see ``tests.parity_report``);
they are not part of the project. A golden file keeps their format and their name, which keys
inputs and weights, but fewer tensors and fewer samples of each. A sample is every ``step``-th
entry of the flattened tensor; taking every ``m``-th of them again gives step ``m * step``, with
``m`` coprime to the tensor's sizes, so that all channels and positions stay covered.
"""

import argparse
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from math import ceil, gcd, prod
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
EVERYTHING = ("*",)
TENSOR_SUFFIXES = ("__shape", "__step", "__sample", "__stats", "__fp64diff")

# Optimizer groups of the authors' runs: base, without weight decay, fast; of their Mask2Former
# the backbone's, those of its norms, the head's, those of its norms.
GROUPS = ("lr=6e-05 wd=0.01", "lr=6e-05 wd=0", "lr=0.0006 wd=0.01")
MASK_QUERY_GROUPS = ("lr=1e-05 wd=0.05", "lr=1e-05 wd=0", "lr=0.0001 wd=0.05", "lr=0.0001 wd=0")
RUNS = {
    "offseg_t_ade20k": "offseg/Tiny/offseg-t_ade20k_160k-512x512.py",
    "offseg_b_ade20k": "offseg/Base/offseg-b_ade20k_160k-512x512.py",
    "offseg_l_ade20k": "offseg/Large/offseg-l_ade20k_160k-512x512.py",
    "mask2former_swin_t_ade20k": "mask2former_offset_learning/"
    "mask2former_offset_learning_swin-t_8xb2-160k_ade20k-512x512.py",
}


@dataclass(frozen=True)
class Cut:
    """Parts of a case that are stored.

    Attributes:
        samples: at most about this many samples of each tensor.
        tensors: patterns of the tensors that are kept.
        others: patterns of the other entries that are kept, such as checksums.
    """

    samples: int
    tensors: tuple[str, ...] = EVERYTHING
    others: tuple[str, ...] = ()


LOSS_CUT = Cut(
    40,
    (
        "grad.backbone.network.4.7.token_mixer.attention_biases_seg",
        "grad.decode_head.offset_learning.cls_repr",
        "after.backbone.network.6.5.mlp.norm2.*",
    ),
    ("*_crc32", "loss_fp64", "loss__decode.acc_seg", "grad_names", "grad_norms_fp64"),
)
CUTS: dict[str, Cut] = {
    "A_offset_learning_small": Cut(200),
    "A_offset_learning_mask": Cut(150),
    "B_carafe": Cut(120, others=("*__params",)),
    "B_freqfusion_t0": Cut(150, others=("params", "gradnorm.*")),
    "C_efficientformerv2_S1_512x512": Cut(200, ("out?", "network.5"), ("*_crc32",)),
    "D_offseg_t_ade20k_512x512": Cut(
        200, ("backbone3", "freqfusion2.[12]", "align", "logits"), ("*_crc32",)
    ),
    "G_mask2former_swin_t_ade20k_512x512": Cut(
        100,
        ("backbone3", "pixel_decoder.0", "pixel_decoder.1.2", "*_pred[0149]", "sem_seg"),
        ("*_crc32",),
    ),
    "H_mask2former_swin_t_ade20k_whole_450x600_to_300x400": Cut(
        400, ("seg_logits",), ("*_crc32", "ori_shape")
    ),
    "H_offseg_t_ade20k_slide_512x683": Cut(400, ("crop?", "seg_logits"), ("*_crc32", "n_crops")),
    "I_offseg_t_ade20k_train_bneval": LOSS_CUT,
    "I_offseg_t_ade20k_train_bntrain": LOSS_CUT,
    "J_iou_metric": Cut(0, (), EVERYTHING),
}


def cut_case(data: Mapping[str, np.ndarray], cut: Cut) -> dict[str, np.ndarray]:
    """The entries of a golden file."""
    tensors = {k.removesuffix("__sample") for k in data if k.endswith("__sample")}
    kept: dict[str, np.ndarray] = {}
    for name in data:
        is_of_a_tensor = any(name.endswith(suffix) for suffix in TENSOR_SUFFIXES)
        if not is_of_a_tensor and any(fnmatch(name, pattern) for pattern in cut.others):
            kept[name] = data[name]
    for name in sorted(tensors):
        if not any(fnmatch(name, pattern) for pattern in cut.tensors):
            continue
        stride = _stride(data[f"{name}__shape"], len(data[f"{name}__sample"]), cut.samples)
        kept[f"{name}__shape"] = data[f"{name}__shape"]
        kept[f"{name}__step"] = data[f"{name}__step"] * stride
        kept[f"{name}__sample"] = data[f"{name}__sample"][::stride]
        if f"{name}__fp64diff" in data:
            kept[f"{name}__fp64diff"] = data[f"{name}__fp64diff"]
        else:  # the tolerance then depends on the size of the values
            kept[f"{name}__stats"] = data[f"{name}__stats"]
    return kept


def _stride(shape: np.ndarray, available: int, wanted: int) -> int:
    stride = max(1, ceil(available / wanted))
    size = prod(int(s) for s in shape)
    while stride > 1 and gcd(stride, size) > 1:
        stride += 1
    return stride


def cut_groups(groups: Mapping[str, list[str]], names: list[str]) -> str:
    """One digit for each trainable name: the index of its optimizer group in the list of groups."""
    keys = GROUPS if GROUPS[0] in groups else MASK_QUERY_GROUPS
    indices = {name: str(i) for i, key in enumerate(keys) for name in groups[key]}
    return "".join(indices[name] for name in names)


def _write_groups(source: Path) -> None:
    """``optim_groups.json``: the optimizer groups of the authors' runs, by manifest."""
    runs = json.loads((source / "optim_groups.json").read_text())
    manifests = json.loads(gzip.decompress((FOLDER / "manifest_names.json.gz").read_bytes()))
    digits = {}
    for manifest, run in RUNS.items():
        names = [name for name, _, trainable in manifests[manifest] if trainable]
        digits[manifest] = cut_groups(runs[run]["groups"], names)
    (FOLDER / "optim_groups.json").write_text(json.dumps(digits, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the full reference cases")
    source = parser.parse_args().folder
    total = 0
    for name, cut in CUTS.items():
        target = FOLDER / f"{name}.npz"
        with np.load(source / f"{name}.npz", allow_pickle=False) as data:
            np.savez_compressed(target, **cut_case(data, cut))
        total += target.stat().st_size
        print(f"{target.name:45} {target.stat().st_size:7d} bytes")
    print(f"{'all':45} {total:7d} bytes")
    _write_groups(source)


if __name__ == "__main__":
    main()
