"""What `malcli eval --clustering` and `--attention` print of an encoder."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from malcli.report.tables import SIZES, at, number, spread


def clustering_table(result: Mapping[str, Any]) -> RenderableType:
    """Return what `malcli eval --clustering` prints.

    Args:
        result: The object of `malcli eval --clustering --json`.
    """
    table = Table(title=f"Clustering score of {result['encoder']} (smaller: tighter)")
    table.add_column("features")
    for name in SIZES:
        table.add_column(name, justify="right")
    rows = (("by the human masks", "clustering"), ("shuffled inside each crop", "chance"))
    for title, key in rows:
        table.add_row(title, *(number(result[key][size]) for size in SIZES))
    bounds = at(result, "intervals", "clustering")
    if bounds:
        table.add_section()
        table.add_row("95 % interval over images", *(spread(bounds[size]) for size in SIZES))
    counts = result["counts"]
    lines = (
        f"weights {result['weights']}, crops of {result['crop_size']} pixels, stride "
        f"{result['stride']}, margin {result['margin']}, {result['geometry']} geometry",
        f"{counts['used']} of {counts['instances']} instances; left out: "
        f"{counts['without_both_sides']} without tokens on both sides, {counts['skipped']} whose "
        f"box or image cannot be used",
        "Compare encoders measured alike only; the paper (Tab. 6) does not state its crops.",
    )
    return Group(table, *lines)


def attention_lines(result: Mapping[str, Any]) -> RenderableType:
    """Return what `malcli eval --attention` prints.

    Args:
        result: The object of `malcli eval --attention --json`.
    """
    drawn = result["attention"]
    layers = ", ".join(str(layer) for layer in drawn["layers"])
    return f"boxes: {len(drawn['ids'])}, {drawn['encoder']}, layers {layers}: {drawn['report']}"
