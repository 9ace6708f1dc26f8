"""The loss curve of a run depends neither on the number of its processes nor on their shares."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from offseg_d2.engine import Trainer
from tests.common import SMALL_OFFSEG, offseg_config
from tests.distributed.run_ranks import run_ranks

SIDE, IMAGES, ITERATIONS = 64, 4, 3


def make_sample(position: int) -> dict:
    """An image of noise; every second one has mostly ignored pixels."""
    rng = np.random.default_rng(position)
    labels = rng.integers(0, 5, (SIDE, SIDE))
    if position % 2:
        labels[:, 8:] = 255
    return {
        "file_name": f"{position}.png",
        "image": torch.from_numpy(rng.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)),
        "sem_seg": torch.from_numpy(labels),
    }


class NoiseTrainer(Trainer):
    """Stochastic depth, channel dropout and synchronised batch norms as in any training."""

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(0)
        return super().build_model(cfg)

    @classmethod
    def build_train_loader(cls, cfg, start_iter=0):
        share = IMAGES // comm.get_world_size()
        first = comm.get_rank() * share
        while True:
            slots = range(first, first + share)
            yield [make_sample(slot) for slot in slots]


def train_and_note(directory: Path) -> None:
    cfg = offseg_config(
        *SMALL_OFFSEG,
        *("MODEL.EFFICIENTFORMER_V2.DROP_PATH_RATE", 0.3, "INPUT.CROP.SIZE", [SIDE, SIDE]),
        *("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 1e-3),
        *("SOLVER.IMS_PER_BATCH", IMAGES, "DATASETS.TEST", (), "SEED", 3),
        *("OUTPUT_DIR", str(directory)),
    )
    trainer = NoiseTrainer(cfg)
    losses = []
    after_step = trainer.after_step

    def note_loss() -> None:
        losses.append(trainer.storage.history("total_loss").latest())
        after_step()

    trainer.after_step = note_loss
    trainer.train()
    if comm.is_main_process():
        (directory / "losses.json").write_text(json.dumps(losses))


def curve(directory: Path, processes: int) -> list[float]:
    directory.mkdir()
    ended = run_ranks(directory, train_and_note, directory, number=processes, seconds=300)
    assert [end.status for end in ended] == [0] * processes, ended[0].log[-3000:]
    return json.loads((directory / "losses.json").read_text())


def test_one_two_and_four_processes_with_the_same_images_have_the_same_loss_curve(tmp_path):
    curves = [curve(tmp_path / str(number), number) for number in (1, 2, 4)]
    assert len(curves[0]) == ITERATIONS
    changes = [abs(loss - curves[0][0]) for loss in curves[0][1:]]
    assert min(changes) > 1e-3  # always the same images: only the gradients can have done it
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], rel=1e-5)
