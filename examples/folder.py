"""Masks for the boxes of a whole folder, and a YOLO data set of the sure ones.

python examples/folder.py BOXES.json IMAGES OUT

BOXES.json is any format that malcli reads; OUT is a folder to write into.
"""

import sys
from pathlib import Path

import malcli


def main(boxes: str, images: str, out: str) -> None:
    """Label, keep the masks with a score of at least 0.5, and write both."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    masks = folder / "masks.json"
    # Interrupted, it goes on where it was; finished, it answers at once.
    result = malcli.label(
        boxes=boxes, images=images, out=masks, report=folder / "report.html", quiet=True
    )
    print(result)
    print(malcli.convert(masks, folder / "yolo", to="yolo", images=images, min_score=0.5))


if __name__ == "__main__":
    main(*sys.argv[1:])
