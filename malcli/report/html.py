"""Self-contained HTML pages for `eval`, its attention maps and `label`: tables, charts, pictures.

Pages open offline, in light and dark; every name that came from a file is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.errors import OutputError
from malcli.files import refuse_foreign_file, refuse_special, replacing
from malcli.report.blocks import GENERATOR, gallery, jumps, page_of, problem_list, section, table
from malcli.report.charts import Category, category_bars, iou_histograms, reliability
from malcli.report.plots import Example
from malcli.report.tables import (
    IOU_ROWS,
    SIZES,
    ap_gaps,
    at,
    methods,
    number,
    score_line,
    signed,
    spread,
    verdict,
)

HASH = 64  # letters of a file's SHA-256
SHORT_HASH = 12  # letters of a checkpoint's
SECOND = " and <b class='second'>the second one</b>"


def check_page(path: Path, inputs: Sequence[Path | None], overwrite: bool = False) -> None:
    """Refuse a page that would replace an input or a file that is no page of malcli.

    Raises:
        OutputError: With the remedy.
    """
    if any(given is not None and given.resolve() == path.resolve() for given in inputs):
        raise OutputError(f"{path}: --report is also an input; give it another name")
    if path.is_dir():
        raise OutputError(f"{path}: --report is a folder; give a file, such as report.html")
    refuse_special(path)
    if not overwrite:
        refuse_foreign_file(path, GENERATOR, "report")


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
    histograms: Mapping[str, Mapping[str, NDArray[np.float64]]],
    categories: Sequence[Category],
    galleries: Mapping[str, Sequence[Example]],
    problems: Mapping[str, Sequence[str]],
) -> str:
    """Return the report of `malcli eval`.

    Args:
        result: The object of `malcli eval --json`.
        histograms: {size: {who made the masks: IoU of each instance}}; see `iou_histograms`.
        categories: Mean IoU of each.
        galleries: {title: pictures, human left, malcli right, then those of `--compare`}.
        problems: {kind and count: examples}.
    """
    second = result.get("compare")
    lead = " ".join(verdict(result))
    parts = [f"<h1>malcli eval</h1><p class='lead'>{escape(lead)}</p>"]
    sources = [f"{key}: {result[key]}" for key in ("gt", "pred") if result.get(key)]
    if result.get("checkpoint"):
        name = str(result["checkpoint"])
        sources.append(f"checkpoint: {name[:SHORT_HASH] if len(name) == HASH else name}")
    sources += [f"second: {second['pred']}"] if second else []
    parts.append(f"<p class='dim'>{escape(' · '.join(sources))}</p>")
    if result.get("miou"):
        parts += [section("Against the baselines", _iou_table(result))]
    if second:
        if "better" in second:
            parts.append(section("Second masks against the first", _compare_table(result)))
        else:
            heads = ["", "first", "second", "difference", "95 % interval, paired by image"]
            parts.append(
                section("Second detections against the first", table(heads, ap_gaps(result)))
            )
    parts.append(section("Average precision", _ap_table(result)))
    if histograms:
        parts.append(section("IoU of the instances", iou_histograms(histograms)))
    if result.get("score"):
        parts.append(section("How well the score tells", _score_part(result["score"])))
    if galleries:
        parts.append(
            "<p>Pictures, left to right: <b class='human'>human mask</b>, <b class='malcli'>"
            f"malcli's</b>{SECOND if second else ''}; the box in white. "
            "Click or Enter enlarges.</p>"
        )
    parts += [
        section(title, gallery(title, items, "three" if second else ""))
        for title, items in galleries.items()
    ]
    parts.append(section("Mean IoU by category", category_bars(categories)))
    parts.append(section("Problems", problem_list(problems)))
    parts.insert(2, jumps(parts))
    return page_of("malcli eval", parts)


def _score_part(quality: Mapping[str, Any]) -> str:
    note = "Mean IoU by score; on the dashed line both are equal; pale where masks are few."
    return (
        f"<p>{escape(score_line(quality))}</p>{reliability(quality)}"
        f"<p class='dim'>{escape(note)}</p>"
    )


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
        section("Boxes", table(["status", "boxes", "share"], rows)),
    ]
    parts += [section(title, gallery(title, items)) for title, items in galleries.items()]
    parts.append(section("Problems", problem_list(problems)))
    parts.insert(2, jumps(parts))
    return page_of("malcli label", parts)


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
        gallery("maps", pictures, "wide"),
        section("Problems", problem_list(problems)),
    ]
    return page_of("malcli eval --attention", parts)


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
    return table(heads, rows) + f"<p class='dim'>{escape(note)}. Small: 95 % intervals.</p>"


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
    return table(["", *shown[0][1]], rows)


def _compare_table(result: Mapping[str, Any]) -> str:
    second = result["compare"]
    rows = []
    for size in SIZES:
        change = second["difference"][size]
        between = None if change["low"] is None else [change["low"], change["high"]]
        rows.append(
            [
                f"mIoU, {size}",
                number(at(result, "miou", size)),
                number(at(second, "miou", size)),
                f"{signed(change['value'])}\n{spread(between, signs=True)}",
            ]
        )
    for title, key, name in (("boundary IoU", "boundary_iou", "all"), ("mask AP", "ap", "AP")):
        first, other = at(result, key, name), at(second, key, name)
        gap = None if first is None or other is None else other - first
        rows.append([title, number(first), number(other), signed(gap)])
    counts = ", ".join(f"{second[key]:,} {key}" for key in ("better", "worse", "equal"))
    note = f"Instances: {counts} (IoU within 0.01). Small: 95 % intervals, paired by image."
    return table(["", "first", "second", "difference"], rows) + f"<p class='dim'>{note}</p>"
