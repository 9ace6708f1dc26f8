"""The forms of a model that ``inference.py`` times, each from uint8 images to label maps.

Weights are random, always the same ones. Time does not depend on them, except that the project's
own way to label maps is faster the fewer pixels lie at a boundary of classes
(:func:`boundary_share`).

Shapes: B batch, H x W image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from authors_order import authors_order
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.modeling import build_model
from peers import build_peer, run_peer
from torch import Tensor, nn

import offseg_d2.modeling  # noqa: F401  (registers the models)
from offseg_d2.config import load_config
from offseg_d2.deploy import optimize
from offseg_d2.export import open_session

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "ade20k"
MODELS = {
    path.stem.removesuffix("_offset_160k"): path
    for path in sorted(CONFIGS.glob("*_offset_160k.yaml"))
}
AUTHORS, EAGER, DEPLOYED = "authors' order", "eager", "deployed"
OPENVINO, ONNXRUNTIME = "OpenVINO", "onnxruntime"
FORMS = (AUTHORS, EAGER, DEPLOYED, OPENVINO, ONNXRUNTIME)
PEER = "peer"
CELL = 4  # side of the squares of pixels that most models' logits stand for

Run = Callable[[], np.ndarray]


def make_images(batch: int, height: int, width: int) -> Tensor:
    """(B, 3, H, W) uint8: soft blobs of all colours with some grain, always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 12, 16, generator=generator)
    images = F.interpolate(coarse, size=(height, width), mode="bicubic").mul_(255)
    images += 8 * torch.randn(images.shape, generator=generator)
    return images.clamp_(0, 255).byte()


def own_config(name: str) -> CfgNode:
    """Configuration of one of ``MODELS``, to predict whole images on the CPU."""
    cfg = load_config(str(MODELS[name]), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.TEST.SEM_SEG.MODE = "whole"
    return cfg


def build_own(name: str) -> nn.Module:
    """A model of ``MODELS`` (150 classes) with random weights, in evaluation mode."""
    torch.manual_seed(0)
    model = build_model(own_config(name)).eval()
    _spread(model)
    return model.requires_grad_(False)


def _spread(model: nn.Module) -> None:
    """Move the parameters that start at (almost) nothing: fresh blocks would do next to nothing."""
    for name, parameter in model.named_parameters():
        if "layer_scale" in name and parameter.abs().max() < 1e-4:
            nn.init.uniform_(parameter, 0.3, 0.7)
        elif name.endswith("bias.table") or "relative_position_bias_table" in name:
            nn.init.normal_(parameter, std=0.2)


def export_own(name: str, path: str, images: Tensor) -> None:
    """Write a model of ``MODELS`` as an ONNX file for uint8 images of this very shape."""
    from offseg_d2.export import export_onnx, prepare_export

    cfg = own_config(name)
    classes = [str(index) for index in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]
    graph, description = prepare_export(
        build_own(name),
        cfg,
        Metadata(name="benchmark", stuff_classes=classes),
        input_type="uint8",
        size=(images.shape[-2], images.shape[-1]),
        batch=len(images),
    )
    export_onnx(graph, description, path, batches=[images])


def open_form(form: str, name: str, images: Tensor, onnx_file: str) -> Run:
    """Prepare a form; the result computes class ids (B, H, W) of the images whenever called.

    Args:
        form: one of ``FORMS`` or ``PEER``; computes with the threads that torch is set to.
        name: of ``MODELS`` or, for a peer, of ``peers.PEERS``.
        images: (B, 3, H, W) uint8.
        onnx_file: of :func:`export_own`, for the forms that run it.
    """
    if form in (OPENVINO, ONNXRUNTIME):
        content, threads = Path(onnx_file).read_bytes(), torch.get_num_threads()
        session = open_session(content, onnx_file, runtime=form.lower(), threads=threads)
        return lambda: session.run(images)[0].numpy()
    if form == PEER:
        peer = build_peer(name, (images.shape[-2], images.shape[-1]))
        return lambda: _array(run_peer(peer, images))
    make = {AUTHORS: authors_order, EAGER: lambda model: model, DEPLOYED: optimize}
    model: Any = make[form](build_own(name))
    return lambda: _array(label_maps(model, images))


@torch.inference_mode()
def label_maps(model: Any, images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> class ids (B, H, W)."""
    results = model.predict_label_maps([{"image": image} for image in images])
    return torch.stack([result["sem_seg"] for result in results])


def _array(result: Any) -> np.ndarray:
    """Class ids as an array; of the levels of a backbone alone the last."""
    return (result if isinstance(result, Tensor) else result[-1]).numpy()


def boundary_share(labels: np.ndarray) -> float:
    """Share of the squares of 4 x 4 pixels of label maps (B, H, W) that hold several classes."""
    squares = torch.from_numpy(labels).unfold(1, CELL, CELL).unfold(2, CELL, CELL).flatten(3)
    return float((squares != squares[..., :1]).any(-1).double().mean())
