"""The command line of tools/train_net.py: train, resume, evaluate, and the user's mistakes."""

import logging
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from offseg_d2 import engine
from tests.engine.tiny import TinyTrainer, make_cfg

ROOT = Path(__file__).resolve().parents[2]
LOGGERS = ("fvcore", "detectron2", "offseg_d2")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Calls the script with arguments; returns its exit status and what it printed."""
    monkeypatch.setattr(engine, "Trainer", TinyTrainer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = yaml.safe_load(make_cfg(tmp_path / "run").dump())
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]

    def call(*arguments, config_file=config) -> tuple[int, str, str]:
        for name in LOGGERS:
            logging.getLogger(name).handlers = []
        argv = ["train_net.py", "--config-file", str(config_file), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    yield call
    for logger, handlers, level in before:
        logger.handlers = handlers
        logger.propagate = True
        logger.setLevel(level)


def last_scores(text: str) -> str:
    return re.findall(r"copypaste: ([\d.,]+)", text)[-1]


def test_evaluation_repeats_the_final_result_to_the_last_digit(command, tmp_path):
    status, trained, _ = command("SOLVER.MAX_ITER", 6)
    assert status == 0
    final = tmp_path / "run/model_final.pth"
    status, evaluated, _ = command("--eval-only", "MODEL.WEIGHTS", final)
    assert status == 0
    assert last_scores(evaluated) == last_scores(trained)
    _, resumed, _ = command("--eval-only", "--resume")
    assert last_scores(resumed) == last_scores(trained)


def test_resume_goes_on_where_the_run_ended(command, tmp_path):
    command("SOLVER.MAX_ITER", 6)
    status, printed, _ = command("--resume", "SOLVER.MAX_ITER", 8)
    assert status == 0
    assert "Continuing at iteration 6" in printed
    data = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert data["iteration"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.MAX_ITRE", 5], r"`SOLVER.MAX_ITRE` .*Did you mean `SOLVER.MAX_ITER`"),
        (["SOLVER.MAX_ITER", "many"], "`SOLVER.MAX_ITER` .*'many'"),
        (["SOLVER.WARMUP_ITERS", -5], r"`SOLVER.WARMUP_ITERS` must be at least 0, but is -5"),
        (["SOLVER.MAX_EPOCHS", -1], r"`SOLVER.MAX_EPOCHS` must be at least 0, but is -1"),
        (["--eval-only"], r"`MODEL.WEIGHTS` must name the file to evaluate"),
        (["--eval-only", "MODEL.WEIGHTS", "no/a.pth"], r"`MODEL.WEIGHTS` must be .*'no/a.pth'"),
        (["MODEL.WEIGHTS", "no/a.pth"], r"`MODEL.WEIGHTS` must be .*'no/a.pth'"),
    ],
)
def test_mistake_ends_with_one_line_and_status_2(command, arguments, message):
    status, printed, errors = command(*arguments)
    assert status == 2
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert "Traceback" not in printed + errors


def test_absent_configuration_file_is_named(command, tmp_path):
    status, _, errors = command(config_file=tmp_path / "absent.yaml")
    assert status == 2
    assert "absent.yaml" in errors


def test_nan_loss_ends_with_one_line_naming_the_images(command, monkeypatch):
    def build_bad_loader(cfg, start_iter=0):
        batch = next(iter(TinyTrainer.build_train_loader.__func__(TinyTrainer, cfg)))
        batch[0]["image"] = torch.full_like(batch[0]["image"], float("nan"))
        return [batch]

    class BadTrainer(TinyTrainer):
        build_train_loader = staticmethod(build_bad_loader)

    monkeypatch.setattr(engine, "Trainer", BadTrainer)
    status, printed, errors = command()
    assert status == 2
    assert re.search("error: The loss of iteration 0 is not finite .*image_0.png", errors)
    assert "Traceback" not in printed + errors


def test_evaluating_a_folder_without_checkpoint_is_refused(command, tmp_path):
    command("SOLVER.MAX_ITER", 6)
    weights = tmp_path / "run/model_final.pth"
    for options in ([], ["MODEL.WEIGHTS", weights]):
        status, _, errors = command("--eval-only", "--resume", *options, "OUTPUT_DIR", "empty")
        assert status == 2
        assert "error: `OUTPUT_DIR` must hold a checkpoint" in errors
        assert "'empty' holds none" in errors
    assert not Path("empty").exists()


def test_deleted_last_checkpoint_is_not_evaluated(command, tmp_path):
    command("SOLVER.MAX_ITER", 6)
    (tmp_path / "run/model_final.pth").unlink()
    status, _, errors = command("--eval-only", "--resume")
    assert status == 2
    assert re.search("error: .*last_checkpoint` must name .*'model_final.pth'", errors)


def test_evaluation_refuses_weights_that_are_incomplete(command, tmp_path):
    command("SOLVER.MAX_ITER", 6)
    path = tmp_path / "run/model_final.pth"
    data = torch.load(path, weights_only=True)
    del data["model"]["sem_seg_head.bias"]
    torch.save(data, path)
    for options in (["MODEL.WEIGHTS", path], ["--resume"]):
        status, _, errors = command("--eval-only", *options)
        assert status == 2
        assert re.search("error: .*model_final.pth` .* lacks `sem_seg_head.bias` \\(1 ", errors)
    assert command("MODEL.WEIGHTS", path, "SOLVER.MAX_ITER", 6)[0] == 0  # to begin from it is fine
