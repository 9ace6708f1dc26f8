"""Checkpoints: safe loading, atomic writing, resuming, and maps of external parameter names."""

from .checkpointer import SafeCheckpointer, StateDictConverter, build_checkpointer
from .conversion import Conversion, convert, convert_file, convert_for_model
from .entries import check_entries
from .published import HubHandler
from .run_folder import last_checkpoint
from .safe_load import (
    CheckpointError,
    CorruptCheckpointError,
    UnsafeCheckpointError,
    load_checkpoint_file,
)
from .state_dicts import load_state_dict_file

__all__ = [
    "CheckpointError",
    "Conversion",
    "CorruptCheckpointError",
    "HubHandler",
    "SafeCheckpointer",
    "StateDictConverter",
    "UnsafeCheckpointError",
    "build_checkpointer",
    "check_entries",
    "convert",
    "convert_file",
    "convert_for_model",
    "last_checkpoint",
    "load_checkpoint_file",
    "load_state_dict_file",
]
