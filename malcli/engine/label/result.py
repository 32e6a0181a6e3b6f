"""What a start of a labelling job did, as the command prints it and as plain values."""

import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malcli.model.locate import name_of
from malcli.records import Problems
from malcli.report.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

STAGES = ("read", "decode", "crop", "network", "paste", "encode", "write", "wait")


@dataclass
class LabelResult(Shown):
    """What a start of a labelling job did.

    Attributes:
        counts: Boxes by status: of the whole job once it is merged, before that of this share.
        out: The output; None for a dry run.
        merged: Whether the output is there.
        seconds: CPU seconds by stage, of all workers; time that passes for network and wait.
        labelled: Boxes that this start labelled or skipped, and the seconds that it took.
        problems: What is wrong with which records.
        checkpoint: The file that labelled; None if none was needed.
        quality: What it says of its quality on human masks; None: not measured, or none needed.
        estimate: Of a dry run: what the job will take.
        report: The page that was written, if any.
    """

    counts: dict[str, int] = field(default_factory=dict)
    out: Path | None = None
    merged: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    labelled: tuple[int, float] = (0, 0.0)
    problems: Problems = field(default_factory=Problems)
    checkpoint: Path | None = None
    quality: dict[str, Any] | None = None
    estimate: dict[str, Any] | None = None
    report: Path | None = None

    @property
    def boxes_per_s(self) -> float:
        """Rate of this start; 0 if it had nothing to do."""
        return self.labelled[0] / (self.labelled[1] or 1.0)

    def table(self) -> "RenderableType":
        """Return what the command prints."""
        from malcli.report.tables import label_table

        return label_table(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return plain values, and the most memory that this process held so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB; bytes on macOS
        return {
            **({} if self.estimate is None else {"estimate": self.estimate}),
            "counts": self.counts,
            "boxes_per_s": round(self.boxes_per_s, 3),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "peak_memory_mb": round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1),
            "out": None if self.out is None else str(self.out),
            "merged": self.merged,
            "checkpoint": None if self.checkpoint is None else name_of(self.checkpoint),
            "quality": self.quality,
            "problems": {
                kind: {"count": count, "examples": self.problems.examples.get(kind, [])}
                for kind, count in sorted(self.problems.counts.items())
            },
        }
