"""What `convert` changes in records on their way: forms of masks, category ids, what is dropped.

Opens no file.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from malcli.config.convert import ConvertConfig
from malcli.data.formats.lvis import LISTS as LVIS_LISTS
from malcli.geometry.polygons import polygons_of
from malcli.geometry.rle import RleError, from_segmentation, has_mask, paired_iou, run_lengths
from malcli.records import (
    BATCHES_KEPT,
    STATUS_OK,
    BoxTable,
    Record,
    Rle,
    category_names,
    category_records,
    to_records,
)

MASK_KEYS = ("segmentation", "area", "malcli_score", "malcli_status")


class Changes:
    """The changes that a command asks for.

    Args:
        config: The settings.
        table: What was read.
        lost: Counts what the target cannot say.

    Attributes:
        header: With the new category ids.
        images: With the new category ids.
        dropped: Annotations left out so far.
    """

    def __init__(self, config: ConvertConfig, table: BoxTable, lost: Counter[str]) -> None:
        """Number the categories."""
        self._config = config
        self._table = table
        self._lost = lost
        self._ious: list[tuple[float, float, int]] = []  # sum, minimum and number of each batch
        self.dropped = 0
        self.header = table.header
        self.images = table.images
        self._numbers: dict[int, int] = {}
        if config.contiguous_ids:
            known = sorted(category_names(table.header))
            self._numbers = {number: n for n, number in enumerate(known, 1)}
            self.header = self._renumbered_header()
            self.images = self._renumbered_images()
        sides = (pc.fill_null(table.images[side], 0).to_pylist() for side in ("height", "width"))
        self._hw = list(zip(*sides, strict=True)) if config.rle else []

    def batches(self) -> Iterator[list[Record]]:
        """Yield the changed annotations, in the order of the file."""
        for number, batch in enumerate(self._table.boxes.to_batches()):
            pairs = list(zip(to_records(batch), batch["image"].to_pylist(), strict=True))
            kept = [(record, image) for record, image in pairs if self._is_wanted(record)]
            self.dropped += len(pairs) - len(kept)
            if self._config.rle:
                self._change_masks(kept)
            records = [record for record, _ in kept]
            self._change_records(records)
            yield records
            if number % BATCHES_KEPT == 0:
                self._table.release()

    def polygon_iou(self) -> dict[str, float] | None:
        """Return the mean and the minimum IoU of masks with their polygons, and how many."""
        count = sum(number for _, _, number in self._ious)
        if not count:
            return None
        mean = sum(total for total, _, _ in self._ious) / count
        return {"mean": mean, "min": min(low for _, low, _ in self._ious), "masks": count}

    def _is_wanted(self, record: Record) -> bool:
        if self._config.drop_unlabelled:
            status = record.get("malcli_status", STATUS_OK)
            if status != STATUS_OK or not has_mask(record.get("segmentation")):
                return False
        score = record.get("malcli_score", record.get("score"))
        if self._config.min_score is None or not isinstance(score, int | float):
            return True
        return score >= self._config.min_score

    def _change_records(self, records: list[Record]) -> None:
        if self._config.boxes_only:
            for record in records:
                for key in MASK_KEYS:
                    record.pop(key, None)
        if self._config.contiguous_ids:
            for record in records:
                number = record.get("category_id")
                if type(number) is int:
                    # What is no category gets a number of its own, so that it becomes none.
                    record["category_id"] = self._numbers.setdefault(number, len(self._numbers) + 1)

    def _change_masks(self, pairs: list[tuple[Record, int]]) -> None:
        """Give masks the form asked for; what cannot be read stays as it is."""
        made: list[tuple[Rle, Rle]] = []
        for record, image in pairs:
            value = record.get("segmentation")
            if not has_mask(value):
                continue
            hw = self._hw[image] if image >= 0 else (0, 0)
            try:
                rle = from_segmentation(value, hw)
                changed = self._mask(record, rle)
                record["segmentation"] = changed
                if isinstance(changed, list) and changed is not value:
                    made.append((rle, from_segmentation(changed, hw)))
            except RleError:
                self._lost["masks that cannot be read, kept as they are"] += 1
        if made:
            iou = paired_iou([one for one, _ in made], [other for _, other in made])
            self._ious.append((float(iou.sum()), float(iou.min()), len(made)))

    def _mask(self, record: Record, rle: Rle) -> Any:  # noqa: ANN401
        """Return a mask in the form asked for."""
        if self._config.rle == "compressed":
            return rle
        if self._config.rle == "uncompressed":
            return {"size": rle["size"], "counts": run_lengths(rle["counts"]).tolist()}
        if isinstance(record["segmentation"], list) or record.get("iscrowd") == 1:
            return record["segmentation"]  # COCO's crowds are RLE
        polygons = polygons_of(rle)
        if not polygons:
            self._lost["empty masks, which have no polygon, kept as RLE"] += 1
        return polygons or rle

    def _renumbered_header(self) -> dict[str, Any]:
        known = [
            each | {"id": self._numbers[each["id"]]}
            for each in category_records(self._table.header)
            if type(each.get("id")) is int and each["id"] in self._numbers
        ]
        return self._table.header | {"categories": sorted(known, key=lambda each: each["id"])}

    def _renumbered_images(self) -> pa.Table:
        """Return the images with the category ids that LVIS keeps in them."""
        extras: list[str | None] = self._table.images["extra"].to_pylist()
        for row, text in enumerate(extras):
            if text is not None and "_category_ids" in text:
                record = json.loads(text)
                for key in LVIS_LISTS:
                    if isinstance(record.get(key), list):
                        record[key] = [self._number(each) for each in record[key]]
                extras[row] = json.dumps(record, separators=(",", ":"))
        place = self._table.images.schema.get_field_index("extra")
        return self._table.images.set_column(place, "extra", pa.array(extras, pa.string()))

    def _number(self, value: object) -> object:
        return self._numbers.get(value, value) if type(value) is int else value
