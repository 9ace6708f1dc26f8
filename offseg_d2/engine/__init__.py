"""Training loop, hooks and trainer."""

from .defaults import (
    autocast_dtype,
    available_device,
    broadcast_buffers,
    configure_batch_norm,
    create_ddp_model,
    default_writers,
    setup_run,
    software_versions,
)
from .hooks import CheckpointHook, EvaluationHook, LearningRateHook, StopOnSignalHook
from .train_loop import TrainLoop, seed_iteration
from .trainer import Trainer

__all__ = [
    "CheckpointHook",
    "EvaluationHook",
    "LearningRateHook",
    "StopOnSignalHook",
    "TrainLoop",
    "Trainer",
    "autocast_dtype",
    "available_device",
    "broadcast_buffers",
    "configure_batch_norm",
    "create_ddp_model",
    "default_writers",
    "seed_iteration",
    "setup_run",
    "software_versions",
]
