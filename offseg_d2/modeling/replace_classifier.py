"""Offset learning in any network: its final 1x1 convolution becomes an OffsetClassifier.

Works for any PyTorch module. Detectron2's heads SemSegFPNHead, DeepLabV3Head and DeepLabV3PlusHead
call that convolution `predictor`, which is what is looked for without a path. By configuration::

    MODEL:
      META_ARCHITECTURE: SemanticSegmentor
      SEM_SEG_HEAD: {NAME: HostHead, HOST: SemSegFPNHead, CLASSIFIER: offset}

Paper of the classifier: OffSeg, ICCV 2025 (arXiv:2508.08811).
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from offseg_d2.modeling.classifiers import OffsetClassifier
from offseg_d2.modeling.losses import refuse_loss_options
from offseg_d2.modeling.offset_learning import INIT_STD

PREDICTOR = "predictor"


def replace_classifier(
    model: nn.Module,
    path: str | None = None,
    *,
    class_offset: bool = True,
    feature_offset: bool = True,
    class_norm: bool = True,
    offset_init_std: float = INIT_STD,
) -> OffsetClassifier:
    """Put an :class:`OffsetClassifier` in place of the final 1x1 convolution, in ``model`` itself.

    The new classifier takes the convolution's place, device and type; its weights are new. Do this
    before the optimizer is made.

    Args:
        model: any module.
        path: dotted name of the convolution in ``model``, such as "decoder.head.4"; None takes the
            only 1x1 convolution named "predictor".
        class_offset: see :class:`OffsetClassifier`.
        feature_offset: see :class:`OffsetClassifier`.
        class_norm: see :class:`OffsetClassifier`.
        offset_init_std: see :class:`OffsetClassifier`.

    Returns:
        the new classifier, (B, C, H, W) -> (B, K, H, W) as the convolution.

    Raises:
        ValueError: if ``path`` names no 1x1 convolution, or it is None and there is not exactly
            one of that name; if ``offset_init_std`` is negative or not finite.
    """
    path = _find_predictor(model) if path is None else path
    parent_path, _, name = path.rpartition(".")
    try:
        convolution = model.get_submodule(path)
    except AttributeError:
        names = [n for n, m in model.named_modules() if _is_pointwise(m)]
        raise ValueError(
            f"`path` must name a module of the model, but is {path!r}; its 1x1 convolutions are "
            f"{names}."
        ) from None
    _check_replaceable(path, convolution)
    classifier = OffsetClassifier(
        convolution.in_channels,
        convolution.out_channels,
        class_offset=class_offset,
        feature_offset=feature_offset,
        class_norm=class_norm,
        offset_init_std=offset_init_std,
    ).to(convolution.weight)
    classifier.train(convolution.training)
    setattr(model.get_submodule(parent_path), name, classifier)
    return classifier


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


def _check_replaceable(path: str, convolution: nn.Module) -> None:
    if not path or not _is_pointwise(convolution):
        raise ValueError(
            f"`path` must name a 1x1 convolution inside the model, but {path!r} is a "
            f"{type(convolution).__name__}."
        )
    if getattr(convolution, "norm", None) is not None or getattr(convolution, "activation", None):
        raise ValueError(
            f"`path` must name a 1x1 convolution without norm and activation, but {path!r} has one."
        )


def _is_pointwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.groups == 1
    )


def _find_predictor(model: nn.Module) -> str:
    found = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == PREDICTOR and _is_pointwise(module)
    ]
    if len(found) != 1:
        raise ValueError(
            f"The model must have one 1x1 convolution named {PREDICTOR!r}, but has "
            f"{found or 'none'}; name the one to replace by `path`."
        )
    return found[0]
