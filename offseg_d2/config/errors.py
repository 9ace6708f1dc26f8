"""The error of a configuration."""


class ConfigError(ValueError):
    """A configuration that cannot be used; its message is one sentence for the user."""
