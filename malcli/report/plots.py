"""Pictures: masks drawn over photographs, thumbnails of an instance, sheets of training crops.

Takes arrays and masks, gives arrays or encoded bytes; `photo_reader` finds the photographs. Knows
nothing of pages.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from malcli.data.images.find import find_images
from malcli.data.images.read import read_image
from malcli.errors import BadImage, MissingImageError
from malcli.geometry.rle import decode_windows
from malcli.records import BoxTable, Rle

HUMAN = (0, 158, 255)  # blue and orange stay apart for every kind of colour vision
MALCLI = (255, 140, 0)
SECOND = (232, 92, 200)  # of --compare
GREY = 128
TINT = 0.4
CONTEXT = 0.25  # of the box's longer side, on each side
MIN_SIDE = 32  # pixels of the image in a thumbnail, so that tiny boxes keep some context
GAP = 4

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """An instance to draw.

    Attributes:
        file_name: Its photograph.
        image_hw: (height, width) of the photograph.
        xywh: (4,) box, pixels; finite.
        masks: Checked masks, or None for none, with their colours; one panel each.
        caption: Lines of plain text.
    """

    file_name: str
    image_hw: tuple[int, int]
    xywh: NDArray[np.float64]
    masks: tuple[tuple[Rle | None, Colour], ...]
    caption: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A drawn instance.

    Attributes:
        picture: JPEG bytes.
        caption: Lines of plain text.
    """

    picture: bytes
    caption: tuple[str, ...]


def draw_subjects(
    subjects: Sequence[Subject], read: Callable[[str, tuple[int, int]], Picture | None]
) -> list[Example]:
    """Return the pictures of instances.

    Args:
        subjects: What to draw.
        read: Returns a photograph by name and (height, width), (H, W, 3) uint8 RGB, or None if it
            cannot be read; its masks are then drawn on grey.
    """
    return [
        Example(
            jpeg(thumbnail(read(one.file_name, one.image_hw), one.masks, one.xywh, one.image_hw)),
            one.caption,
        )
        for one in subjects
    ]


def photo_reader(
    table: BoxTable,
    images: Path | None,
    max_pixels: int,
    warn: Callable[[str], None],
    exif: str = "auto",
) -> Callable[[str, tuple[int, int]], Picture | None]:
    """Return a function that reads a photograph for `draw_subjects`.

    Args:
        table: Annotations; the folder is looked up beside their file.
        images: The image folder, if it was given.
        max_pixels: Larger photographs are not decoded.
        warn: Told if there is no folder of photographs; masks are then drawn on grey.
        exif: The setting `--exif`.

    Raises:
        MissingImageError: `images` was given, and holds none of the images.
    """
    try:
        folder = find_images(table.path, table, images, exif)
    except MissingImageError as error:
        if images is not None:
            raise
        warn(f"report: masks are drawn on grey: {error}")
        return lambda name, image_hw: None

    def read(name: str, image_hw: tuple[int, int]) -> Picture | None:
        try:
            return read_image(folder, name, image_hw, max_pixels)
        except BadImage:
            return None

    return read


def overlay(image: Picture, mask_hw: NDArray[np.bool_] | Picture, colour: Colour) -> Picture:
    """Return the image with the mask tinted and its outline drawn.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        mask_hw: (H, W) bool or 0/1.
        colour: RGB.
    """
    inside = np.ascontiguousarray(mask_hw, dtype=np.uint8)
    out = image.copy()
    tinted = (1 - TINT) * image[inside > 0] + TINT * np.array(colour)
    out[inside > 0] = tinted.astype(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, contours, -1, colour, 1)
    return out


def instance_window(
    xywh: NDArray[np.float64], image_hw: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the part of the image to show for a box: x0 y0 x1 y1, whole pixels, inside it."""
    x, y, w, h = xywh.tolist()
    margin = CONTEXT * max(w, h)
    grow_x = max(margin, (MIN_SIDE - w) / 2)
    grow_y = max(margin, (MIN_SIDE - h) / 2)
    height, width = image_hw
    x0 = min(max(0, int(x - grow_x)), width - 1)
    y0 = min(max(0, int(y - grow_y)), height - 1)
    x1 = max(x0 + 1, min(width, int(np.ceil(x + w + grow_x))))
    y1 = max(y0 + 1, min(height, int(np.ceil(y + h + grow_y))))
    return x0, y0, x1, y1


def thumbnail(
    image: Picture | None,
    masks: Sequence[tuple[Rle | None, Colour]],
    xywh: NDArray[np.float64],
    image_hw: tuple[int, int],
    side: int = 320,
) -> Picture:
    """Return an instance's surroundings once for each mask, side by side.

    Args:
        image: (H, W, 3) uint8 RGB of image_hw; None draws on grey.
        masks: Checked masks, or None for none, with their colours.
        xywh: (4,) box, pixels; finite.
        image_hw: (height, width).
        side: Longer side of each panel, pixels.
    """
    window = instance_window(xywh, image_hw)
    x0, y0, x1, y1 = window
    scale = side / max(x1 - x0, y1 - y0)
    size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
    if image is None:
        photo = np.full((size[1], size[0], 3), GREY, dtype=np.uint8)
    else:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        cut = np.ascontiguousarray(image[y0:y1, x0:x1])
        photo = np.asarray(cv2.resize(cut, size, interpolation=method), dtype=np.uint8)
    panels = []
    for rle, colour in masks:
        panel = photo.copy()
        if rle is not None:
            mask = np.ascontiguousarray(decode_windows([rle], [window])[0])
            grown = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
            panel = overlay(photo, np.asarray(grown, dtype=np.uint8), colour)
        _draw_box(panel, xywh, (x0, y0), scale)
        panels.append(panel)
    return _beside(panels)


def _draw_box(
    panel: Picture, xywh: NDArray[np.float64], origin: tuple[int, int], scale: float
) -> None:
    x, y, w, h = xywh.tolist()
    begin = (round((x - origin[0]) * scale), round((y - origin[1]) * scale))
    end = (round((x + w - origin[0]) * scale) - 1, round((y + h - origin[1]) * scale) - 1)
    cv2.rectangle(panel, begin, end, (255, 255, 255), 1)


def _beside(panels: Sequence[Picture]) -> Picture:
    """Return panels of one height in a row, white between them."""
    gap = np.full((panels[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    row = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(row, axis=1)


def _above(lines: Sequence[Picture]) -> Picture:
    """Return panels of one width one above the other, white between them."""
    gap = np.full((GAP, lines[0].shape[1], 3), 255, dtype=np.uint8)
    return np.concatenate([part for line in lines for part in (gap, line)][1:], axis=0)


def crop_sheet(
    crop_BSS3: Picture, *maps_Bhw: NDArray[np.floating] | Picture, side: int = 192
) -> bytes:
    """Return a PNG of a grid, one row a crop: the crop and each of its maps beside it.

    Args:
        crop_BSS3: (B, S, S, 3) uint8 RGB, at least one.
        maps_Bhw: Such as mask and refined mask: (B, h, w) float in [0, 1], or uint8 in [0, 255].
        side: Side of each cell, pixels.
    """
    greys = [
        maps if maps.dtype == np.uint8 else (maps.clip(0, 1) * 255).round().astype(np.uint8)
        for maps in maps_Bhw
    ]
    lines = []
    for row, crop in enumerate(crop_BSS3):
        cells = [crop, *(np.repeat(grey[row][..., None], 3, axis=2) for grey in greys)]
        lines.append(_beside([_cell(cell, side) for cell in cells]))
    return _encoded(_above(lines), "PNG")


def _cell(cell: Picture, side: int) -> Picture:
    method = cv2.INTER_AREA if side < cell.shape[0] else cv2.INTER_NEAREST
    resized = cv2.resize(np.ascontiguousarray(cell), (side, side), interpolation=method)
    return np.asarray(resized, dtype=np.uint8)


def attention_picture(
    crop_SS3: Picture,
    maps_RLhw: NDArray[np.float32],
    marks: Sequence[tuple[float, float] | None],
    side: int = 176,
) -> Picture:
    """Return a grid, one row a query: the crop, then its attention map of each layer.

    A map's brightness goes from 0 to its 99th percentile: single tokens often take so much that
    nothing else would be seen.

    Args:
        crop_SS3: (S, S, 3) uint8 RGB.
        maps_RLhw: (R, L, h, w) attention, at least 0.
        marks: R places in the unit square of the crop, x and y, drawn on it; None: none.
        side: Side of each cell, pixels.
    """
    lines = []
    for mark, maps_Lhw in zip(marks, maps_RLhw, strict=True):
        crop = _cell(crop_SS3, side)
        if mark is not None:
            centre = (int(mark[0] * side), int(mark[1] * side))
            for radius, colour in ((6, (0, 0, 0)), (4, (255, 255, 255))):
                cv2.circle(crop, centre, radius, colour, cv2.FILLED)
        heats = [_heat(map_hw) for map_hw in maps_Lhw]
        lines.append(_beside([crop, *(_cell(heat, side) for heat in heats)]))
    return _above(lines)


def _heat(map_hw: NDArray[np.float32]) -> Picture:
    """Return values as colours from black over red to yellow, (h, w, 3)."""
    top = float(np.percentile(map_hw, 99))
    grey = (map_hw / max(top, 1e-30)).clip(0, 1) * 255
    colours = cv2.applyColorMap(grey.round().astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(colours[..., ::-1], dtype=np.uint8)


def jpeg(image: Picture) -> bytes:
    """Return (H, W, 3) uint8 RGB as JPEG."""
    return _encoded(image, "JPEG", quality=82)


def _encoded(image: Picture, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()
