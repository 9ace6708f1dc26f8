"""The form of a model that a configuration predicts with."""

from detectron2.config import CfgNode
from torch import nn

from offseg_d2.config import ConfigError
from offseg_d2.deploy.optimize import NO_DEPLOYED_FORM, has_deployed_form, optimize


def deployed(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return the model for prediction: a faster equivalent copy with ``TEST.DEPLOY``, else itself.

    Args:
        cfg: configuration.
        model: with the weights to predict with; it is not changed.

    Raises:
        ConfigError: the model has no deployed form.
    """
    if not cfg.TEST.DEPLOY:
        return model
    if not has_deployed_form(model):
        raise ConfigError(
            f"`TEST.DEPLOY` must be False for {cfg.MODEL.META_ARCHITECTURE} with the backbone "
            f"{cfg.MODEL.BACKBONE.NAME}, but is True: {NO_DEPLOYED_FORM}."
        )
    training = model.training
    try:
        return optimize(model.eval())
    finally:
        model.train(training)
