"""Writes Label Studio JSON: tasks with a prediction each, as its import takes them.

A mask is a `polygonlabels` result a part, holes reached by bridges of no width; what has no mask is
a `rectanglelabels` result. The labelling set-up needs a RectangleLabels named `label` and a
PolygonLabels named `polygon` for an Image named `image`, with every category. The text of all
tasks is held in memory.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from malcli.data.boxtable.build import ROWS
from malcli.data.boxtable.columns import encode_json
from malcli.data.formats.labelstudio import DATA, NAME, url_of
from malcli.data.formats.labelstudio_regions import CROWD, OWN, PART
from malcli.data.formats.losses import losses_by_name
from malcli.data.formats.tool_ids import text_of_id
from malcli.data.formats.tool_objects import ID, SCORE, is_number
from malcli.data.formats.tool_shapes import Placed, xywh_of
from malcli.files import replacing
from malcli.records import BoxTable, Record, to_records
from malcli.version import __version__

_OF_MALCLI = "malcli_"
_OF_IMAGES = {"id", "file_name", "height", "width", DATA}
_SAID = {"id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "score", OWN}


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what tasks cannot say of the header and the images."""
    lost = losses_by_name(table, range(1, table.images.num_rows + 1))
    lost["other keys of images"] = sum(
        len(record.keys() - _OF_IMAGES)
        for batch in table.images.to_batches(ROWS)
        for record in to_records(batch)
    )
    return lost


def write_labelstudio(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    lost: Counter[str] | None = None,
) -> int:
    """Write a task for each image.

    Args:
        path: Replaced when all is written.
        table: For `header` and `images`.
        batches: Lists of annotations.
        lost: Counts what was left out, by what.

    Returns:
        The number of annotations written.

    Raises:
        OutputError: The folder cannot be written to.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    placed = Placed(table, lost)
    sizes = list(
        zip(*(table.images[side].to_pylist() for side in ("width", "height")), strict=True)
    )
    texts: dict[int, list[str]] = {}
    scores: dict[int, list[float]] = {}
    written = 0
    for batch in batches:
        for row, name, record in placed.of(batch):
            results = _results(placed.polygons(row, record), name, record, sizes[row])
            texts.setdefault(row, []).extend(map(encode_json, results))
            if is_number(score := record.get(SCORE)):
                scores.setdefault(row, []).append(score)  # type: ignore[arg-type]
            written += bool(results)
            lost["annotations without a usable box"] += not results
            for key in record.keys() - _SAID:
                known = key.startswith(_OF_MALCLI) and isinstance(record[key], str | int | float)
                lost[f"key '{key}'"] += not known
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        between = "["
        row = 0
        for images in table.images.to_batches(ROWS):
            for image in to_records(images):
                if placed.names[row]:
                    file.write(between + _task(image, texts.get(row), scores.get(row)))
                    between = ",\n"
                row += 1
        file.write("]\n" if between != "[" else "[]\n")
    lost += Counter()  # without zeros
    return written


def _task(image: Record, texts: list[str] | None, scores: list[float] | None) -> str:
    name = image["file_name"]
    given = image.get(DATA)
    data = given if isinstance(given, dict) else {"image": url_of(name)}
    start = encode_json({DATA: data | {NAME: name}})[:-1]
    if not texts:
        return start + ',"predictions":[]}'
    prediction: Record = {"model_version": f"malcli-{__version__}"}
    if scores:
        prediction["score"] = sum(scores) / len(scores)
    head = encode_json(prediction)[:-1]
    return f'{start},"predictions":[{head},"result":[{",".join(texts)}]}}]}}'


def _results(
    parts: Sequence[Sequence[float]], name: str, record: Record, size: tuple[Any, Any]
) -> list[Record]:
    """Return the results of an annotation; none if it has neither a box nor a region of its own.

    Args:
        parts: Of its mask.
        name: Of the category.
        record: The annotation.
        size: Width and height of the image, pixels; None where they are not known.
    """
    given = record.get(OWN)
    own: Record = given if isinstance(given, dict) else {}
    values: list[tuple[str, Record]] = []
    if parts:
        values = [
            ("polygonlabels", {"points": _percent(part, size), "closed": True}) for part in parts
        ]
    elif (box := xywh_of(record)) and all(size):
        (x, y), (w, h) = _percent(box, size)
        value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0}
        values = [("rectanglelabels", value)]
    elif isinstance(own.get("value"), dict):
        values = [(str(own.get("type", "rectanglelabels")), own["value"])]
    results: list[Record] = []
    for number, (kind, value) in enumerate(values, 1):
        part = f"{number}/{len(values)}" if len(values) > 1 else ""
        if value is not own.get("value"):
            value = value | {kind: own.get("labels", [name])}
        results.append(_result(record, own, kind, value, part) | _size(size))
    return results


def _size(size: tuple[Any, Any]) -> Record:
    return {"original_width": size[0], "original_height": size[1]} if all(size) else {}


def _result(record: Record, own: Record, kind: str, value: Record, part: str) -> Record:
    lines: Record = {ID: text_of_id(record.get("id"))}
    lines |= {key: record[key] for key in record if key.startswith(_OF_MALCLI)}
    lines |= {CROWD: 1} if record.get("iscrowd") == 1 else {}
    lines |= {PART: part} if part else {}
    meta: Any = own.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    texts = [f"{key} {lines[key]}" for key in lines]
    texts += meta.get("text", []) if isinstance(meta.get("text"), list) else []
    from_name = "polygon" if kind == "polygonlabels" else "label"
    kept = own if own.get("type") == kind or value is own.get("value") else {}
    left_out = ("value", "labels", "meta", *(["id"] if part else []))
    result: Record = {"id": f"malcli-{lines[ID]}" + (f"-{part}" if part else "")}
    result |= {"from_name": from_name, "to_name": own.get("to_name", "image"), "type": kind}
    result |= {key: kept[key] for key in kept if key not in left_out}
    result |= {"image_rotation": own.get("image_rotation", 0)}
    result |= {"value": value, "meta": meta | {"text": texts}}
    score = record.get(SCORE, record.get("score"))
    return result | ({"score": score} if is_number(score) else {})


def _percent(flat: Sequence[float], size: tuple[Any, Any]) -> list[list[float]]:
    width, height = size
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return [[x * 100 / width, y * 100 / height] for x, y in pairs]
