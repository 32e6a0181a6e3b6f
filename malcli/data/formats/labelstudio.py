"""Label Studio JSON, a list of tasks with regions in percent of their images; and its JSON-MIN.

A rectangle that is not turned is a box, a polygon a mask drawn by hand. Anything else (rotated
rectangles, brushes, ellipses, key points) keeps its place and its result, and gets no box. A task's
boxes are those of its annotations that were not cancelled; without one, of its last prediction.
The image is named by the last part of its URL, without the prefix of uploads where only that is in
the image folder. `data` and the task's other keys stay in the image, `id`, `from_name` and the like
under a box's `labelstudio`; who annotated, and when, is not kept.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from malcli.data.boxtable.build import ROWS
from malcli.data.boxtable.json_stream import JsonText, open_regular
from malcli.data.formats.labelstudio_regions import (
    OWN,
    PART,
    SIZE,
    around,
    is_region,
    names_of,
    record_of,
)
from malcli.data.formats.registry import Sample
from malcli.data.formats.tool_objects import (
    CATEGORY,
    SCORE,
    Entry,
    Photographs,
    is_number,
    table_of,
)
from malcli.data.formats.yolo_read import SUFFIXES
from malcli.data.images.sizes import read_sizes
from malcli.errors import DataFormatError
from malcli.messages import short
from malcli.records import BoxTable, Problems, Record

DATA, NAME = "data", "malcli_file_name"  # of an image: its task's data; in data: the name it had
LOCAL = "/data/local-files/?d="  # begins the URL of a file on Label Studio's machine
_LISTS = ("annotations", "completions", "predictions", "drafts")
_TASK = re.compile(rb'"data"\s*:\s*\{')
_REGIONS = re.compile(rb'"(?:annotations|completions|predictions)"\s*:\s*\[')
_MIN = re.compile(rb'"(?:rectangle|polygon|brush|ellipse|keypoint)labels"\s*:\s*\[')
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")


def is_labelstudio(sample: Sample) -> bool:
    """Return whether a file is a list of tasks, or of JSON-MIN's images with regions."""
    text = sample.edges
    is_list = sample.is_json and sample.text[:1] == b"["
    return is_list and bool((_TASK.search(text) and _REGIONS.search(text)) or _MIN.search(text))


def read_labelstudio(path: Path, images: Path | None = None) -> BoxTable:
    """Read a file; the table's path is the image folder, if it is not the file's.

    Args:
        path: The file.
        images: The image folder; None: that of the file, or `images` beside or in it.

    Raises:
        DataFormatError: It is not JSON, or no list of tasks.
        RunError: The disk of temporary files is full.
    """
    base = path.absolute().parent
    inside = base / "images"
    photographs = Photographs(base, images or (inside if inside.is_dir() else None))
    reading = _Reading(path, photographs, Problems())
    place = photographs.root if photographs.root != base else path
    root = photographs.root
    return table_of(place, "labelstudio", root, reading.entries(), {}, reading.problems)


class _Reading:
    """Reads tasks one after another.

    Args:
        path: For messages.
        photographs: Finds images.
        problems: Counts what is no box.
    """

    def __init__(self, path: Path, photographs: Photographs, problems: Problems) -> None:
        self.path = path
        self.problems = problems
        self._photographs = photographs

    def entries(self) -> Iterator[Entry]:
        """Yield images and their objects."""
        with open_regular(self.path) as file:
            text = JsonText(self.path, file)
            if text.peek() != "[":
                raise DataFormatError(self.path, "is no list; Label Studio's JSON is one of tasks")
            row = 0
            for batch in text.batches(ROWS):
                for task in batch:
                    yield self._entry(task, f"[{row}]")
                    row += 1
            text.finish()

    def _entry(self, task: object, place: str) -> Entry:
        if not isinstance(task, dict):
            raise DataFormatError(self.path, "is no task; correct it", place)
        if isinstance(task.get(DATA), dict):
            data, groups = dict(task[DATA]), self._groups(task, place)
            rest = {key: task[key] for key in task if key not in (DATA, *_LISTS)}
        else:
            data, groups, rest = _of_min(task)
        name = data.pop(NAME, None)
        if not isinstance(name, str):
            name = self._name(_image_of(data))
        image: Record = {"file_name": name}
        size = self._size(name, groups)
        if size:
            image |= {"height": size[1], "width": size[0]}
        if data != {"image": url_of(name)}:
            image[DATA] = data
        if rest:
            image[OWN] = rest
        objects = [each for group in groups for each in self._objects(group, size, image)]
        return image, objects

    def _groups(self, task: Record, place: str) -> list[list[Record]]:
        """Return the results of each annotation, or of a prediction."""
        key = next((key for key in _LISTS[:2] if key in task), _LISTS[0])
        given = self._dicts(task.get(key), place, key)
        used = [each for each in given if not each.get("was_cancelled")]
        if len(used) < len(given):
            said = f"{place}.{key}: {len(given) - len(used)} cancelled, not read"
            self.problems.add("cancelled", said, len(given) - len(used))
        if len(used) > 1:
            self.problems.add("several-annotations", f"{place}.{key} has {len(used)}; all are read")
        key = key if used else "predictions"
        groups: list[list[Record]] = []
        for each in used or self._dicts(task.get(key), place, key)[-1:]:
            results = self._dicts(each.get("result"), place, key)
            by_malcli = str(each.get("model_version")).startswith("malcli")
            score = SCORE if by_malcli else "score"
            groups.append([_with_score(result, score) for result in results])
        return groups

    def _dicts(self, value: object, place: str, key: str) -> list[Record]:
        found = value or []
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise DataFormatError(self.path, "is no list of objects; correct it", place, key)
        return found

    def _name(self, url: str) -> str:
        """Return the photograph's name in the folder, or the last part of a URL."""
        said = _path_of(url)
        last = said.replace("\\", "/").rpartition("/")[2]
        for text in (said, _UPLOAD.sub("", last, count=1)):
            name = self._photographs.find(text) if text else ""
            if name and ".." not in name and (self._photographs.root / name).is_file():
                return name
        return last

    def _size(self, name: str, groups: list[list[Record]]) -> tuple[int, int] | None:
        """Return width and height that results say, or the photograph's header."""
        results = [each for group in groups for each in group]
        for result in results:
            size = [result.get(key) for key in SIZE]
            if all(is_number(side) and side > 0 for side in size):  # type: ignore[operator]
                return int(size[0]), int(size[1])  # type: ignore[arg-type]
        if results and name:
            found = read_sizes(self._photographs.root, [name])[0]
            if found.width and found.height:
                return found.width, found.height
        return None

    def _objects(
        self, results: list[Record], size: tuple[int, int] | None, image: Record
    ) -> list[Record]:
        """Return the objects of one annotation; adds results of no region to the image's own."""
        objects: list[Record] = []
        regions: dict[Any, Record] = {}
        parts: dict[Any, Record] = {}
        for result in results:
            value = result.get("value")
            number = short(result.get("id"))
            if not isinstance(value, dict) or not is_region(value):
                own = regions.get(number, image).setdefault(OWN, {})
                own.setdefault("results", []).append(result)
                continue
            if "id" in result and number in regions:  # of a tool with separate labels
                if CATEGORY not in regions[number] and (name := names_of(value)):
                    regions[number][CATEGORY] = name[0]
                continue
            record = record_of(result, value, size)
            regions[number] = record
            if "bbox" not in record:
                self._count(result, value, image["file_name"])
            if part := record.pop(PART, None):
                first = parts.setdefault((record.get(CATEGORY), record.get("id")), record)
                if first is not record and part and "segmentation" in record:
                    first["segmentation"] += record["segmentation"]
                    first["bbox"] = around(first["segmentation"])
                    continue
            objects.append(record)
        return objects

    def _count(self, result: Record, value: Record, name: str) -> None:
        turned = value.get("rotation") or result.get("image_rotation")
        kind = str(result.get("type", "region"))[:40]
        said = f"is rotated by {short(turned)}" if turned else "is no box"
        self.problems.add(
            "rotated-bbox" if turned else "no-box", f"a {kind} of {short(name)} {said}"
        )


def _of_min(task: Record) -> tuple[Record, list[list[Record]], Record]:
    """Return data, results and other keys of an image in JSON-MIN."""
    lists = {key: task[key] for key in task if isinstance(task[key], list)}
    found = {key: lists[key] for key in lists if any(map(is_region, lists[key]))}
    results: list[Record] = []
    for key, values in found.items():
        for value in filter(is_region, values):
            size = {side: value[side] for side in SIZE if side in value}
            kept = {name: value[name] for name in value if name not in SIZE}
            kind = next((name for name in kept if name.endswith("labels")), "rectangle")
            results.append({"from_name": key, "type": kind, "value": kept} | size)
    url = _image_of(task)
    image = [key for key in task if url and task[key] == url][:1]
    rest = {key: task[key] for key in task if key not in (*found, *image)}
    return dict.fromkeys(image, url), [results], rest


def _with_score(result: Record, key: str) -> Record:
    if not is_number(result.get("score")):
        return result
    return {name: result[name] for name in result if name != "score"} | {key: result["score"]}


def _image_of(data: Record) -> str:
    """Return the URL of a task's image: `image`, or the first value that ends like one."""
    texts = [value for value in data.values() if isinstance(value, str)]
    if isinstance(data.get("image"), str):
        return str(data["image"])
    likely = (each for each in texts if Path(_path_of(each)).suffix.lower() in SUFFIXES)
    return next(likely, "")


def _path_of(url: str) -> str:
    """Return the path that a URL says; empty of a picture in the URL itself."""
    if url.startswith("data:"):
        return ""
    if "://" not in url and not url.startswith("/"):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    inside = parse_qs(parts.query).get("d")
    return inside[0] if inside else unquote(parts.path)


def url_of(name: str) -> str:
    """Return the URL of a file on Label Studio's machine, by its name in the folder it serves."""
    return LOCAL + quote(name)
