"""Whether what stands at a place was made by the same job, run or study, and how that is said.

A job is labelling, a run is training, a study is retention. Which settings count is said where a
setting is declared (`settings.setting`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from malcli.errors import OutputError

HASH = "_sha256"  # ends the key of an input's hash


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each key whose value differs; None is as good as absent."""
    found = []
    for key in sorted({*before, *now}):
        was, becomes = before.get(key), now.get(key)
        if was == becomes:
            continue
        if key.endswith(HASH):
            found.append(f"{key.removesuffix(HASH)} changed")
        else:
            found.append(f"{key} was {_shown(was)}, now {_shown(becomes)}")
    return found


def refuse(place: Path, kind: str, found: Sequence[str]) -> None:
    """Refuse what is at a place if anything of it differs.

    Args:
        place: An output or a folder.
        kind: `job`, `run` or `study`.
        found: As `differences` returns.

    Raises:
        OutputError: There are differences; it names them.
    """
    if found:
        raise OutputError(
            f"{place}: belongs to another {kind}: {'; '.join(found)}; give another --out or "
            f"--overwrite"
        )


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)[:60]
