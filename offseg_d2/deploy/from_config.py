"""The form of a model that a configuration predicts with."""

from detectron2.config import CfgNode
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.deploy.optimize import optimize
from offseg_d2.modeling import Segmentor


def deployed(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """What is to predict: with ``TEST.DEPLOY`` an equivalent faster copy, else the model itself.

    Args:
        cfg: configuration.
        model: with the weights to predict with; it is not changed.

    Raises:
        ConfigError: the model is no meta-architecture of this package.
    """
    if not cfg.TEST.DEPLOY:
        return model
    if not isinstance(model, Segmentor):
        raise ConfigError(
            f"`TEST.DEPLOY` must be False for {type(model).__name__}, which offseg_d2.deploy does "
            "not know, but is True."
        )
    training = model.training
    try:
        return optimize(model.eval())
    finally:
        model.train(training)
