"""Training loop, hooks and trainer."""

from .defaults import (
    autocast_dtype,
    broadcast_buffers,
    configure_batch_norm,
    create_ddp_model,
    default_writers,
    setup_run,
    software_versions,
)
from .evaluation import build_evaluator, evaluate
from .hooks import CheckpointHook, EvaluationHook, LearningRateHook
from .model_options import checkpoint_activations
from .run import Run, train
from .stopping import StopOnSignalHook
from .train_loop import TrainLoop, UnusedParameterError, seed_iteration
from .trainer import Trainer

__all__ = [
    "CheckpointHook",
    "EvaluationHook",
    "LearningRateHook",
    "Run",
    "StopOnSignalHook",
    "TrainLoop",
    "Trainer",
    "UnusedParameterError",
    "autocast_dtype",
    "broadcast_buffers",
    "build_evaluator",
    "checkpoint_activations",
    "configure_batch_norm",
    "create_ddp_model",
    "default_writers",
    "evaluate",
    "seed_iteration",
    "setup_run",
    "software_versions",
    "train",
]
