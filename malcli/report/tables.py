"""Tables for the terminal: what `eval` measured and what `label` did.

Takes the JSON objects that `--json` prints, so that both views cannot differ.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

IOU_ROWS = (
    ("mIoU", "miou"),
    ("category mIoU", "category_miou"),
    ("Dice", "dice"),
    ("boundary IoU", "boundary_iou"),
)
SIZES = ("all", "small", "medium", "large")


def number(value: float | None, digits: int = 3) -> str:
    """Return a value for people; undefined is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Return a difference for people, with its sign."""
    return "–" if value is None else f"{value:+.{digits}f}"


def spread(bounds: list[float] | None, digits: int = 3, *, signs: bool = False) -> str:
    """Return an interval for people, or an empty string; `signs` for one of differences."""
    if bounds is None:
        return ""
    low, high = bounds
    return (
        f"{low:+.{digits}f} to {high:+.{digits}f}"
        if signs
        else f"{low:.{digits}f}–{high:.{digits}f}"
    )


def at(tree: Any, *keys: str) -> Any:  # noqa: ANN401
    """Return a value inside nested dicts, None if a level is missing or null."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def methods(result: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (name, metrics, intervals) of the masks scored and of each baseline."""
    return [
        ("malcli", result, result.get("intervals")),
        (
            "ellipse",
            at(result, "baselines", "ellipse"),
            at(result, "intervals", "baselines", "ellipse"),
        ),
        ("filled box", at(result, "baselines", "box"), at(result, "intervals", "baselines", "box")),
    ]


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Return sentences that say how good the masks are: beside baselines, oracle and second run.

    Args:
        result: The object of `malcli eval --json`.
    """
    miou, ap = at(result, "miou", "all"), at(result, "ap", "AP")
    if miou is None:
        said = ["No instance has a mask to compare." if ap is None else f"Mask AP is {ap:.3f}."]
    else:
        counts = result["counts"]
        said = [f"The masks reach a mean IoU of {miou:.3f} on {counts['instances']:,} instances."]
        box, ellipse = (at(result, "baselines", name, "miou", "all") for name in ("box", "ellipse"))
        if box is not None and ellipse is not None:
            said.append(_against_baselines(miou, box, ellipse))
        if counts["missing"]:
            said.append(f"{counts['missing']:,} have no prediction and count 0.")
    kept = at(result, "retention", "AP", "value")
    if kept is not None:
        said.append(f"Retention is {kept:.1f} % of the oracle's AP.")
    if result.get("compare"):
        said.append(_against_first(result["compare"]))
    return said


def _against_baselines(miou: float, box: float, ellipse: float) -> str:
    beside = f"filling each box gives {box:.3f}, an ellipse in it {ellipse:.3f}"
    best = max(box, ellipse)
    if miou <= best:
        name = "a filled box" if box >= ellipse else "an ellipse"
        return f"That is no better than {name}: {beside}. Look at the worst pictures first."
    share = 100 * (miou - best) / max(1 - best, 1e-9)
    return (
        f"That is better than both baselines: {beside}; of what the better one gets wrong, "
        f"{share:.0f} % is put right."
    )


def _against_first(second: Mapping[str, Any]) -> str:
    counted = "better" in second  # masks; of detections there is AP alone
    change = second["difference"]["all" if counted else "AP"]
    reached = at(second, "miou", "all") if counted else at(second, "ap", "AP")
    if change["value"] is None:
        return "There is nothing to compare the second masks on."
    kind = "masks" if counted else "detections"
    said = f"The second {kind} reach {reached:.3f} ({signed(change['value'])}"
    if change["low"] is None:
        said += ")"
    else:
        bounds = [change["low"], change["high"]]
        clear = bounds[0] > 0 or bounds[1] < 0
        said += f", 95 % interval {spread(bounds, signs=True)}"
        said += ")" if clear else ": no clear difference)"
    if not counted:
        return f"{said}."
    return f"{said}, better on {second['better']:,} instances and worse on {second['worse']:,}."


def eval_tables(result: Mapping[str, Any]) -> RenderableType:
    """Return what `malcli eval` prints.

    Args:
        result: The object of `malcli eval --json`.
    """
    parts: list[RenderableType] = []
    if result.get("miou"):
        parts += [_iou_table(result), _counts_line(result["counts"])]
    parts += [_ap_table(title, result[key]) for title, key in _ap_parts(result)]
    if result.get("retention"):
        parts.append(_retention_table(result["retention"]))
    second = result.get("compare")
    if second:
        counted = "better" in second
        parts += [_compare_table(result), _changes_line(second)] if counted else [_gaps(result)]
    if result.get("score"):
        parts.append(score_line(result["score"]))
    if result.get("pred") is None and result.get("checkpoint"):
        parts.append(labeler_line(result))
    parts.append(" ".join(verdict(result)))
    return Group(*parts)


def score_line(quality: Mapping[str, Any]) -> str:
    """Return how well the masks' scores tell their IoU.

    Args:
        quality: What is inside `score` of `malcli eval --json`.
    """
    gains = [f"{100 * float(s):.0f} % {signed(gain)}" for s, gain in quality["gain"].items()]
    return (
        f"The score: rank correlation with the IoU {number(quality['spearman'])}, AUROC of IoU "
        f"below 0.6 {number(quality['auroc'])}, mean distance from the IoU "
        f"{number(quality['gap'])}; mean IoU without the least sure {', '.join(gains)}."
    )


def _ap_parts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = (("Mask AP", "ap"), ("Box AP", "box_ap"))
    return [(title, key) for title, key in named if result.get(key)]


def _iou_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="Masks against human masks (95 % interval over images)")
    table.add_column("metric")
    table.add_column("masks")
    for name in SIZES:
        table.add_column(name, justify="right")
    table.add_column("interval of all", justify="right")
    for title, key in IOU_ROWS:
        for name, metrics, bounds in methods(result):
            values = [number(at(metrics, key, size)) for size in SIZES]
            table.add_row(title, name, *values, spread(at(bounds, key, "all")))
            title = ""
        table.add_section()
    for level in ("0.5", "0.75", "0.9"):
        title = f"IoU over {level}"
        for name, metrics, bounds in methods(result):
            value = number(at(metrics, "iou_over", level))
            table.add_row(title, name, value, "", "", "", spread(at(bounds, "iou_over", level)))
            title = ""
        table.add_section()
    return table


def _counts_line(counts: Mapping[str, int]) -> str:
    return (
        f"{counts['instances']} instances: {counts['paired']} paired, {counts['missing']} missing "
        f"(IoU 0); {counts['unmatched']} predictions unmatched, {counts['crowd']} crowd left out"
    )


def _ap_table(title: str, values: Mapping[str, float | None]) -> Table:
    table = Table(title=title)
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*(number(value) for value in values.values()))
    return table


def _retention_table(values: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(title="Retention, % of the AP on human masks (95 % interval over images)")
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*(number(cell["value"], 1) for cell in values.values()))
    lows = [
        spread(None if cell["low"] is None else [cell["low"], cell["high"] or 0.0], 1)
        for cell in values.values()
    ]
    table.add_row(*lows)
    return table


def _compare_table(result: Mapping[str, Any]) -> Table:
    second = result["compare"]
    table = Table(title="Second masks against the first (95 % interval, paired by image)")
    table.add_column("metric")
    for name in ("first", "second", "difference", "interval"):
        table.add_column(name, justify="right")
    for size in SIZES:
        change = second["difference"][size]
        bounds = None if change["low"] is None else [change["low"], change["high"]]
        table.add_row(
            f"mIoU, {size}",
            number(at(result, "miou", size)),
            number(at(second, "miou", size)),
            signed(change["value"]),
            spread(bounds, signs=True),
        )
    table.add_section()
    for name in ("AP", "AP50", "AP75"):
        first, other = at(result, "ap", name), at(second, "ap", name)
        gap = None if first is None or other is None else other - first
        table.add_row(f"mask {name}", number(first), number(other), signed(gap), "")
    return table


def ap_gaps(result: Mapping[str, Any]) -> list[list[str]]:
    """Return name, first, second, difference and its interval of each AP of two results lists."""
    second = result["compare"]
    rows = []
    for name, gap in second["difference"].items():
        bounds = None if gap["low"] is None else [gap["low"], gap["high"]]
        first, other = at(result, "ap", name), at(second, "ap", name)
        cells = number(first), number(other), signed(gap["value"]), spread(bounds, signs=True)
        rows.append([f"mask {name}", *cells])
    return rows


def _gaps(result: Mapping[str, Any]) -> Table:
    table = Table(title="Second detections against the first (95 % interval, paired by image)")
    table.add_column("metric")
    for name in ("first", "second", "difference", "interval"):
        table.add_column(name, justify="right")
    for row in ap_gaps(result):
        table.add_row(*row)
    return table


def _changes_line(second: Mapping[str, Any]) -> str:
    return (
        f"second masks: better on {second['better']} instances, worse on {second['worse']}, equal "
        f"(IoU within 0.01) on {second['equal']}"
    )


def label_table(summary: Mapping[str, Any]) -> RenderableType:
    """Return what `malcli label` prints at the end; a dry run has boxes only.

    Args:
        summary: The object of `malcli label --json`.
    """
    counts = Table(title="Boxes")
    counts.add_column("status")
    counts.add_column("boxes", justify="right")
    counts.add_column("share", justify="right")
    total = sum(summary["counts"].values())
    for status, boxes in sorted(summary["counts"].items(), key=lambda item: -item[1]):
        counts.add_row(status, f"{boxes:,}", f"{100 * boxes / max(1, total):.1f} %")
    counts.add_section()
    counts.add_row("all", f"{total:,}", "")
    if summary.get("out") is None:
        return Group(counts, *estimate_lines(summary.get("estimate")))
    rate, memory = summary.get("boxes_per_s"), summary.get("peak_memory_mb")
    labeler = [labeler_line(summary)] if summary.get("checkpoint") else []
    if not rate:  # finished before, or merged alone
        return Group(counts, *labeler, str(summary["out"]))
    line = f"{rate:.1f} boxes/s" + (f", at most {memory:.0f} MB" if memory else "")
    return Group(counts, seconds_table(summary["seconds"]), *labeler, f"{line}: {summary['out']}")


def labeler_line(summary: Mapping[str, Any]) -> str:
    """Return which labeler made the masks, and how good it was where it was measured."""
    quality = summary.get("quality") or {}
    miou = (quality.get("miou") or {}).get("all")
    said = "not measured" if miou is None else f"mIoU {miou:.3f} on {quality.get('data')}"
    return f"labeler: {summary['checkpoint']} (quality: {said})"


def estimate_lines(estimate: Mapping[str, Any] | None) -> list[str]:
    """Return what `malcli label --dry-run` says about time and disk."""
    if estimate is None:
        return []
    names = ("json_mb", "parquet_mb", "free_mb")
    as_json, as_parquet, free = (megabytes(estimate[name]) for name in names)
    lines = [
        f"output: about {as_json} as JSON, {as_parquet} as Parquet, and as much again while it "
        f"runs; {free} are free"
    ]
    if 2 * estimate["json_mb"] > estimate["free_mb"]:
        lines.append("That may not fit: put --out on a disk with more space.")
    if estimate["seconds"] is None:
        said = "unknown: no job with this checkpoint and these settings ran on this machine yet; "
        return [*lines, f"time: {said}one with --limit 50 tells"]
    said = f"at {estimate['boxes_per_s']:.1f} boxes/s a process, as the last such job here"
    return [*lines, f"time: about {duration(estimate['seconds'])} {said}"]


def megabytes(value: float) -> str:
    """Return a size for people."""
    return f"{value:.1f} MB" if value < 1000 else f"{value / 1000:,.1f} GB"


def duration(seconds: float) -> str:
    """Return a time for people, with two units at most."""
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            smaller = {"d": (3600, "h"), "h": (60, "min"), "min": (1, "s")}[name]
            whole, rest = divmod(round(seconds), length)
            return f"{whole} {name} {rest // smaller[0]} {smaller[1]}"
    return f"{max(seconds, 1):.0f} s"


def fit_table(summary: Mapping[str, Any]) -> RenderableType:
    """Return what `malcli fit` prints at the end.

    Args:
        summary: The object of `malcli fit --json`.
    """
    last = summary["last"]
    lines = [f"{summary['steps']} steps, {summary['crops_per_s']:.1f} crops/s: {summary['run']}"]
    if last:
        lines.append(
            f"loss {last['loss']:.3f} (MIL {last['loss_mil']:.3f}, CRF {last['loss_crf']:.3f}), "
            f"at most {last['memory_mb']} MB"
        )
        if last["unreadable"]:
            lines.append(f"{last['unreadable']} crops of images that could not be read")
    parts: list[RenderableType] = [seconds_table(summary["seconds"]), *lines]
    if summary["val"]:
        parts.append(eval_tables(summary["val"]))
    return Group(*parts)


def seconds_table(seconds: Mapping[str, float]) -> Table:
    """Return seconds by kind of work, with shares."""
    table = Table(title="Where the time went")
    for column in ("step", "seconds", "share"):
        table.add_column(column, justify="left" if column == "step" else "right")
    whole = sum(seconds.values())
    for step, spent in seconds.items():
        table.add_row(step, f"{spent:.1f}", f"{100 * spent / whole if whole else 0:.0f} %")
    return table
