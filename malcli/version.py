"""The version, which files carry and `--version` prints."""

__version__ = "0.1.0"
