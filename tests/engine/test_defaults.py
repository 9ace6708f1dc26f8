"""Choices by machine: device, precision, batch norm, and the files of a run."""

import argparse
import contextlib

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import NaiveSyncBatchNorm
from torch import nn

from offseg_d2.config import ConfigError, load_config
from offseg_d2.engine import (
    autocast_dtype,
    configure_batch_norm,
    create_ddp_model,
    setup_run,
)
from offseg_d2.engine import defaults as engine_defaults
from offseg_d2.modeling import available_device


def make_cfg(*options) -> CfgNode:
    cfg = load_config("", ["MODEL.DEVICE", "cpu"])
    cfg.merge_from_list(list(options))
    return cfg


def make_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_cpu_takes_the_place_of_absent_cuda_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert available_device("cuda") == "cpu"
    assert available_device("cuda:1") == "cpu"
    assert "using the CPU" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert available_device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(
    ("enabled", "name", "device", "expected"),
    [
        (False, "float16", "cuda", None),
        (True, "float16", "cuda", torch.float16),
        (True, "bfloat16", "cuda", torch.bfloat16),
        (True, "bfloat16", "cpu", torch.bfloat16),
        (True, "float16", "cpu", torch.bfloat16),
    ],
)
def test_precision_is_chosen_by_key_and_device(monkeypatch, enabled, name, device, expected):
    monkeypatch.setattr(engine_defaults, "bfloat16_gain", lambda: 1.5)
    cfg = make_cfg("SOLVER.AMP.ENABLED", enabled, "SOLVER.AMP.DTYPE", name)
    assert autocast_dtype(cfg, torch.device(device)) is expected


def test_processor_without_units_for_bfloat16_trains_in_float32(monkeypatch, caplog):
    monkeypatch.setattr(engine_defaults, "bfloat16_gain", lambda: 0.15)
    cfg = make_cfg("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16")
    assert autocast_dtype(cfg, torch.device("cpu")) is None
    assert "0.1 times as fast" in caplog.text and "training in float32" in caplog.text
    assert autocast_dtype(cfg, torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize(
    ("wanted", "device", "world_size", "norm"),
    [
        ("SyncBN", "cuda", 2, nn.SyncBatchNorm),
        ("SyncBN", "cuda", 1, nn.BatchNorm2d),
        ("SyncBN", "cpu", 2, NaiveSyncBatchNorm),
        ("SyncBN", "cpu", 1, nn.BatchNorm2d),
        ("BN", "cuda", 2, nn.BatchNorm2d),
        ("BN", "cpu", 2, nn.BatchNorm2d),
    ],
)
def test_batch_norm_is_synchronised_only_where_wanted_and_possible(
    monkeypatch, wanted, device, world_size, norm
):
    monkeypatch.setattr(engine_defaults.comm, "get_world_size", lambda: world_size)
    cfg = make_cfg("MODEL.BATCH_NORM", wanted, "MODEL.DEVICE", device)
    model = configure_batch_norm(make_model(), cfg)
    assert type(model[1]) is norm
    assert list(model.state_dict()) == list(make_model().state_dict())


def test_one_process_needs_no_wrapper():
    model = make_model()
    assert create_ddp_model(model, torch.device("cpu")) is model


def test_set_up_run_fixes_device_and_seed_and_writes_both(tmp_path, loggers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = make_cfg("MODEL.DEVICE", "cuda", "OUTPUT_DIR", str(tmp_path))
    args = argparse.Namespace(eval_only=False)
    resolved = setup_run(cfg, args)
    assert resolved.MODEL.DEVICE == "cpu"
    assert resolved.SEED >= 0
    assert resolved.is_frozen()
    assert cfg.SEED == -1
    written = load_config(str(tmp_path / "config.yaml"))
    assert (written.MODEL.DEVICE, written.SEED) == ("cpu", resolved.SEED)
    assert "Environment" in (tmp_path / "log.txt").read_text()


def test_tf32_is_chosen_by_key(tmp_path, loggers):
    for wanted in (True, False):
        cfg = make_cfg("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "SOLVER.TF32", wanted)
        setup_run(cfg, argparse.Namespace(eval_only=True))
        assert torch.backends.cuda.matmul.allow_tf32 is wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("INPUT.CROP.SIZE", [512]), r"`INPUT.CROP.SIZE` must be two positive .* \[512\]"),
        (("INPUT.CROP.SIZE", [0.9, 0.9]), r"`INPUT.CROP.SIZE` must be two positive"),
        (("INPUT.CROP.TYPE", "relative"), r"`INPUT.CROP.TYPE` must be 'absolute', but is 'rel"),
    ],
)
def test_wrong_crops_are_named_where_there_are_crops(tmp_path, loggers, changes, message):
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute")
    options = ("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *crop, *changes)
    with pytest.raises(ValueError, match=message):
        setup_run(make_cfg(*options), argparse.Namespace(eval_only=False))
    setup_run(make_cfg(*options), argparse.Namespace(eval_only=True))
    without = make_cfg(*options, "INPUT.CROP.ENABLED", False)
    setup_run(without, argparse.Namespace(eval_only=False))


@pytest.mark.parametrize(
    ("options", "eval_only", "expected"),
    [
        (("INPUT.CROP.ENABLED", True), False, True),
        (("INPUT.CROP.ENABLED", True), True, False),
        (("INPUT.CROP.ENABLED", True, "CUDNN_BENCHMARK", False), False, False),
        (("INPUT.CROP.ENABLED", False), False, False),
        (("INPUT.CROP.ENABLED", True, "INPUT.ROTATE_90_PROBABILITY", 0.5), False, False),
    ],
)
def test_cudnn_tries_its_algorithms_where_batches_have_one_size(
    tmp_path, loggers, options, eval_only, expected
):
    wide = ("INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [512, 1024])
    cfg = make_cfg("MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *wide, *options)
    before = torch.backends.cudnn.benchmark
    try:
        setup_run(cfg, argparse.Namespace(eval_only=eval_only))
        assert torch.backends.cudnn.benchmark is expected
        with engine_defaults.sizes_vary():
            assert torch.backends.cudnn.benchmark is False
        assert torch.backends.cudnn.benchmark is expected
    finally:
        torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize(
    ("world_size", "backend", "device", "refused"),
    [
        (2, "nccl", "cpu", True),
        (2, "nccl", "cuda", False),
        (2, "gloo", "cpu", False),
        (1, "nccl", "cpu", False),
    ],
)
def test_processes_on_the_cpu_need_a_backend_for_it(
    tmp_path, loggers, monkeypatch, world_size, backend, device, refused
):
    monkeypatch.setattr(engine_defaults.comm, "get_world_size", lambda: world_size)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    cfg = make_cfg("MODEL.DEVICE", device, "OUTPUT_DIR", str(tmp_path), "SEED", 1)
    expected = pytest.raises(ConfigError, match="must be 'cuda' for 2 processes")
    with expected if refused else contextlib.nullcontext():
        setup_run(cfg, argparse.Namespace(eval_only=False))
    assert (tmp_path / "config.yaml").exists() != refused


def test_evaluation_keeps_the_configuration_of_the_run(tmp_path, loggers):
    (tmp_path / "config.yaml").write_text("# trained with\n")
    setup_run(make_cfg("OUTPUT_DIR", str(tmp_path)), argparse.Namespace(eval_only=True))
    assert (tmp_path / "config.yaml").read_text() == "# trained with\n"
