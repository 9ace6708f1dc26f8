"""The configuration: every key of the project, and how one is loaded."""

from .defaults import add_offseg_config
from .errors import ConfigError
from .load import load_config, load_config_text
from .reads import trace_reads, unread_keys

__all__ = [
    "ConfigError",
    "add_offseg_config",
    "load_config",
    "load_config_text",
    "trace_reads",
    "unread_keys",
]
