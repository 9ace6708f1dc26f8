"""A training step that saves time and memory gives the gradients of the plain modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offseg_d2.modeling import PerPixelHead
from offseg_d2.modeling.backbone.efficientformer_v2 import Block, ConvMlp
from tests.common import SMALL_OFFSEG, assert_close, build_offseg, random_batch, spread_weights


class PlainMlp(ConvMlp):
    def forward(self, features: Tensor) -> Tensor:
        hidden = F.gelu(self.norm1(self.fc1(features)))
        hidden = F.gelu(self.mid_norm(self.mid(hidden)))
        return self.norm2(self.fc2(hidden))


class PlainBlock(Block):
    def forward(self, features: Tensor) -> Tensor:
        if self.token_mixer is not None:
            branch = self.layer_scale_1 * self.token_mixer(features)
            features = features + self.drop_path(branch)
        return features + self.drop_path(self.layer_scale_2 * self.mlp(features))


class PlainHead(PerPixelHead):
    """All logits are resized before the loss."""

    def losses(
        self, logits: Tensor, targets: Tensor, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        height, width = targets.shape[-2:]
        resized = F.interpolate(logits, size, mode="bilinear")[..., :height, :width]
        loss = F.cross_entropy(resized, targets, ignore_index=255, reduction="sum")
        return {"loss_sem_seg": loss / targets.numel()}


PLAIN: dict[type, type] = {ConvMlp: PlainMlp, Block: PlainBlock, PerPixelHead: PlainHead}


def plain(model: nn.Module) -> nn.Module:
    """A copy that keeps every activation, and resizes all logits before the loss."""
    model = copy.deepcopy(model)
    model.backbone.memory_format = torch.contiguous_format
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


@pytest.mark.parametrize("classifier", ["offset", "plain"])
def test_loss_gradients_and_statistics_are_those_of_the_plain_form(classifier):
    options = (*SMALL_OFFSEG, "MODEL.SEM_SEG_HEAD.CLASSIFIER", classifier)
    options += ("MODEL.SEM_SEG_HEAD.DROPOUT", 0.0, "MODEL.EFFICIENTFORMER_V2.DROP_PATH_RATE", 0.1)
    model = spread_weights(build_offseg(*options)).double().train()
    batch, results = random_batch([(64, 64), (64, 60)]), []
    for form in (model, plain(model)):
        torch.manual_seed(0)  # drop path
        loss = form(batch)["loss_sem_seg"]
        loss.backward()
        gradients = {name: p.grad for name, p in form.named_parameters()}
        results.append({"loss": loss.detach(), **gradients, **dict(form.named_buffers())})
    ours, expected = results
    assert len(ours) > 100
    for name, value in expected.items():
        assert_close(ours[name], value, 1e-8)
