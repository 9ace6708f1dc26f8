"""Detectron2's heads with an OffsetClassifier, by configuration.

::

    MODEL:
      META_ARCHITECTURE: SemanticSegmentor
      SEM_SEG_HEAD: {NAME: HostHead, HOST: SemSegFPNHead, CLASSIFIER: offset}
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from offseg_d2.modeling.losses import refuse_loss_options
from offseg_d2.modeling.replace_classifier import replace_classifier


@SEM_SEG_HEADS_REGISTRY.register()
def HostHead(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The head that `MODEL.SEM_SEG_HEAD.HOST` names, with the classifier of the configuration.

    Raises:
        ValueError: if there is no such head, or `MODEL.SEM_SEG_HEAD.CLASSIFIER` is unknown.
    """
    keys = cfg.MODEL.SEM_SEG_HEAD
    heads = sorted(name for name, _ in SEM_SEG_HEADS_REGISTRY if name != "HostHead")
    if keys.HOST not in heads:
        raise ValueError(f"`MODEL.SEM_SEG_HEAD.HOST` must be one of {heads}, but is {keys.HOST!r}.")
    if keys.CLASSIFIER not in ("offset", "plain"):
        raise ValueError(
            "`MODEL.SEM_SEG_HEAD.CLASSIFIER` must be one of ['offset', 'plain'], but is "
            f"{keys.CLASSIFIER!r}."
        )
    if keys.HOST != "PerPixelHead":
        refuse_loss_options(cfg)
    head = SEM_SEG_HEADS_REGISTRY.get(keys.HOST)(cfg, input_shape)
    if keys.CLASSIFIER == "offset":
        replace_classifier(
            head,
            class_offset=keys.CLASS_OFFSET,
            feature_offset=keys.FEATURE_OFFSET,
            class_norm=keys.CLASS_NORM,
            offset_init_std=keys.OFFSET_INIT_STD,
        )
    return head
