"""Writes Pascal VOC: Annotations/*.xml and ImageSets/Main/<split>.txt, corners as `voc` reads them.

Masks are no part of its XML: they are left out, and counted, as every other key that it has no
element for. A file is named as its image, so that no two images may differ in their ending only.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from malcli.data.boxtable.build import ROWS
from malcli.data.boxtable.checks import refuse_nothing, short
from malcli.data.boxtable.image_rows import ImageRows
from malcli.data.formats.losses import losses_by_name
from malcli.data.formats.voc import ANNOTATIONS, CORNERS, DIGITS, KEPT, LISTS, SPLITS
from malcli.data.formats.xml_text import tag_text
from malcli.data.formats.yolo_write import split_of
from malcli.data.images.find import image_path
from malcli.errors import BadImage, OutputError
from malcli.files import refuse_foreign_folder, replacing_folder
from malcli.geometry.rle import has_mask
from malcli.records import BoxTable, Record, category_names, to_records, whole_of

MARK = "<!-- Made by malcli. -->"
SAID_OF_IMAGES = ("folder", "path", "source", "segmented")


def losses_of_table(table: BoxTable) -> Counter[str]:
    """Count what files of one image each cannot say."""
    files = [f"{_stem(name)}.xml" for name in table.images["file_name"].to_pylist()]
    rows = {file: row for row, file in enumerate(sorted(files), 1)}
    return losses_by_name(table, [rows[file] for file in files])


def refuse_other_voc(root: Path) -> None:
    """Refuse to replace a folder that is no data set made here."""

    def is_ours(path: Path) -> bool:
        if path.parts[0] == ANNOTATIONS and path.suffix == ".xml":
            with (root / path).open("rb") as file:
                return MARK.encode() in file.read(80)
        return path.parent == Path(LISTS) and path.suffix == ".txt"

    refuse_foreign_folder(root, is_ours)


def write_voc(
    path: Path,
    table: BoxTable,
    batches: Iterable[list[Record]],
    *,
    lost: Counter[str] | None = None,
) -> int:
    """Write an XML file for each image, and the lists of their splits.

    Args:
        path: The folder; replaced when all is written.
        table: For `header` and `images`.
        batches: Lists of annotations.
        lost: Counts what was left out, by what.

    Returns:
        The number of objects written.

    Raises:
        DataFormatError: There are annotations, but none that the XML can say.
        OutputError: The folder cannot be written, or two images would share a file.
        RunError: The disk is full.
    """
    lost = Counter() if lost is None else lost
    writing = _Writing(table, lost)
    with replacing_folder(path) as made:
        for stem, text in writing.heads():
            _append(made / ANNOTATIONS / f"{stem}.xml", text)
        for batch in batches:
            for stem, text in writing.objects(batch).items():
                _append(made / ANNOTATIONS / f"{stem}.xml", text)
        for stem in filter(None, writing.stems):
            _append(made / ANNOTATIONS / f"{stem}.xml", "</annotation>\n")
            _append(made / LISTS / f"{writing.split_of[stem]}.txt", f"{stem}\n")
        refuse_nothing(table.path, writing.count, lost)
    return writing.count


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)


def _stem(name: object) -> str | None:
    """Return a file's name without its ending; None if it leaves the folder or is none."""
    try:
        return image_path(Path(), name if isinstance(name, str) else "").with_suffix("").as_posix()
    except (BadImage, ValueError):
        return None


class _Writing:
    """Makes the texts of files.

    Args:
        table: For `header` and `images`.
        lost: Counts what they cannot say.

    Attributes:
        stems: File of each image, without ending; None if it has none.
        split_of: The split of each file.
        count: Objects made.

    Raises:
        OutputError: Two images would share a file.
    """

    def __init__(self, table: BoxTable, lost: Counter[str]) -> None:
        self._lost = lost
        self._rows = ImageRows(table.images)
        self._names = category_names(table.header)
        self._images = table.images
        file_names = table.images["file_name"].to_pylist()
        self.stems = [_stem(name) for name in file_names]
        self.split_of: dict[str, str] = {}
        self._default = split_of(table.path)
        self.count = 0
        first: dict[str, str] = {}
        for stem, name in zip(self.stems, file_names, strict=True):
            if stem and (other := first.setdefault(stem.lower(), name)) is not name:
                raise OutputError(
                    f"{short(other)} and {short(name)} would both be {ANNOTATIONS}/{stem}.xml; "
                    "rename one of them"
                )

    def heads(self) -> Iterator[tuple[str, str]]:
        """Yield what stands before the objects, of each file."""
        for batch in self._images.to_batches(ROWS):
            for record in to_records(batch):
                stem = _stem(record.get("file_name"))
                if stem:
                    split = record.get("split")
                    self.split_of[stem] = split if split in SPLITS else self._default
                    yield stem, _head(record)

    def objects(self, batch: list[Record]) -> dict[str, str]:
        """Return the text for each file."""
        texts: dict[str, list[str]] = {}
        for record, row in zip(batch, self._rows.of_records(batch), strict=True):
            said = {"image_id", "category_id", "bbox", "segmentation", *KEPT}
            self._lost.update(f"key '{key}'" for key in record if key not in said)
            stem = self.stems[row] if row >= 0 else None
            number = whole_of(record.get("category_id"))
            name = self._names.get(number) if number is not None else None
            if not stem:
                self._lost["annotations without a usable image"] += 1
            elif name is None:
                self._lost["annotations of an unknown category"] += 1
            elif (corners := _corners(record.get("bbox"))) is None:
                self._lost["annotations without a usable box"] += 1
            else:
                masks = has_mask(record.get("segmentation"))
                self._lost.update(["masks, which VOC's XML cannot say"] * masks)
                texts.setdefault(stem, []).append(_object_text(name, corners, record))
                self.count += 1
        return {stem: "".join(parts) for stem, parts in texts.items()}


def _head(record: Record) -> str:
    value: Record = {"filename": record["file_name"]}
    value |= {key: record[key] for key in SAID_OF_IMAGES if key in record}
    size = {side: record.get(side, 0) for side in ("width", "height")}
    value["size"] = size | {"depth": record.get("depth", 3)}
    return f"<annotation>{MARK}\n{tag_text(value)}"


def _object_text(name: str, corners: list[float], record: Record) -> str:
    value: Record = {"name": name}
    value |= {key: record[key] for key in KEPT if key in record}
    sides = (f"{side:.{DIGITS}f}".rstrip("0").rstrip(".") for side in corners)
    value["bndbox"] = dict(zip(CORNERS, sides, strict=True))
    return tag_text({"object": value})


def _corners(bbox: object) -> list[float] | None:
    """Return corners as VOC counts them; None for what is no box with an area."""
    try:
        x, y, w, h = (float(side) for side in bbox)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        return None
    corners = [x + 1, y + 1, x + w, y + h]
    return corners if w > 0 and h > 0 and all(abs(side) < 2**31 for side in corners) else None
