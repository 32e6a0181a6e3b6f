"""Drawn scenes with exact masks, for the demo and the tests.

Shapes with their own textures lie on a textured ground and hide parts of each other; a mask is what
stays visible. Knows nothing of labelers and reads nothing.

Suffixes: H W image pixels, h w pixels of the window around one object.
"""

import colorsys
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SUBSAMPLES = 4  # per pixel and axis; a pixel belongs to an object that covers half of it
SMALLEST = 12.0  # pixels, side of the smallest object
KEPT_SHARE = 0.45  # a new object may hide at most the rest of an older one
KEPT_PIXELS = 30
TRIES = 60  # places tried before an object is left out


class Scenes(NamedTuple):
    """Where the drawn data set lies."""

    images: Path  # folder
    instances: Path  # COCO JSON with masks
    boxes: Path  # the same without masks


@dataclass(frozen=True)
class Drawn:
    """One object while a scene is drawn."""

    category: int
    area: int  # pixels before anything hid it
    mask: Mask  # (H, W), what is visible


def draw_scenes(
    folder: Path,
    images: int,
    seed: int = 0,
    size_hw: tuple[int, int] = (192, 256),
    *,
    split: str = "train",
    objects: tuple[int, int] = (3, 7),
    suffix: str = ".png",
) -> Scenes:
    """Draw a data set into `folder`: `images/`, `instances_<split>.json`, `boxes_<split>.json`.

    Equal arguments give equal files. In both JSON files `area` counts mask pixels and `bbox` is the
    mask's tight box, as in COCO.

    Args:
        folder: Made if it is missing; other splits in it stay.
        images: Number of scenes.
        seed: Two splits of one folder need different seeds.
        size_hw: (height, width) of the scenes, pixels, each at least 48.
        split: Part of the file names.
        objects: Fewest and most objects a scene; crowded scenes may hold fewer.
        suffix: `.png` (exact) or `.jpg`.

    Returns:
        The paths.
    """
    picture_folder = folder / "images"
    picture_folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(images):
        rng = np.random.default_rng([seed, index])
        picture_HW3, drawn = draw_scene(rng, size_hw, int(rng.integers(objects[0], objects[1] + 1)))
        name = f"{split}_{index:04d}{suffix}"
        Image.fromarray(picture_HW3).save(picture_folder / name, **_save_options(suffix))
        height, width = size_hw
        records.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        annotations += [
            _annotation(len(annotations) + n + 1, index + 1, one) for n, one in enumerate(drawn)
        ]
    header = {
        "info": {"description": f"malcli drawn scenes, seed {seed}"},
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(SHAPES)],
        "images": records,
    }
    scenes = Scenes(
        picture_folder, folder / f"instances_{split}.json", folder / f"boxes_{split}.json"
    )
    bare = [{k: v for k, v in one.items() if k != "segmentation"} for one in annotations]
    scenes.instances.write_text(json.dumps(header | {"annotations": annotations}), "utf-8")
    scenes.boxes.write_text(json.dumps(header | {"annotations": bare}), "utf-8")
    return scenes


def draw_scene(
    rng: np.random.Generator, size_hw: tuple[int, int], objects: int
) -> tuple[NDArray[np.uint8], list[Drawn]]:
    """Draw one scene.

    Args:
        rng: Source of every choice.
        size_hw: (height, width), pixels.
        objects: How many to draw, large ones first.

    Returns:
        The picture, (H, W, 3) uint8 RGB, and its objects with their visible masks.
    """
    hue = float(rng.random())
    picture_HW3 = _ground(rng, size_hw, hue)
    drawn: list[Drawn] = []
    top = 0.5 * min(size_hw)
    sizes = np.exp(rng.uniform(np.log(SMALLEST), np.log(top), objects))
    for size in np.sort(sizes)[::-1]:
        category = int(rng.integers(len(SHAPES)))
        cover_HW = _place(rng, size_hw, float(size), category, drawn)
        if cover_HW is None:
            continue
        mask_HW = cover_HW >= 0.5
        drawn = [Drawn(old.category, old.area, old.mask & ~mask_HW) for old in drawn]
        drawn.append(Drawn(category, int(mask_HW.sum()), mask_HW))
        paint_HW3 = _object_paint(rng, mask_HW, category, hue)
        picture_HW3 += cover_HW[..., None] * (paint_HW3 - picture_HW3)
    grain_HW1 = rng.normal(0, 0.012, (*size_hw, 1))
    levels_HW3 = np.clip(picture_HW3 + grain_HW1, 0, 1) * 255 + 0.5
    return levels_HW3.astype(np.uint8), drawn


def _place(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    size: float,
    category: int,
    drawn: list[Drawn],
) -> Floats | None:
    """Return an object's coverage, (H, W) in [0, 1], or None if it finds no room."""
    shape = list(SHAPES.values())[category]
    for _ in range(TRIES):
        centre = (rng.uniform(0.08, 0.92) * size_hw[0], rng.uniform(0.08, 0.92) * size_hw[1])
        cover_HW = _coverage(shape, size_hw, centre, size / 2, rng.uniform(0, 2 * np.pi))
        mask_HW = cover_HW >= 0.5
        if int(mask_HW.sum()) >= KEPT_PIXELS and all(_stays(old, mask_HW) for old in drawn):
            return cover_HW
    return None


def _stays(old: Drawn, mask_HW: Mask) -> bool:
    """Tell whether enough of an older object stays visible under a new one."""
    visible = int((old.mask & ~mask_HW).sum())
    return visible >= max(KEPT_SHARE * old.area, KEPT_PIXELS)


def _coverage(
    shape: "Shape",
    size_hw: tuple[int, int],
    centre_yx: tuple[float, float],
    radius: float,
    angle: float,
) -> Floats:
    """Return the share of each pixel that a shape covers, (H, W) in [0, 1]."""
    cover_HW = np.zeros(size_hw)
    low = [max(int(c - radius) - 1, 0) for c in centre_yx]
    high = [min(int(c + radius) + 2, side) for c, side in zip(centre_yx, size_hw, strict=True)]
    if high[0] <= low[0] or high[1] <= low[1]:
        return cover_HW
    y, x = (
        (np.arange((b - a) * SUBSAMPLES) + 0.5) / SUBSAMPLES + a - c
        for a, b, c in zip(low, high, centre_yx, strict=True)
    )
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    u = x[None, :] * cos + y[:, None] * sin
    v = y[:, None] * cos - x[None, :] * sin
    h, w = high[0] - low[0], high[1] - low[1]
    inside = shape(u, v).reshape(h, SUBSAMPLES, w, SUBSAMPLES)
    cover_HW[low[0] : high[0], low[1] : high[1]] = inside.mean(axis=(1, 3))
    return cover_HW


# --- Shapes: inside or not, where the circle around the object has radius 1 -----------------------

Shape = Callable[[Floats, Floats], Mask]


def _disc(u: Floats, v: Floats) -> Mask:
    return u**2 + v**2 < 1


def _ellipse(u: Floats, v: Floats) -> Mask:
    return u**2 + (v / 0.5) ** 2 < 1


def _triangle(u: Floats, v: Floats) -> Mask:
    inside: Mask = (u > -0.5) & (u + np.sqrt(3) * np.abs(v) < 1)
    return inside


def _star(u: Floats, v: Floats) -> Mask:
    half, inner = np.pi / 5, 0.45
    turn = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)
    line = inner * np.sin(half) * np.cos(turn) + (1 - inner * np.cos(half)) * np.sin(turn)
    inside: Mask = np.hypot(u, v) * line < inner * np.sin(half)
    return inside


def _bracket(u: Floats, v: Floats) -> Mask:
    inside: Mask = (np.maximum(np.abs(u), np.abs(v)) < 0.7) & ((u < -0.2) | (v < -0.2))
    return inside


def _crescent(u: Floats, v: Floats) -> Mask:
    return (u**2 + v**2 < 1) & ((u - 0.5) ** 2 + v**2 > 0.8**2)


def _ring(u: Floats, v: Floats) -> Mask:
    radius = np.hypot(u, v)
    return (radius < 1) & (radius > 0.55)


# --- Paint ----------------------------------------------------------------------------------------


def _colour(hue: float, saturation: float, value: float) -> Floats:
    """Return an RGB colour in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _clouds(rng: np.random.Generator, size_hw: tuple[int, int], cell: float) -> Floats:
    """Return smooth noise, (H, W) about [-1, 1], with bumps of `cell` pixels."""
    h, w = (max(int(side / cell) + 2, 2) for side in size_hw)
    coarse = rng.uniform(-1, 1, (h, w)).astype(np.float32)
    smooth = cv2.resize(coarse, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, dtype=np.float64)


def _stripes(rng: np.random.Generator, size_hw: tuple[int, int], period: float) -> Floats:
    """Return a wave at a random angle, (H, W) in [-1, 1]."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    phase = (x * np.cos(angle) + y * np.sin(angle)) / period + rng.random()
    return np.asarray(np.sin(2 * np.pi * phase), dtype=np.float64)


def _ground(rng: np.random.Generator, size_hw: tuple[int, int], hue: float) -> Floats:
    """Return the textured background, (H, W, 3) RGB in [0, 1]."""
    near = _colour(hue, rng.uniform(0.15, 0.4), rng.uniform(0.5, 0.75))
    far = _colour(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.35), rng.uniform(0.55, 0.85))
    ramp_HW = np.clip(0.5 + 0.5 * _stripes(rng, size_hw, 2.2 * max(size_hw)), 0, 1)
    ground_HW3 = near + ramp_HW[..., None] * (far - near)
    light_HW = 0.05 * _clouds(rng, size_hw, 40) + 0.035 * _clouds(rng, size_hw, 7)
    if rng.random() < 0.5:
        light_HW = light_HW + 0.03 * _stripes(rng, size_hw, rng.uniform(6, 18))
    return np.asarray(ground_HW3 + light_HW[..., None], dtype=np.float64)


def _object_paint(
    rng: np.random.Generator, mask_HW: Mask, category: int, ground_hue: float
) -> Floats:
    """Return an object's paint over the whole scene, (H, W, 3) RGB in [0, 1]: texture and light.

    The hue stays away from the ground's; a category has a typical texture, not a colour.
    """
    size_hw = (mask_HW.shape[0], mask_HW.shape[1])
    hue = ground_hue + rng.uniform(0.2, 0.8)
    colour = _colour(hue, rng.uniform(0.55, 0.95), rng.uniform(0.45, 0.95))
    extent = float(np.sqrt(mask_HW.sum()))
    light_HW = 0.05 * _clouds(rng, size_hw, max(extent / 4, 2))
    if category % 3 == 1:
        light_HW = light_HW + 0.07 * _stripes(rng, size_hw, max(extent / 4, 3))
    if category % 3 == 2:
        light_HW = light_HW + 0.07 * np.sign(_stripes(rng, size_hw, max(extent / 3, 4)))
    y, x = np.nonzero(mask_HW)
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    lean_HW = ((y.mean() - rows) + (x.mean() - columns)) / max(extent, 1)
    light_HW = light_HW + 0.08 * np.clip(lean_HW, -1, 1)
    return np.asarray(np.clip(colour + light_HW[..., None], 0, 1), dtype=np.float64)


# --- Files ----------------------------------------------------------------------------------------


def _save_options(suffix: str) -> dict[str, Any]:
    """Return Pillow's options: JPEG edges need more than its usual quality."""
    return {"quality": 92} if suffix in (".jpg", ".jpeg") else {}


def _annotation(number: int, image_id: int, one: Drawn) -> dict[str, Any]:
    """Return the COCO annotation of an object."""
    rle = coco_mask.encode(np.asfortranarray(one.mask, dtype=np.uint8))
    rows = np.flatnonzero(one.mask.any(axis=1))
    columns = np.flatnonzero(one.mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    box_xywh = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": one.category + 1,
        "bbox": [float(value) for value in box_xywh],
        "area": int(one.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(one.mask.shape), "counts": rle["counts"].decode("ascii")},
    }


SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "ellipse": _ellipse,
    "triangle": _triangle,
    "star": _star,
    "bracket": _bracket,
    "crescent": _crescent,
    "ring": _ring,
}
