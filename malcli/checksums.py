"""What tells that a JSON text of malcli is still what was written, to the bit."""

import hashlib
import json
from typing import Any


class DamagedError(ValueError):
    """A file of malcli is not what was written."""

    def __init__(self) -> None:
        """Say why."""
        super().__init__("its checksum differs")


def seal(values: dict[str, Any]) -> str:
    """Return an object as JSON that tells when any of it has changed; `unseal` reads it."""
    return json.dumps({"sha256": checksum(values), **values}, indent=1) + "\n"


def unseal(text: bytes | str) -> dict[str, Any]:
    """Return the object of a JSON text; one without a digest is taken as it is.

    Raises:
        DamagedError: It is not what was written.
        ValueError: It is no object.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("no object")
    if values.pop("sha256", None) not in (None, checksum(values)):
        raise DamagedError
    return values


def checksum(values: dict[str, Any]) -> str:
    """Return the SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
