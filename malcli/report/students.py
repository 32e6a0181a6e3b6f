"""What `malcli retention` prints: the AP of each student, and the share that is retained.

Takes the JSON object that `--json` prints, so that both views cannot differ.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from malcli.report.tables import at, number, spread

STUDENTS = (
    ("human masks", "human"),
    ("malcli's masks", "malcli"),
    ("boxes alone", "boxes"),
)
AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def retention_tables(result: Mapping[str, Any]) -> RenderableType:
    """Return what `malcli retention` prints.

    Args:
        result: The object of `malcli retention --json`.
    """
    counts = result["counts"]
    lines = (
        f"{counts['used']} of {counts['instances']} instances in {counts['images']} images learnt "
        f"by each student; measured on {counts['val_images']} images",
        f"result files, as malcli eval --oracle and --pred read them: {result['out']}",
    )
    masks, boxes = _ap_table("Mask AP", "ap", result), _ap_table("Box AP", "box_ap", result)
    return Group(masks, boxes, _retained(result["retention"]), *lines)


def _ap_table(title: str, key: str, result: Mapping[str, Any]) -> Table:
    """Return a kind of AP, a row a student; boxes alone give no masks."""
    table = Table(title=f"{title} of the student trained on ...")
    table.add_column("trained on")
    for name in (*AP_NAMES, "interval of AP"):
        table.add_column(name, justify="right")
    for label, student in STUDENTS:
        values = at(result, student, key)
        if values and not (student == "boxes" and key == "ap"):
            bounds = spread(at(result, "intervals", student, key, "AP"))
            table.add_row(label, *(number(values[name]) for name in AP_NAMES), bounds)
    return table


def _retained(values: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(title="Retention, % of the AP on human masks (95 % interval over images)")
    for name in values:
        table.add_column(name, justify="right")
    table.add_row(*(number(cell["value"], 1) for cell in values.values()))
    bounds = [
        None if (low := cell["low"]) is None or (high := cell["high"]) is None else [low, high]
        for cell in values.values()
    ]
    table.add_row(*(spread(pair, 1) for pair in bounds))
    return table
