"""Charts of `eval`'s report, as HTML and inline SVG: IoU histograms, a bar for each category."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 20
WIDE, LEFT, BOTTOM, RIGHT = 640, 44, 24, 16
# How the histograms after the first are drawn: colour, dashes, and the words for it.
LINES = {
    "second masks": ("var(--second)", "none", "line"),
    "ellipse": ("var(--other)", "6 3", "dashed"),
    "filled box": ("var(--other)", "2 3", "dotted"),
}

Shares = NDArray[np.float64]


class Category(NamedTuple):
    """A category's bar."""

    name: str
    iou: float  # mean of its instances
    instances: int


def iou_histograms(values: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> str:
    """Return a histogram for each size: the first masks as bars, all others as lines.

    Args:
        values: {size: {who made the masks: IoU of each instance}}; the first size is drawn large.
    """
    charts = ""
    for place, (size, made) in enumerate(values.items()):
        first = next(iter(made.values()))
        title = f"{size} ({first.size:,} instances)"
        charts += f"<div><h3>{escape(title)}</h3>{_histogram(title, made, large=place == 0)}</div>"
    names = list(next(iter(values.values())))
    lines = [f"{name} {LINES[name][2]}" for name in names[1:] if name in LINES]
    words = escape(", ".join([f"{names[0]} as bars", *lines]))
    return (
        f"<div class='charts'>{charts}</div><p class='dim'>Share of instances by IoU: {words}.</p>"
    )


def _histogram(title: str, values: Mapping[str, NDArray[np.float64]], *, large: bool) -> str:
    high, wide = (200, WIDE) if large else (130, WIDE / 2)
    shares = {
        name: np.histogram(iou, BINS, (0, 1))[0] / max(1, iou.size) for name, iou in values.items()
    }
    top = max(0.01, *(float(share.max()) for share in shares.values()))
    bars, *others = shares.items()
    marks = [_bars(bars[1] / top, bars[1], wide, high)]
    marks += [_line(name, share / top, wide, high) for name, share in others if name in LINES]
    for tick in range(0, 11, 2 if large else 5):
        x = LEFT + wide * tick / 10
        marks.append(
            f"<text x='{x:.0f}' y='{high + 18}' text-anchor='middle'>{tick / 10:.1f}</text>"
        )
    marks.append(f"<text x='{LEFT - 6}' y='12' text-anchor='end'>{100 * top:.0f} %</text>")
    return (
        f"<svg viewBox='0 -4 {wide + LEFT + RIGHT:.0f} {high + BOTTOM + 4}' role='img' "
        f"aria-label='Histogram of IoU, {escape(title)}'>{''.join(marks)}</svg>"
    )


def _bars(heights: Shares, shares: Shares, wide: float, high: float) -> str:
    step = wide / BINS
    marks = ""
    for place, tall in enumerate(heights * high):
        share = 100 * shares[place]
        tip = f"IoU {place / BINS:.2f}–{(place + 1) / BINS:.2f}: {share:.1f} %"
        marks += (
            f"<rect x='{LEFT + place * step + 1:.1f}' y='{high - tall:.1f}' width='{step - 2:.1f}' "
            f"height='{tall:.1f}' fill='var(--malcli)'><title>{tip}</title></rect>"
        )
    return marks


def _line(name: str, heights: Shares, wide: float, high: float) -> str:
    colour, dashes, _ = LINES[name]
    points = " ".join(
        f"{LEFT + (place + side) * wide / BINS:.1f},{high - high * tall:.1f}"
        for place, tall in enumerate(heights)
        for side in (0, 1)
    )
    return (
        f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='2' "
        f"stroke-dasharray='{dashes}'><title>{escape(name)}</title></polyline>"
    )


def reliability(quality: Mapping[str, Any]) -> str:
    """Return the reliability diagram of a score: the mean IoU of the masks of each tenth of it.

    Args:
        quality: What is inside `score` of `malcli eval --json`.
    """
    high = wide = 220
    marks = (
        f"<path d='M{LEFT} {high}L{LEFT + wide} 0' stroke='var(--other)' stroke-dasharray='6 3'/>"
    )
    for row in quality["bins"]:
        x, tall = LEFT + wide * row["low"], high * row["iou"]
        tip = f"score {row['low']:.1f}–{row['high']:.1f}: {row['masks']:,} masks"
        tip += f", IoU {row['iou']:.3f}"
        marks += (
            f"<rect x='{x + 1:.1f}' y='{high - tall:.1f}' width='{wide / 10 - 2:.1f}' "
            f"height='{tall:.1f}' fill='var(--malcli)' fill-opacity='{_shade(row, quality):.2f}'>"
            f"<title>{tip}</title></rect>"
        )
    for share in (0.0, 0.5, 1.0):
        x, y = LEFT + wide * share, high - high * share
        marks += f"<text x='{x:.0f}' y='{high + 18}' text-anchor='middle'>{share}</text>"
        marks += f"<text x='{LEFT - 6}' y='{y + 5:.0f}' text-anchor='end'>{share}</text>"
    return (
        f"<div class='square'><svg viewBox='0 -6 {wide + LEFT + RIGHT} {high + BOTTOM + 6}' "
        f"role='img' aria-label='Mean IoU by score'>{marks}</svg></div>"
    )


def _shade(row: Mapping[str, Any], quality: Mapping[str, Any]) -> float:
    """Return how strong a bar is drawn: few masks make it pale."""
    most = max(one["masks"] for one in quality["bins"])
    return float(0.3 + 0.7 * row["masks"] / most)


def category_bars(categories: Sequence[Category]) -> str:
    """Return a table with a bar for each category, best first; its heads sort it."""
    heads = ("<th{0}><button type='button' disabled>{1}</button></th>").format
    head = heads("", "category") + "<th></th>" + heads(" aria-sort='descending'", "mean IoU")
    head += heads("", "instances")
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td>"
        f"<td class='bar'><i style='width:{100 * one.iou:.1f}%'></i></td>"
        f"<td data-value='{one.iou:.6f}'>{one.iou:.3f}</td>"
        f"<td data-value='{one.instances}'>{one.instances:,}</td></tr>"
        for one in sorted(categories, key=lambda one: -one.iou)
    )
    return (
        f"<table class='bars'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        if rows
        else ""
    )
