"""State dicts and files in the layouts of other projects, made without our key maps.

``golden/manifest_names.json.gz`` holds [name, shape, trainable] of every entry of the authors'
state dicts, ``golden/external_names.json.gz`` [name, shape] of timm's EfficientFormerV2 and of the
files that transformers writes. Values are pseudo-random and depend on the name alone.
"""

import gzip
import json
import re
import sys
import types
from functools import cache
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model
from torch import Tensor
from torchvision.models import mobilenet_v2

import offseg_d2.modeling  # noqa: F401  (registers the models)
from tests.common import offseg_config
from tests.golden import parity_rules

GOLDEN = Path(__file__).parents[1] / "golden"
AUTHORS = json.loads(gzip.decompress((GOLDEN / "manifest_names.json.gz").read_bytes()))
OTHERS = json.loads(gzip.decompress((GOLDEN / "external_names.json.gz").read_bytes()))
NUM_CLASSES = {"ade20k": 150, "cityscapes": 19, "cocostuff": 171, "pascal59": 59}
_NAME = re.compile(r"(.+?)(_baseline)?_(ade20k|cityscapes|cocostuff|pascal59)")


def authors_state(name: str) -> dict[str, Tensor]:
    """The authors' state dict of a model and data set, such as "segformer_b0_ade20k"."""
    return {key: _value(key, shape) for key, shape, _ in AUTHORS[name]}


def _value(key: str, shape: list[int]) -> Tensor:
    value = parity_rules.weight(key, shape)
    if value is not None:
        return torch.from_numpy(np.asarray(value))
    if key.endswith(("idxs", "idxs_seg")):
        return torch.zeros(shape, dtype=torch.int64)
    return torch.randn(shape)  # not read by the model


def model_options(name: str) -> tuple[str, list]:
    """Our configuration (base model, options) of the model that a manifest is of."""
    match = _NAME.fullmatch(name)
    assert match is not None
    classifier = "plain" if match[2] else "offset"
    opts = ["MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier]
    return match[1], [*opts, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", NUM_CLASSES[match[3]]]


@cache
def meta_state(model: str, *opts) -> dict[str, Tensor]:
    """State dict of our model of ``configs/base/models``, without memory."""
    with torch.device("meta"):
        return build_model(offseg_config(*opts, "MODEL.DEVICE", "meta", model=model)).state_dict()


def write_mmengine(path: Path, state_dict: dict[str, Tensor]) -> str:
    """A checkpoint as mmengine's runner writes it, log buffers and optimizer included."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history = np.arange(4.0)
            self.methods = {"mean": _GetAttribute(type(self), "mean")}

        def mean(self) -> None: ...

    HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    names = ["mmengine", "mmengine.logging", HistoryBuffer.__module__]
    sys.modules |= {name: types.ModuleType(name) for name in names}
    sys.modules[names[-1]].HistoryBuffer = HistoryBuffer
    dataset_meta = {"classes": ("wall", "bed "), "palette": [[1, 2, 3]], "reduce_zero_label": True}
    try:
        data = {
            "meta": {"iter": 160000, "cfg": "model = dict()", "dataset_meta": dataset_meta},
            "state_dict": state_dict,
            "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}, "resumed_keys": {}},
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
            "param_schedulers": [{"last_step": 160000}],
        }
        torch.save(data, path)
    finally:
        for name in names:
            del sys.modules[name]
    return str(path)


class _GetAttribute:
    """Pickles as ``getattr(owner, name)``, as a reference to a method does."""

    def __init__(self, owner: type, name: str) -> None:
        self.args = (owner, name)

    def __reduce__(self) -> tuple:
        return getattr, self.args


def write(path: Path, data: dict) -> str:
    torch.save(data, path)
    return str(path)


# ---------------------------------------------------------------------- ImageNet backbones


def _backbone_entries(name: str) -> dict[str, Tensor]:
    prefix = "backbone."
    state = authors_state(name)
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def efficientformer_v2_imagenet() -> dict[str, Tensor]:
    """EfficientFormerV2-S1 after 450 epochs of ImageNet."""
    state = {k: v for k, v in _backbone_entries("offseg_t_ade20k").items() if "_seg" not in k}
    for key, shape in {"norm.weight": 224, "norm.bias": 224, "norm.running_mean": 224}.items():
        state[key] = torch.randn(shape)
    for head in ("head", "dist_head"):
        state |= {f"{head}.weight": torch.randn(1000, 224), f"{head}.bias": torch.randn(1000)}
    return state


def mit_openmmlab() -> dict[str, Tensor]:
    """MiT-B0."""
    return _backbone_entries("segformer_b0_ade20k")


def mscan_openmmlab() -> dict[str, Tensor]:
    """MSCAN-T."""
    state = _backbone_entries("segnext_t_ade20k")
    return state | {"head.weight": torch.randn(1000, 256), "head.bias": torch.randn(1000)}


def mscan_nested() -> dict[str, Tensor]:
    """:func:`mscan_openmmlab` with the depth-wise convolutions as modules of their own."""
    return {k.replace(".dwconv.", ".dwconv.dwconv."): v for k, v in mscan_openmmlab().items()}


_NVIDIA_NAMES = [
    (r"layers\.(\d)\.0\.projection\.(.*)", "patch_embed{s}.proj.{0}"),
    (r"layers\.(\d)\.0\.norm\.(.*)", "patch_embed{s}.norm.{0}"),
    (r"layers\.(\d)\.2\.(.*)", "norm{s}.{0}"),
    (r"layers\.(\d)\.1\.(\d+)\.(norm[12]\..*)", "block{s}.{0}.{1}"),
    (r"layers\.(\d)\.1\.(\d+)\.attn\.attn\.out_proj\.(.*)", "block{s}.{0}.attn.proj.{1}"),
    (r"layers\.(\d)\.1\.(\d+)\.attn\.((?:sr|norm)\..*)", "block{s}.{0}.attn.{1}"),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.0\.(.*)", "block{s}.{0}.mlp.fc1.{1}"),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.1\.(.*)", "block{s}.{0}.mlp.dwconv.dwconv.{1}"),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.4\.(.*)", "block{s}.{0}.mlp.fc2.{1}"),
]


def mit_nvidia() -> dict[str, Tensor]:
    """MiT-B0 with :func:`mit_openmmlab`'s values in the original layout."""
    state: dict[str, Tensor] = {}
    for key, value in mit_openmmlab().items():
        packed = re.fullmatch(r"layers\.(\d)\.1\.(\d+)\.attn\.attn\.in_proj_(weight|bias)", key)
        if packed:
            prefix, dim = f"block{int(packed[1]) + 1}.{packed[2]}.attn", value.shape[0] // 3
            state[f"{prefix}.q.{packed[3]}"] = value[:dim]
            state[f"{prefix}.kv.{packed[3]}"] = value[dim:]
            continue
        found = [(re.fullmatch(p, key), name) for p, name in _NVIDIA_NAMES]
        ((match, name),) = [(m, name) for m, name in found if m]
        name = name.format(*match.groups()[1:], s=int(match[1]) + 1)
        is_linear = ".fc" in name and value.ndim == 4
        state[name] = value[:, :, 0, 0] if is_linear else value
    return state | {"head.weight": torch.randn(1000, 256), "head.bias": torch.randn(1000)}


def other_state(name: str) -> dict[str, Tensor]:
    """A state dict of ``external_names.json.gz``."""
    return {key: _value(key, shape) for key, shape in OTHERS[name]}


def mobilenet_v2_imagenet() -> dict[str, Tensor]:
    return mobilenet_v2().state_dict()
