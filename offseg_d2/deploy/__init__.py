"""From a trained model to an equivalent one that is faster: ``optimize(model)``.

What is known about the model's weights and modules in evaluation is used once and for all: batch
norms become part of convolutions, convolutions of one input are merged, and modules that have a
rule (``rules.py``) are replaced by faster formulations of the same mathematics. Results are those
of the model up to rounding.
"""

from offseg_d2.deploy import (  # noqa: F401  (register their rules)
    efficientformer,
    mask_query,
    mask_scores,
    msdeformattn,
    offseg,
    offset_classifier,
    swin,
)
from offseg_d2.deploy.optimize import optimize
from offseg_d2.deploy.rules import rule

__all__ = ["optimize", "rule"]
