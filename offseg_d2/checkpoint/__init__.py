"""Checkpoints: safe loading, atomic writing, resuming, and maps of foreign parameter names."""

from .atomic_write import write_atomically
from .checkpointer import SafeCheckpointer, StateDictConverter
from .safe_load import (
    CheckpointError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
)

__all__ = [
    "CheckpointError",
    "CorruptCheckpointError",
    "SafeCheckpointer",
    "StateDictConverter",
    "UnsafeCheckpointError",
    "load_checkpoint_file",
    "write_atomically",
]
