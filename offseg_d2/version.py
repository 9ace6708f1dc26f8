"""The version of offseg_d2, in this one place."""

__version__ = "0.1.0"
