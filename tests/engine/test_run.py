"""``offseg_d2.train``: a training in one call, its files and what it logs where."""

import logging
import re

import pytest
import yaml
from detectron2.utils.logger import setup_logger

import offseg_d2
from offseg_d2.config import ConfigError, load_config, reads
from offseg_d2.engine import run_log
from tests.engine.tiny import TinyTrainer, make_cfg


@pytest.fixture
def train(tmp_path):
    """Trains the tiny model into a folder of ``tmp_path``; loggers are left as they were."""
    loggers = [logging.getLogger(name) for name in run_log.NAMES]
    before = [(log, log.handlers, log.level, log.propagate) for log in loggers]
    for log in loggers:
        log.handlers = []
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(make_cfg(tmp_path / "run").dump())))

    def call(name: str = "run", changes=(), **options) -> "offseg_d2.engine.Run":
        pairs = {"OUTPUT_DIR": str(tmp_path / name), "SOLVER.MAX_ITER": 6, **dict(changes)}
        return offseg_d2.train(config, pairs, trainer=TinyTrainer, num_gpus=0, **options)

    yield call
    setup_logger.cache_clear()
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def test_run_names_its_files_and_results(train, tmp_path):
    run = train()
    folder = tmp_path / "run"
    assert run.output_dir == str(folder)
    assert run.last == str(folder / "model_final.pth")
    assert run.best == str(folder / "model_best.pth")
    assert (folder / "model_best.pth").is_file() and (folder / "model_final.pth").is_file()
    assert '"total_loss"' in (folder / "metrics.json").read_text()
    assert run.metrics == str(folder / "metrics.json")
    assert 0 <= run.results["sem_seg"]["mIoU"] <= 100
    written = load_config(folder / "config.yaml")
    assert (written.SOLVER.MAX_ITER, written.MODEL.DEVICE) == (6, "cpu")
    (folder / "model_best.pth").unlink()
    assert run.best == run.last


def test_keys_that_nothing_reads_are_named_once_after_the_first_iteration(train, tmp_path):
    dead = {"SOLVER.NESTEROV": True, "MODEL.SWIN.VARIANT": "b", "TEST.EXPECTED_RESULTS": [["a"]]}
    train(changes={**dead, "SOLVER.STEPS": (2, 4)})
    log = (tmp_path / "run/log.txt").read_text()
    (line,) = [line for line in log.splitlines() if "have no effect in this run" in line]
    assert all(f"`{key}`" in line for key in (*dead, "SOLVER.STEPS"))
    assert log.index(line) < log.index("iter: 1 ")
    train(
        changes={"SOLVER.STEPS": (2, 4), "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR"}, name="b"
    )
    assert "`SOLVER.STEPS`" not in (tmp_path / "b/log.txt").read_text()


def test_keys_of_detectron2_that_have_another_name_here_are_named_in_a_real_run(train, tmp_path):
    changes = {
        **{"INPUT.RANDOM_FLIP": "vertical", "INPUT.MIN_SIZE_TEST": 9, "INPUT.MAX_SIZE_TEST": 9},
        **{"SOLVER.MOMENTUM": 0.5, "SOLVER.BIAS_LR_FACTOR": 3.0, "SOLVER.WEIGHT_DECAY_BIAS": 0.5},
        **{"SOLVER.WEIGHT_DECAY_NORM": 0.5, "SOLVER.REFERENCE_WORLD_SIZE": 3, "VIS_PERIOD": 3},
        **{"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (9,), "TEST.AUG.FLIP": False},
    }
    assert changes.keys() == reads._INSTEAD.keys()
    train(changes=changes)
    (line,) = [
        text for text in (tmp_path / "run/log.txt").read_text().splitlines() if "no effect" in text
    ]
    assert all(f"`{key}` (use `{other}`)" in line for key, other in reads._INSTEAD.items())


def test_resume_goes_on(train, tmp_path):
    train()
    train(changes={"SOLVER.MAX_ITER": 8}, resume=True)
    assert "Continuing at iteration 6" in (tmp_path / "run/log.txt").read_text()


def test_terminal_shows_progress_from_the_first_iteration_and_the_file_all(train, tmp_path, capsys):
    train(changes={"SOLVER.MAX_ITER": 9, "SOLVER.LOG_PERIOD": 4})
    printed, log = capsys.readouterr().out, (tmp_path / "run/log.txt").read_text()
    for text in (printed, log):
        assert re.findall(r" iter: (\d+) ", text) == ["0", "3", "7", "8"]
        assert re.search(r"eta: \d:\d\d:\d\d  iter: 7 ", text)
    for text in ("WARMUP_ITERS", "Environment", "Command line: "):
        assert text in log and text not in printed
    assert "\x1b" not in log and "Serializing" not in printed


def test_second_run_of_a_program_has_a_log_of_its_own(train, tmp_path, capsys):
    train("first", {"SOLVER.LOG_PERIOD": 3})
    first = (tmp_path / "first/log.txt").read_text()
    capsys.readouterr()
    train("second", {"SOLVER.LOG_PERIOD": 3})
    assert re.findall(r" iter: (\d+) ", capsys.readouterr().out) == ["0", "2", "5"]
    assert (tmp_path / "first/log.txt").read_text() == first


def test_mistake_is_an_exception_for_the_program(train):
    with pytest.raises(ConfigError, match=r"`SOLVER\.MAX_ITRE`"):
        train(changes={"SOLVER.MAX_ITRE": 5})
    with pytest.raises(ValueError, match=r"`DATASETS.TEST` must"):
        train(changes={"DATASETS.TEST": ("tiny_vall",)})


def test_stop_right_after_the_first_line_is_not_hidden_by_the_log(train, monkeypatch):
    def stop(self) -> None:
        if self.iter == 1:
            raise FloatingPointError("stopped")
        steps(self)

    steps = TinyTrainer.run_step
    monkeypatch.setattr(TinyTrainer, "run_step", stop)
    with pytest.raises(FloatingPointError, match="stopped"):
        train()
