"""Self-contained HTML pages for `eval`, its attention maps and `label`: tables, charts, pictures.

Pages open offline, in light and dark; every name that came from a file is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.errors import OutputError
from malcli.files import replacing
from malcli.report.plots import Example
from malcli.report.tables import IOU_ROWS, SIZES, at, methods, number, spread

GENERATOR = '<meta name="generator" content="malcli">'
BINS = 20
STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --dim: #63636a; --page: #ffffff;
  --card: #f3f3f6; --line: #d8d8de; --malcli: #c96a00; --human: #0077c2; --other: #8a8a94; }
@media (prefers-color-scheme: dark) { :root { --text: #ececf0; --dim: #a4a4ae; --page: #16161a;
  --card: #222228; --line: #3a3a42; --malcli: #ff9a33; --human: #4db2ff; --other: #85858f; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 72rem; margin: 0 auto; padding: 1.5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.lead { font-size: 1.15rem; } .dim, small { color: var(--dim); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; } tr.main td { font-weight: 600; } tr.main small { font-weight: 400; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr));
  gap: 1rem; }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: .4rem; }
figure img { display: block; width: 100%; height: 13rem; object-fit: contain; }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.wide img { height: auto; }
figcaption { font-size: .85rem; margin-top: .4rem; }
.bars { display: grid; grid-template-columns: minmax(6rem, auto) 1fr auto; gap: .15rem .8rem;
  align-items: center; font-size: .9rem; }
.bars i { display: block; height: .8rem; background: var(--malcli); border-radius: .15rem; }
.human { color: var(--human); } .malcli { color: var(--malcli); }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
"""


def check_page(path: Path, inputs: Sequence[Path | None], overwrite: bool = False) -> None:
    """Refuse a page that would replace an input or a file that is no page of malcli.

    Raises:
        OutputError: With the remedy.
    """
    if any(given is not None and given.resolve() == path.resolve() for given in inputs):
        raise OutputError(f"{path}: --report is also an input; give it another name")
    if path.is_dir():
        raise OutputError(f"{path}: --report is a folder; give a file, such as report.html")
    if path.exists() and not overwrite:
        with path.open("rb") as file:
            if GENERATOR.encode() not in file.read(1024):
                raise OutputError(
                    f"{path}: exists and is no report of malcli; give another name or --overwrite"
                )


def write_page(path: Path, page: str) -> None:
    """Write a page whole or not at all.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8", errors="replace")


def eval_page(
    result: Mapping[str, Any],
    histograms: Mapping[str, NDArray[np.float64]],
    categories: Sequence[tuple[str, float, int]],
    galleries: Mapping[str, Sequence[Example]],
    problems: Mapping[str, Sequence[str]],
) -> str:
    """Return the report of `malcli eval`.

    Args:
        result: The object of `malcli eval --json`.
        histograms: {name: IoU of each instance}; the first is drawn as bars, others as lines.
        categories: (name, mean IoU, instances).
        galleries: {title: pictures, human left and malcli right}.
        problems: {kind and count: examples}.
    """
    parts = [f"<h1>malcli eval</h1><p class='lead'>{escape(_sentence(result))}</p>"]
    sources = [f"{key}: {result[key]}" for key in ("gt", "pred", "checkpoint") if result.get(key)]
    parts.append(f"<p class='dim'>{escape(' · '.join(sources))}</p>")
    if result.get("miou"):
        parts += [_section("Against the baselines", _iou_table(result))]
    parts.append(_section("Average precision", _ap_table(result)))
    if histograms:
        parts.append(_section("IoU of the instances", _histogram(histograms)))
    if galleries:
        parts.append(
            "<p>Pictures: <b class='human'>human mask</b> left, <b class='malcli'>malcli's</b> "
            "right, the box in white.</p>"
        )
    parts += [_section(title, _gallery(items)) for title, items in galleries.items() if items]
    if categories:
        parts.append(_section("Mean IoU by category", _bars(categories)))
    if problems:
        parts.append(_section("Problems", _problem_list(problems)))
    return _page("malcli eval", parts)


def label_page(
    summary: Mapping[str, Any],
    galleries: Mapping[str, Sequence[Example]],
    problems: Mapping[str, Sequence[str]],
) -> str:
    """Return the report of `malcli label`.

    Args:
        summary: The object of `malcli label --json`.
        galleries: {title: pictures}: the surest, the least sure, random ones.
        problems: {kind and count: examples}.
    """
    counts = summary["counts"]
    total = sum(counts.values())
    lead = f"{counts.get('ok', 0):,} of {total:,} boxes have a mask"
    lead += f", at {summary['boxes_per_s']:.1f} boxes/s." if summary.get("boxes_per_s") else "."
    rows = [
        [status, f"{number_of:,}", f"{100 * number_of / max(1, total):.1f} %"]
        for status, number_of in sorted(counts.items(), key=lambda item: -item[1])
    ]
    parts = [
        f"<h1>malcli label</h1><p class='lead'>{escape(lead)}</p>",
        f"<p class='dim'>{escape(str(summary.get('out')))}</p>",
        _section("Boxes", _table(["status", "boxes", "share"], rows)),
    ]
    parts += [_section(title, _gallery(items)) for title, items in galleries.items() if items]
    if problems:
        parts.append(_section("Problems", _problem_list(problems)))
    return _page("malcli label", parts)


def attention_page(
    summary: Mapping[str, Any], pictures: Sequence[Example], problems: Mapping[str, Sequence[str]]
) -> str:
    """Return the page of `malcli eval --attention`.

    Args:
        summary: What is inside `attention` of `malcli eval --attention --json`.
        pictures: One for each box: see `plots.attention_picture`.
        problems: {kind and count: examples}.
    """
    layers = ", ".join(str(layer) for layer in summary["layers"])
    sources = [f"{key}: {summary[key]}" for key in ("gt", "encoder", "weights")]
    patch = "the patch at the box's centre, marked by a dot"
    rows = f"top, the class token; below, {patch}" if summary["class_token"] else patch
    explained = (
        f"In each picture, left to right: the crop, then layers {layers}. Whose attention: {rows}; "
        "mean over the heads. Bright: much attention, each map from 0 to its 99th percentile."
    )
    parts = [
        "<h1>malcli eval --attention</h1>",
        f"<p class='lead'>Where the encoder looks (boxes: {len(pictures)}).</p>",
        f"<p class='dim'>{escape(' · '.join(sources))}</p><p>{escape(explained)}</p>",
        _gallery(pictures, wide=True),
    ]
    if problems:
        parts.append(_section("Problems", _problem_list(problems)))
    return _page("malcli eval --attention", parts)


def _page(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>{GENERATOR}"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _sentence(result: Mapping[str, Any]) -> str:
    miou, ap = at(result, "miou", "all"), at(result, "ap", "AP")
    if miou is None:
        text = "No instance has a mask to compare." if ap is None else f"Mask AP is {ap:.3f}."
    else:
        box, ellipse = (at(result, "baselines", name, "miou", "all") for name in ("box", "ellipse"))
        counts = result["counts"]
        text = f"The masks reach a mean IoU of {miou:.3f} on {counts['instances']:,} instances"
        if box is not None and ellipse is not None:
            text += f"; filling the box gives {box:.3f}, an ellipse in it {ellipse:.3f}"
        text += f". Without a prediction (IoU 0): {counts['missing']:,}."
    kept = at(result, "retention", "AP", "value")
    return text if kept is None else f"{text} Retention is {kept:.1f} % of the oracle's AP."


def _iou_table(result: Mapping[str, Any]) -> str:
    heads = ["masks"] + [f"mIoU, {size}" for size in SIZES]
    heads += [title for title, _ in IOU_ROWS[1:]]
    heads += [f"IoU over {level}" for level in ("0.5", "0.75", "0.9")]
    keys = [("miou", size) for size in SIZES] + [(key, "all") for _, key in IOU_ROWS[1:]]
    keys += [("iou_over", level) for level in ("0.5", "0.75", "0.9")]
    rows = []
    for name, metrics, bounds in methods(result):
        cells = [(number(at(metrics, *key)), spread(at(bounds, *key))) for key in keys]
        rows.append([name] + [f"{value}\n{between}" for value, between in cells])
    counts = result["counts"]
    note = ", ".join(f"{counts[key]:,} {key}" for key in counts)
    return _table(heads, rows) + f"<p class='dim'>{escape(note)}. Small: 95 % intervals.</p>"


def _ap_table(result: Mapping[str, Any]) -> str:
    named = [("mask AP", result.get("ap"), "ap"), ("box AP", result.get("box_ap"), "box_ap")]
    shown = [(title, values, key) for title, values, key in named if values]
    if not shown:
        return ""
    rows = []
    for title, values, key in shown:
        bounds = at(result, "intervals", key)
        cells = [f"{number(values[name])}\n{spread(at(bounds, name))}" for name in values]
        rows.append([title, *cells])
    if result.get("retention"):
        cells = []
        for name in shown[0][1]:
            cell = at(result, "retention", name) or {"value": None, "low": None}
            bounds = None if cell["low"] is None else [cell["low"], cell["high"]]
            cells.append(f"{number(cell['value'], 1)}\n{spread(bounds, 1)}")
        rows.append(["retention, %", *cells])
    return _table(["", *shown[0][1]], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a cell's second line is shown small; the first row is the main one."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = ""
    for place, row in enumerate(rows):
        cells = ""
        for text in row:
            value, _, small = text.partition("\n")
            cells += f"<td>{escape(value)}{f'<small>{escape(small)}</small>' if small else ''}</td>"
        body += f"<tr class='main'>{cells}</tr>" if place == 0 else f"<tr>{cells}</tr>"
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _histogram(values: Mapping[str, NDArray[np.float64]]) -> str:
    """Return an inline SVG of the shares of instances in 20 bins of IoU."""
    wide, high, left, bottom = 640, 200, 40, 24
    shares = {
        name: np.histogram(iou, BINS, (0, 1))[0] / max(1, iou.size) for name, iou in values.items()
    }
    top = max(0.01, *(float(share.max()) for share in shares.values()))
    step = wide / BINS
    marks, names = [], list(shares)
    for place, share in enumerate(shares[names[0]]):
        tall = high * share / top
        tip = f"IoU {place / BINS:.2f}–{(place + 1) / BINS:.2f}: {100 * share:.1f} %"
        marks.append(
            f"<rect x='{left + place * step + 1:.1f}' y='{high - tall:.1f}' width='{step - 2:.1f}' "
            f"height='{tall:.1f}' fill='var(--malcli)'><title>{tip}</title></rect>"
        )
    for dash, name in zip(("6 3", "2 3"), names[1:], strict=False):
        points = [
            f"{left + (place + side) * step:.1f},{high - high * share / top:.1f}"
            for place, share in enumerate(shares[name])
            for side in (0, 1)
        ]
        marks.append(
            f"<polyline points='{' '.join(points)}' fill='none' stroke='var(--other)' "
            f"stroke-width='2' stroke-dasharray='{dash}'><title>{escape(name)}</title></polyline>"
        )
    for tick in range(0, 11, 2):
        x = left + wide * tick / 10
        marks.append(
            f"<text x='{x:.0f}' y='{high + 18}' text-anchor='middle'>{tick / 10:.1f}</text>"
        )
    marks.append(f"<text x='{left - 6}' y='12' text-anchor='end'>{100 * top:.0f} %</text>")
    lines = "".join(
        f", {escape(name)} {'dashed' if place == 0 else 'dotted'}"
        for place, name in enumerate(names[1:])
    )
    return (
        f"<svg viewBox='0 -4 {wide + left + 16} {high + bottom + 4}' role='img' "
        f"style='max-width:44rem;width:100%' aria-label='Histogram of IoU'>{''.join(marks)}</svg>"
        f"<p class='dim'>Share of instances by IoU: {escape(names[0])} as bars{lines}.</p>"
    )


def _bars(categories: Sequence[tuple[str, float, int]]) -> str:
    rows = "".join(
        f"<span>{escape(name)}</span><span><i style='width:{100 * mean:.1f}%'></i></span>"
        f"<span>{mean:.3f} <small>{count:,}</small></span>"
        for name, mean, count in sorted(categories, key=lambda item: -item[1])
    )
    return f"<div class='bars'>{rows}</div><p class='dim'>Small: number of instances.</p>"


def _gallery(items: Sequence[Example], wide: bool = False) -> str:
    figures = ""
    for item in items:
        data = base64.b64encode(item.picture).decode("ascii")
        caption = "<br>".join(escape(line) for line in item.caption)
        alt = escape(", ".join(item.caption))
        figures += (
            f"<figure><img loading='lazy' alt='{alt}' src='data:image/jpeg;base64,{data}'>"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    kind = "gallery wide" if wide else "gallery"
    return f"<div class='{kind}'>{figures}</div>" if items else ""


def _problem_list(problems: Mapping[str, Sequence[str]]) -> str:
    items = ""
    for kind, examples in problems.items():
        lines = "".join(f"<li>{escape(example)}</li>" for example in examples)
        items += f"<li>{escape(kind)}<ul class='dim'>{lines}</ul></li>"
    return f"<ul>{items}</ul>"
