"""Two labelers on the same human masks: which is better, by how much, and where.

python examples/compare.py HUMAN.json FIRST SECOND OUT

FIRST and SECOND are run folders or checkpoints; OUT is a folder to write into.
"""

import sys
from pathlib import Path

import malcli


def main(human: str, first: str, second: str, out: str) -> None:
    """Label with both, and measure the second beside the first."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, checkpoint in (("first", first), ("second", second)):
        malcli.label(boxes=human, checkpoint=checkpoint, out=folder / f"{name}.json", quiet=True)
    result = malcli.evaluate(
        gt=human, pred=folder / "first.json", compare=folder / "second.json",
        report=folder / "report.html", quiet=True,
    )  # fmt: skip
    print(result)
    change = result.comparison.difference["all"]
    print(f"mIoU changes by {change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
