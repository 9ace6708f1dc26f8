"""Two processes on the CPU: equal to one process, and stopping together."""

import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from offseg_d2.engine import TrainLoop, broadcast_buffers, create_ddp_model
from tests.distributed.run_ranks import run_ranks
from tests.engine.tiny import TinyTrainer, make_sample, make_trainer


class RankTrainer(TinyTrainer):
    """Each process has images of its own."""

    @classmethod
    def build_train_loader(cls, cfg, start_iter=0):
        offset = 1000 * comm.get_rank()
        return ([make_sample(cfg.SEED, offset + i)] for i in itertools.count(start_iter))


def evaluate() -> dict:
    def counted(evaluator, positions):
        for position in positions:
            sem_seg = make_sample(1, position)["sem_seg"]
            evaluator.process([make_sample(0, position)], [{"sem_seg": sem_seg}])
        return evaluator.evaluate()

    evaluator = TinyTrainer.build_evaluator(None, "tiny_val")
    # unequal shares: rank 0 has one image, rank 1 has two
    metrics = counted(evaluator, [0] if comm.get_rank() == 0 else [1, 2])
    alone = TinyTrainer.build_evaluator(None, "tiny_val")
    alone.distributed = False
    expected = counted(alone, [0, 1, 2])
    return {"metrics": metrics, "metrics_of_one_process": expected}


def make_rank_trainer(directory: str, *options) -> TinyTrainer:
    torch.manual_seed(comm.get_rank())  # the wrapper has to make the weights equal
    trainer = make_trainer(directory, *options)
    trainer.build_train_loader = RankTrainer.build_train_loader
    return trainer


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def train_until_exit(trainer: TinyTrainer) -> int | None:
    """Exit status of a training that was stopped."""
    try:
        trainer.train()
    except SystemExit as stop:
        return stop.code
    return None


def save_slowly() -> list[float]:
    """Make writing the checkpoint of the stop take long, with signals in it; returns its ends."""
    ends, save = [], torch.save

    def save_under_fire(data, file) -> None:
        if data["iteration"] == 4:
            terminate()
            time.sleep(1.0)
            terminate()
        save(data, file)
        ends.append(time.monotonic())

    torch.save = save_under_fire
    return ends


def stop_in_evaluation(directory: str) -> dict:
    trainer = make_rank_trainer(directory, "TEST.EVAL_PERIOD", 6)
    test, evaluated = trainer.test, []

    def test_with_signal(cfg, model):
        if comm.get_rank() == 1:
            terminate()
        results = test(cfg, model)
        evaluated.append(trainer.iter)
        return results

    trainer.test = test_with_signal
    status = train_until_exit(trainer)
    last = Path(directory, "last_checkpoint").read_text()
    return {"evaluation": {"status": status, "evaluated_after": evaluated, "last": last}}


def train_and_stop(directory: str) -> dict:
    trainer = make_rank_trainer(directory)
    run_step = trainer.run_step

    def run_step_with_signal() -> None:
        if trainer.iter == 4 and comm.get_rank() == 1:
            terminate()
        run_step()

    trainer.run_step = run_step_with_signal
    saved_at = save_slowly() if comm.get_rank() == 0 else []
    status = train_until_exit(trainer)
    left_at = time.monotonic()
    comm.synchronize()
    broadcast_buffers(trainer.model)
    resumed = make_rank_trainer(directory)
    resumed.resume_or_load(resume=True)
    return {
        "stopped_after": trainer.iter,
        "status": status,
        "saved_at": saved_at[-1:],
        "left_at": left_at,
        "resumed_at": resumed.start_iter,
        "weights": [p.double().sum().item() for p in trainer.model.parameters()],
        "buffers": [b.double().sum().item() for b in trainer.model.buffers()],
    }


def stop_early(directory: str) -> dict:
    options = ("TEST.EVAL_PERIOD", 2, "SOLVER.EARLY_STOPPING_PATIENCE", 2)
    trainer = make_rank_trainer(directory, *options)
    results = {"sem_seg": {"mIoU": 1.0}} if comm.is_main_process() else {}
    trainer.test = lambda cfg, model: results
    trainer.train()
    return {"early": trainer.max_iter}


def train_on_bad_loss() -> dict:
    class Model(torch.nn.Linear):
        def forward(self, batch):
            return {"loss": super().forward(batch[0]["x"]).sum()}

    model = torch.nn.parallel.DistributedDataParallel(Model(2, 1))
    rank = comm.get_rank()
    values = torch.full((2,), float("nan") if rank == 1 else 1.0)
    batch = [{"x": values, "file_name": f"bad_of_rank_{rank}.png"}]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(model, optimizer, [batch], device=torch.device("cpu"))
    try:
        loop.train(0, 1)
    except FloatingPointError as error:
        return {"error": str(error)}
    return {"error": ""}


def accumulate() -> dict:
    """Reductions of gradients, and how far two iterations with the learning rate 1 move a weight.

    The gradient is the input: the number of the batch, and ten more in the second process.
    """

    class Model(torch.nn.Linear):
        def forward(self, batch):
            return {"loss": super().forward(batch[0]["x"]).sum()}

    found = {}
    for steps in (1, 3):
        model = create_ddp_model(Model(1, 1), torch.device("cpu"))
        reduced = []

        def count(state, bucket, reduced=reduced):
            reduced.append(bucket.index())
            return allreduce_hook(None, bucket)

        model.register_comm_hook(None, count)
        before = model.module.weight.item()
        batches = [[{"x": torch.tensor([i + 10.0 * comm.get_rank()])}] for i in range(2 * steps)]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        device = torch.device("cpu")
        TrainLoop(model, optimizer, batches, device=device, accumulation_steps=steps).train(0, 2)
        found[str(steps)] = [len(reduced), before - model.module.weight.item()]
        assert model.gradient_as_bucket_view and not model.find_unused_parameters
    return {"accumulated": found}


def run(directory: Path) -> None:
    report = {**evaluate(), **train_and_stop(str(directory)), **train_on_bad_loss()}
    report |= accumulate()
    report |= stop_in_evaluation(str(directory / "stopped_in_evaluation"))
    report |= stop_early(str(directory / "early"))
    (directory / f"rank_{comm.get_rank()}.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[dict]:
    """Samples seen by each of two processes."""
    directory = tmp_path_factory.mktemp("processes")
    ended = run_ranks(directory, run, directory, seconds=300)
    assert [end.status for end in ended] == [0, 0], ended[0].log[-3000:]
    return [json.loads((directory / f"rank_{rank}.json").read_text()) for rank in range(2)]


def test_counts_of_all_processes_are_summed_on_the_main_one(reports):
    assert reports[0]["metrics"] == reports[0]["metrics_of_one_process"]
    assert reports[1]["metrics"] is None


def test_training_keeps_the_weights_of_all_processes_equal(reports):
    assert reports[0]["weights"] == reports[1]["weights"]
    assert reports[0]["buffers"] == reports[1]["buffers"]


def test_bad_loss_in_one_process_stops_all_and_names_its_files(reports):
    for report in reports:
        assert "bad_of_rank_1.png" in report["error"]
        assert "rank_0" not in report["error"]


def test_signal_to_one_process_stops_all_after_the_same_iteration_once_it_is_saved(reports):
    assert [report["stopped_after"] for report in reports] == [4, 4]
    assert [report["status"] for report in reports] == [143, 143]
    assert [report["resumed_at"] for report in reports] == [5, 5]
    (saved_at,) = reports[0]["saved_at"]
    assert reports[1]["left_at"] >= saved_at


def test_signal_in_an_evaluation_stops_all_after_it_and_the_next_iteration(reports):
    for report in reports:
        assert report["evaluation"]["status"] == 143
        assert report["evaluation"]["evaluated_after"] == [5]
        assert report["evaluation"]["last"] == "model_0000006.pth"


def test_accumulated_gradients_are_reduced_once_an_iteration(reports):
    for report in reports:
        (reductions, moved), (accumulated, far) = report["accumulated"].values()
        assert reductions == accumulated == 2
        assert moved == pytest.approx((0 + 10) / 2 + (1 + 11) / 2)
        assert far == pytest.approx((1 + 11) / 2 + (4 + 14) / 2)  # means of three batches


def test_all_processes_stop_early_where_the_main_one_decides(reports):
    assert [report["early"] for report in reports] == [6, 6]
