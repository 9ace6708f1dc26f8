"""The configuration: every key of the project, and how one is loaded."""

from .defaults import add_offseg_config, keys_without_effect
from .errors import ConfigError
from .load import load_config, load_config_text

__all__ = [
    "ConfigError",
    "add_offseg_config",
    "keys_without_effect",
    "load_config",
    "load_config_text",
]
