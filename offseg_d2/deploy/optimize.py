"""``optimize``: copies an OffSeg model and makes the copy fast."""

import copy

from torch import nn

from offseg_d2.deploy.efficientformer import optimize_backbone
from offseg_d2.deploy.offseg import FastOffSegPixelDecoder
from offseg_d2.deploy.offset_classifier import FastOffsetClassifier
from offseg_d2.modeling import PerPixelSegmentor
from offseg_d2.modeling.backbone.efficientformer_v2 import EfficientFormerV2
from offseg_d2.modeling.classifiers import OffsetClassifier
from offseg_d2.modeling.pixel_decoder.offseg import OffSegPixelDecoder

NO_DEPLOYED_FORM = (
    "only OffSeg (EfficientFormerV2 with OffSegPixelDecoder) has a deployed form; write other "
    "models to a file with `offseg export` and run it with `offseg demo --onnx FILE "
    "--runtime openvino`"
)


def has_deployed_form(model: nn.Module) -> bool:
    """Return True if :func:`optimize` takes this model."""
    return (
        isinstance(model, PerPixelSegmentor)
        and type(model.backbone) is EfficientFormerV2
        and type(model.sem_seg_head.pixel_decoder) is OffSegPixelDecoder
    )


def optimize(model: nn.Module) -> nn.Module:
    """A copy of an OffSeg model that gives the same results faster.

    Args:
        model: in evaluation mode, with any classifier. It is not changed.

    Returns:
        the copy, with the interface of the model. It cannot be trained.

    Raises:
        ValueError: if the model has no deployed form or is in training mode.
    """
    if not has_deployed_form(model):
        raise ValueError(f"{type(model).__name__} cannot be optimized: {NO_DEPLOYED_FORM}.")
    if model.training:
        raise ValueError("`model` must be in evaluation mode (model.eval()), but is in training.")
    result = copy.deepcopy(model)
    optimize_backbone(result.backbone)
    head = result.sem_seg_head
    head.pixel_decoder = FastOffSegPixelDecoder(head.pixel_decoder)
    if type(head.classifier) is OffsetClassifier:
        head.classifier = FastOffsetClassifier(head.classifier)
    result.eval().requires_grad_(False)
    result.register_forward_pre_hook(_refuse_training)
    return result


def _refuse_training(model: nn.Module, args: tuple) -> None:
    if model.training:
        raise RuntimeError("an optimized model must be in evaluation mode; train its original.")
