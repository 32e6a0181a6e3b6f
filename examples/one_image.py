"""Masks for the boxes of one image in memory, drawn over it.

python examples/one_image.py PHOTO OUT.png X0,Y0,X1,Y1 ...
"""

import sys

import numpy as np
from PIL import Image

from malcli import Labeler

ORANGE = np.array([255, 154, 51])


def main(photo: str, out: str, *corners: str) -> None:
    """Label the boxes, print a line each, and write the picture."""
    boxes = [[float(number) for number in box.split(",")] for box in corners]
    image = Image.open(photo).convert("RGB")
    labeler = Labeler.load()  # the one that ships; else Labeler.load("runs/mine")
    masks, scores = labeler.predict(image, boxes)  # (N, H, W) bool, (N,)
    pixels = np.array(image)
    for box, mask, score in zip(boxes, masks, scores, strict=True):
        print(f"{box}: {mask.sum()} pixels, score {score:.2f}")
        pixels[mask] = (pixels[mask] + ORANGE) // 2
    Image.fromarray(pixels).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
