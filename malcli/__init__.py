"""Boxes in, instance masks out: the Mask Auto-Labeler as a command line and a library."""

from typing import TYPE_CHECKING, Any

from malcli.version import __version__

__all__ = ["Labeler", "__version__", "convert", "evaluate", "fit", "label", "retention"]

if TYPE_CHECKING:
    from malcli.api import convert, evaluate, fit, label, retention
    from malcli.engine.label.labeler import Labeler


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import the library's functions on first use, so that `malcli --help` stays fast."""
    if name == "Labeler":  # needs torch, which the functions load when they are called
        from malcli.engine.label.labeler import Labeler

        return Labeler
    if name in __all__:
        from malcli import api

        return getattr(api, name)
    raise AttributeError(f"module 'malcli' has no attribute '{name}'")
