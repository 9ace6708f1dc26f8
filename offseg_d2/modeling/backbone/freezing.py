"""Leaving the first parts of a backbone as they are, which `MODEL.BACKBONE.FREEZE_AT` asks for.

Detectron2's ResNet has this already. Here, too, 1 freezes the stem and each further number one more
stage. Frozen parameters are not trained, and frozen modules stay in evaluation mode: their batch
norms keep their running statistics, and no block of them is dropped. Names in checkpoints stay.
"""

from abc import abstractmethod
from collections.abc import Sequence

from detectron2.modeling import Backbone
from torch import nn

NUM_STAGES = 4


class FreezableBackbone(Backbone):
    """A backbone that knows its parts."""

    num_frozen_parts = 0

    @abstractmethod
    def parts(self) -> Sequence[Sequence[nn.Module]]:
        """Modules of the stem, then of each stage: what "res2", "res3", ... need beyond those."""

    def freeze(self, number: int) -> None:
        """Exclude parts from training, also from what ``train()`` does.

        Args:
            number: of the first parts: 0 none, 1 the stem, 2 stem and first stage, ...

        Raises:
            ValueError: if there are not so many.
        """
        check_freeze_at(number)
        self.num_frozen_parts = number
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FreezableBackbone":
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        number = self.num_frozen_parts
        return [module for part in self.parts()[:number] for module in part] if number else []


def check_freeze_at(number: int) -> None:
    """Check a value of `MODEL.BACKBONE.FREEZE_AT`.

    Raises:
        ValueError: if a backbone has no such number of parts.
    """
    if not 0 <= number <= NUM_STAGES + 1:
        raise ValueError(
            f"`MODEL.BACKBONE.FREEZE_AT` must be from 0 (nothing is frozen) to {NUM_STAGES + 1} "
            f"(the stem and {NUM_STAGES} stages), but is {number}."
        )
