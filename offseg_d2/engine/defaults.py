"""Choices that depend on the machine a run is on, each made in one place and logged."""

import argparse
import contextlib
import importlib.util
import logging
import os
import platform
import time
from collections.abc import Iterator
from typing import Any

import detectron2
import numpy as np
import torch
import torch.distributed
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from offseg_d2.config import ConfigError, trace_reads, unread_keys
from offseg_d2.data import adapt_to_folders, balance_class_weights, crop_size
from offseg_d2.modeling import available_device
from offseg_d2.utils.io import write_atomically
from offseg_d2.version import __version__

from .progress import ProgressPrinter
from .run_length import fit_run_length
from .run_lock import RunLock
from .run_log import FILE_ONLY, open_run_log

logger = logging.getLogger(__name__)

_BATCH_NORMS = ("SyncBN", "BN")
_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def setup_run(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """Start a run: loggers, datasets of the user's own, device, seed, ``OUTPUT_DIR/config.yaml``.

    Args:
        cfg: configuration, not changed.
        args: command line, as of Detectron2's ``default_argument_parser``.

    Returns:
        frozen configuration with the device and seed that are really used.

    Raises:
        ConfigError: if the processes cannot exchange tensors of ``MODEL.DEVICE``.
        FileNotFoundError, ValueError: a dataset cannot be used.
    """
    cfg = trace_reads(cfg)
    _check_backend(cfg)
    cfg.defrost()
    rank = comm.get_rank()
    open_run_log(cfg.OUTPUT_DIR, rank)
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info(), extra=FILE_ONLY)
    logger.info("Command line: %s", args, extra=FILE_ONLY)
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE)
    adapt_to_folders(cfg, eval_only=args.eval_only)
    if not args.eval_only:
        fit_run_length(cfg)
        balance_class_weights(cfg)
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed()
        logger.info("`SEED` is negative: drew the seed %d", cfg.SEED)
    cfg.freeze()
    seed_all_rng(cfg.SEED + rank)
    torch.backends.cudnn.benchmark = (
        cfg.CUDNN_BENCHMARK and not args.eval_only and _size_is_fixed(cfg)
    )
    torch.backends.cuda.matmul.allow_tf32 = cfg.SOLVER.TF32
    logger.info("Configuration:\n%s", cfg.dump(), extra=FILE_ONLY)
    logger.info("Configuration, environment and log: %s", cfg.OUTPUT_DIR)
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if comm.is_main_process() and not args.eval_only:
        RunLock(cfg.OUTPUT_DIR).release()  # refuses before the files of another training change
    # An evaluation must not replace the configuration that a run was trained with.
    if comm.is_main_process() and not (args.eval_only and os.path.exists(path)):
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        write_atomically(path, cfg.dump().encode())
    return cfg


def warn_of_unread_keys(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Name, in one warning, all keys of a run that were changed but that nothing has read."""
    names = unread_keys(cfg, eval_only=eval_only)
    if names and comm.is_main_process():
        logger.warning("These keys have no effect in this run: %s.", ", ".join(names))


def _size_is_fixed(cfg: CfgNode) -> bool:
    """True if all training batches have one height and width: smaller crops are padded."""
    if not cfg.INPUT.CROP.ENABLED:
        return False
    height, width = crop_size(cfg)
    return height == width or cfg.INPUT.ROTATE_90_PROBABILITY == 0


@contextlib.contextmanager
def sizes_vary() -> Iterator[None]:
    """Context in which cuDNN does not try all algorithms for each new size of images."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _check_backend(cfg: CfgNode) -> None:
    # Detectron2's `launch` takes NCCL wherever there is CUDA; it cannot send tensors of the CPU.
    number, device = comm.get_world_size(), cfg.MODEL.DEVICE
    on_cuda = device.startswith("cuda")
    if number > 1 and not on_cuda and torch.distributed.get_backend() == "nccl":
        raise ConfigError(
            f"`MODEL.DEVICE` must be 'cuda' for {number} processes on a machine with CUDA, but is "
            f"{device!r}; to use the CPU, hide the GPUs with CUDA_VISIBLE_DEVICES=''."
        )


def autocast_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """Type of mixed precision that ``SOLVER.AMP`` asks for; None without it.

    Off CUDA float16 becomes bfloat16, because gradient scaling is for CUDA only. A CPU without
    units for bfloat16 computes in float32, which is several times as fast there.

    Raises:
        ValueError: if ``SOLVER.AMP.DTYPE`` is unknown.
    """
    name = cfg.SOLVER.AMP.DTYPE
    if name not in _AMP_DTYPES:
        raise ValueError(
            f"`SOLVER.AMP.DTYPE` must be one of {sorted(_AMP_DTYPES)}, but is {name!r}."
        )
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if name == "float16" and device.type != "cuda":
        logger.warning("`SOLVER.AMP.DTYPE` is 'float16' on %s: using bfloat16.", device.type)
        name = "bfloat16"
    if device.type == "cpu":
        gain = comm.all_gather(bfloat16_gain())[0]  # one choice for all processes
        if gain < 1:
            logger.warning(
                "`SOLVER.AMP.ENABLED` is True, but this processor computes in bfloat16 %.1f times "
                "as fast as in float32: training in float32.",
                gain,
            )
            return None
    logger.info("Mixed precision: %s", name)
    return _AMP_DTYPES[name]


def bfloat16_gain() -> float:
    """Speed of a convolution in bfloat16 over that in float32 on this CPU, by a short probe."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.ones(1, 32, 16, 16, dtype=dtype)
        weights = torch.ones(32, 32, 3, 3, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            torch.nn.functional.conv2d(images, weights, padding=1)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def configure_batch_norm(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Make the model's plain batch norms synchronised where that is wanted and possible.

    Models are built with ``nn.BatchNorm2d``. ``nn.SyncBatchNorm`` works on CUDA only (Detectron2
    builds it on any device and then fails in the first forward pass); elsewhere Detectron2's own
    synchronised norm stands in. With a single process the plain one is the same.

    Raises:
        ValueError: if ``MODEL.BATCH_NORM`` is unknown.
    """
    wanted = cfg.MODEL.BATCH_NORM
    if wanted not in _BATCH_NORMS:
        raise ValueError(
            f"`MODEL.BATCH_NORM` must be one of {list(_BATCH_NORMS)}, but is {wanted!r}."
        )
    number = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if wanted == "SyncBN" and comm.get_world_size() > 1:
        logger.info("%d batch norms, synchronised over all processes", number)
        if torch.device(cfg.MODEL.DEVICE).type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return _with_naive_sync_batch_norm(model)
    logger.info("%d batch norms, plain (`MODEL.BATCH_NORM` is %s)", number, wanted)
    return model


def _with_naive_sync_batch_norm(module: nn.Module) -> nn.Module:
    """The module with each ``nn.BatchNorm2d`` in it replaced, weights and statistics kept."""
    if isinstance(module, nn.BatchNorm2d):
        norm = NaiveSyncBatchNorm(
            module.num_features, eps=module.eps, momentum=module.momentum, affine=module.affine
        )
        norm.load_state_dict(module.state_dict())
        norm.train(module.training)
        for name, parameter in module.named_parameters():
            norm.get_parameter(name).requires_grad_(parameter.requires_grad)
        return norm
    for name, child in module.named_children():
        setattr(module, name, _with_naive_sync_batch_norm(child))
    return module


def create_ddp_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model for several processes; with one process it is returned as it is.

    Detectron2's function of this name always passes ``device_ids``, which fails on the CPU. The
    graph is not declared static: that would spare a search for unused parameters, which is not
    made, and fails inside of PyTorch where gradients are accumulated without reducing them.
    """
    if comm.get_world_size() == 1:
        return model
    device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(
        model,
        device_ids=device_ids,
        broadcast_buffers=False,
        find_unused_parameters=False,
        gradient_as_bucket_view=True,  # the gradients are reduced where they lie
    )


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the buffers (batch norm statistics) of the main one.

    They differ where batch norms are not synchronised. The main process writes the checkpoints, so
    its buffers are the ones to evaluate with.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def default_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """Progress lines with the time left, ``metrics.json``, and TensorBoard if it is installed."""
    os.makedirs(output_dir, exist_ok=True)
    writers: list[EventWriter] = [
        ProgressPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
    ]
    if importlib.util.find_spec("tensorboard") is not None:
        writers.append(TensorboardXWriter(output_dir))
    return writers


def class_table(cfg: CfgNode) -> dict[str, list[Any]]:
    """Names and colours of the classes, for a checkpoint that travels without its data set.

    Returns:
        "names" and "colors" (red, green, blue; 0..255), of the first training set; empty where
        that says none.
    """
    if not cfg.DATASETS.TRAIN:
        return {}
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    return {
        "names": list(metadata.get("stuff_classes", [])),
        "colors": [list(color) for color in metadata.get("stuff_colors", [])],
    }


def software_versions() -> dict[str, str]:
    """Versions that a checkpoint was written with."""
    return {
        "offseg_d2": __version__,
        "detectron2": detectron2.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
