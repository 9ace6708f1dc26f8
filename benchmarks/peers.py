"""Models of other libraries, from a uint8 image to the label map at its size.

Each is used as its library means it to be: its own resizing and argmax where it has one. Weights
are random, nothing is downloaded. Needed are the packages transformers, timm, torchvision and
segmentation-models-pytorch.

Shapes: B batch, K classes, H x W image.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

NUM_CLASSES = 150
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
SWIN_T = {
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
MIT_B1_WIDTHS = [64, 128, 320, 512]


class Peer(NamedTuple):
    """A network of another library.

    Attributes:
        library: name and version.
        network: normalised (B, 3, H, W) -> its result.
        finish: that result, (H, W) -> class ids (B, H, W); features for a backbone alone.
    """

    library: str
    network: Callable[[Tensor], Any]
    finish: Callable[[Any, tuple[int, int]], Any]


def run_peer(peer: Peer, images: Tensor) -> Any:
    """(B, 3, H, W) uint8 -> class ids (B, H, W)."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    outputs = peer.network((images.float() - mean) / std)
    return peer.finish(outputs, (images.shape[-2], images.shape[-1]))


def _argmax(scores: Tensor, size: tuple[int, int]) -> Tensor:
    assert scores.shape[-2:] == size, f"scores have size {tuple(scores.shape[-2:])}, not {size}"
    return scores.argmax(dim=1)


def _transformers(model: nn.Module, processor: Any) -> Peer:
    import transformers

    def finish(outputs: Any, size: tuple[int, int]) -> Tensor:
        number = len(outputs[0])
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=[size] * number)
        return torch.stack(labels)

    model = model.eval()
    library = f"transformers {transformers.__version__}"
    return Peer(library, lambda images: model(pixel_values=images), finish)


def _segformer(**changes: Any) -> Callable[[tuple[int, int]], Peer]:
    def build(size: tuple[int, int]) -> Peer:
        from transformers import (
            SegformerConfig,
            SegformerForSemanticSegmentation,
            SegformerImageProcessor,
        )

        config = SegformerConfig(num_labels=NUM_CLASSES, **changes)  # B0 unless changed
        return _transformers(SegformerForSemanticSegmentation(config), SegformerImageProcessor())

    return build


def _mask2former(size: tuple[int, int]) -> Peer:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    config = Mask2FormerConfig(backbone_config=SwinConfig(**SWIN_T), num_labels=NUM_CLASSES)
    return _transformers(Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor())


def _timm_backbone(size: tuple[int, int]) -> Peer:
    import timm

    model = timm.create_model("efficientformerv2_s1", features_only=True, img_size=size).eval()
    return Peer(f"timm {timm.__version__}", model, lambda features, _: features)


def _deeplab(size: tuple[int, int]) -> Peer:
    import torchvision

    model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES
    ).eval()
    return Peer(
        f"torchvision {torchvision.__version__}", lambda images: model(images)["out"], _argmax
    )


def _smp_segformer(size: tuple[int, int]) -> Peer:
    import segmentation_models_pytorch as smp

    model = smp.Segformer(encoder_name="mit_b0", encoder_weights=None, classes=NUM_CLASSES).eval()
    return Peer(f"segmentation_models_pytorch {smp.__version__}", model, _argmax)


PEERS: dict[str, Callable[[tuple[int, int]], Peer]] = {
    "SegFormer-B0": _segformer(),
    "SegFormer-B1": _segformer(hidden_sizes=MIT_B1_WIDTHS),
    "Mask2Former Swin-T": _mask2former,
    "DeepLabV3 MobileNetV3-Large": _deeplab,
    "SegFormer mit_b0": _smp_segformer,
    "EfficientFormerV2-S1, backbone alone": _timm_backbone,
}


def build_peer(name: str, size: tuple[int, int]) -> Peer:
    """One of ``PEERS`` for images of ``size`` (height, width), with random weights.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    torch.manual_seed(0)
    return PEERS[name](size)
