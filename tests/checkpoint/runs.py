"""A model with optimizer and checkpointer, small enough to be saved in no time."""

import torch
from torch import nn

from offseg_d2.checkpoint import SafeCheckpointer


def make_model(num_classes: int = 3) -> nn.Module:
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 4, 1)
    model.classifier = nn.Conv2d(4, num_classes, 1)
    return model


class Run:
    """A model with optimizer and checkpointer in a directory."""

    def __init__(self, directory, seed: int = 0, num_classes: int = 3, **kwargs) -> None:
        torch.manual_seed(seed)
        self.model = make_model(num_classes)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.checkpointer = SafeCheckpointer(
            self.model, str(directory), optimizer=self.optimizer, **kwargs
        )

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model.classifier(self.model.backbone(torch.ones(1, 3, 2, 2))).sum().backward()
        self.optimizer.step()

    def save(self, iteration: int, **kwargs) -> None:
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration, **kwargs)

    def state(self) -> dict:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
