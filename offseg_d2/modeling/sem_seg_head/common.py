"""The choice of a backbone's outputs, common to the heads."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec


def select_features(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The outputs of the backbone that `MODEL.SEM_SEG_HEAD.IN_FEATURES` names, fine to coarse.

    Raises:
        ValueError: if the backbone has no such output, or one is named twice.
    """
    names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    missing = sorted(set(names) - set(input_shape))
    if missing:
        raise ValueError(
            f"`MODEL.SEM_SEG_HEAD.IN_FEATURES` must be outputs of the backbone "
            f"({sorted(input_shape)}), but has {missing}."
        )
    if len(set(names)) < len(names):
        raise ValueError(
            "`MODEL.SEM_SEG_HEAD.IN_FEATURES` must name each output of the backbone at most once, "
            f"but is {list(names)}."
        )
    ordered = sorted(names, key=lambda name: input_shape[name].stride)
    return {name: input_shape[name] for name in ordered}
