"""A model, a data set and a trainer small enough to train in milliseconds."""

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn

from offseg_d2.config import load_config
from offseg_d2.engine import Trainer
from offseg_d2.evaluation import SemSegEvaluator

NUM_CLASSES = 3
SIZE = 6


@META_ARCH_REGISTRY.register()
class TinySegmentor(nn.Module):
    """Convolution, batch norm and dropout, then a classifier of each pixel."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3, padding=1)})
        self.backbone["norm"] = nn.BatchNorm2d(8)
        self.sem_seg_head = nn.Conv2d(8, NUM_CLASSES, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, batch: list[dict]) -> dict | list[dict]:
        images = torch.stack([sample["image"] for sample in batch]).float()
        features = self.dropout(self.backbone["norm"](self.backbone["conv"](images)).relu())
        scores = self.sem_seg_head(features)
        if not self.training:
            return [{"sem_seg": score} for score in scores]
        labels = torch.stack([sample["sem_seg"] for sample in batch])
        return {"loss_sem_seg": nn.functional.cross_entropy(scores, labels)}


def make_sample(seed: int, position: int) -> dict:
    rng = np.random.default_rng([seed, position])
    image = torch.from_numpy(rng.normal(size=(3, SIZE, SIZE)).astype(np.float32))
    return {
        "file_name": f"image_{position}.png",
        "image": image,
        "sem_seg": image.argmax(dim=0),
    }


if "tiny_val" not in DatasetCatalog:  # tests may import this file under two names
    DatasetCatalog.register("tiny_val", lambda: [make_sample(12345, i) for i in range(4)])


class TinyLoader:
    """Batches as a function of the seed and the position, as the real loader's."""

    def __init__(self, cfg: CfgNode, start_iter: int) -> None:
        self.cfg, self.start_iter = cfg, start_iter

    def __iter__(self) -> Iterator[list[dict]]:
        size = self.cfg.SOLVER.IMS_PER_BATCH
        share = size // comm.get_world_size()
        first = comm.get_rank() * share
        position = self.start_iter * size * self.cfg.SOLVER.ACCUMULATION_STEPS
        while True:
            slots = range(first, first + share)
            yield [make_sample(self.cfg.SEED, position + slot) for slot in slots]
            position += size


class TinyTrainer(Trainer):
    """The real trainer on the tiny data."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> TinyLoader:
        return TinyLoader(cfg, start_iter)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> list[list[dict]]:
        share = range(4)[comm.get_rank() :: comm.get_world_size()]
        return [[make_sample(12345, position)] for position in share]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> SemSegEvaluator:
        names = [f"class_{index}" for index in range(NUM_CLASSES)]
        return SemSegEvaluator(names, 255, lambda sample: sample["sem_seg"].numpy())


def make_cfg(output_dir, *options) -> CfgNode:
    """Configuration of a run of 12 iterations on the CPU."""
    cfg = load_config("")
    settings = {
        "MODEL.META_ARCHITECTURE": "TinySegmentor",
        "MODEL.BACKBONE.NAME": "tiny",
        "MODEL.DEVICE": "cpu",
        "DATASETS.TEST": ("tiny_val",),
        "SOLVER.LR_SCHEDULER_NAME": "WarmupPoly",
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.HEAD_LR_FACTOR": 2.0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 12,
        "SOLVER.WARMUP_ITERS": 3,
        "SOLVER.CHECKPOINT_PERIOD": 4,
        "SOLVER.LOG_PERIOD": 1,
        "SEED": 5,
        "OUTPUT_DIR": str(output_dir),
    }
    for key, value in settings.items():
        cfg.merge_from_list([key, value])
    cfg.merge_from_list(list(options))
    cfg.freeze()
    return cfg


def make_trainer(output_dir, *options) -> TinyTrainer:
    """Trainer whose initial weights are always the same."""
    torch.manual_seed(0)
    return TinyTrainer(make_cfg(output_dir, *options))


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same_weights(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, different
