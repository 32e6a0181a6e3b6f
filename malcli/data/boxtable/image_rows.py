"""Which image a box belongs to: rows of images by id, also by an id of another type."""

import json
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malcli.data.boxtable.checks import short
from malcli.data.boxtable.columns import take_ids
from malcli.records import Problems, Record

DENSE = 8  # numbers an image id, at most, of a table of all numbers between the ids
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # what str() makes of an integer of 64 bits


class ImageRows:
    """Finds the row of an image by its id; of equal ids the first.

    Args:
        images: Columns of `image_schema`; a null id is none.
    """

    def __init__(self, images: pa.Table) -> None:
        """Sort the ids, or hash those that are text."""
        ids = images["id"]
        self._extra = images["extra"]
        self._is_text = pa.types.is_string(ids.type)
        if self._is_text:
            texts = ids.to_pylist()
            self._by_text = {texts[row]: row for row in reversed(range(len(texts)))}
            self._by_text.pop(None, None)
            return
        valid = np.flatnonzero(pc.is_valid(ids).to_numpy())
        self._ids, first = np.unique(pc.drop_null(ids).to_numpy(), return_index=True)
        self._first = valid[first].astype(np.int32)
        self._dense: NDArray[np.int32] | None = None  # the row of each number from the first id on
        if self._ids.size and int(self._ids[-1]) - int(self._ids[0]) < DENSE * self._ids.size:
            self._dense = np.full(self._ids[-1] - self._ids[0] + 1, -1, dtype=np.int32)
            self._dense[self._ids - self._ids[0]] = self._first

    def find(self, ids: pa.ChunkedArray) -> NDArray[np.int32]:
        """Return the image row of each id, (N,); -1 if unknown or null."""
        if self._is_text:
            coded = ids.combine_chunks().dictionary_encode()  # neighbours share their image
            rows = [self._by_text.get(text, -1) for text in coded.dictionary.to_pylist()]
            place = pc.fill_null(coded.indices, len(rows)).to_numpy()
            by_code: NDArray[np.int32] = np.array([*rows, -1], dtype=np.int32)
            return np.asarray(by_code[place])
        found = np.full(len(ids), -1, dtype=np.int32)
        if self._ids.size:
            wanted = pc.fill_null(ids, 0).to_numpy()
            match = (wanted >= self._ids[0]) & (wanted <= self._ids[-1])
            match &= pc.is_valid(ids).to_numpy()
            found[match] = self._rows_of(wanted[match])
        return found

    def of_records(self, records: Sequence[Record]) -> NDArray[np.int32]:
        """Return the image row of each annotation, (N,), by its `image_id`; -1 if unknown."""
        given = [{"id": record.get("image_id")} for record in records]
        ids = take_ids(given, "id", pa.string() if self._is_text else pa.int64())
        found = self.find(pa.chunked_array([ids]))
        for place in np.flatnonzero(found < 0):
            found[place] = self._row_of_text(records[int(place)].get("image_id"))
        return found

    def join_alike(self, boxes: pa.Table, image: NDArray[np.int32], problems: Problems) -> None:
        """Give boxes the image whose id differs in its type only, "1" and 1; say which.

        Args:
            boxes: Columns of `box_schema`.
            image: (N,) as `find` gave it; changed.
            problems: Counts the boxes.
        """
        extra, kind = boxes["extra"], "id-of-other-type"
        odd = pc.fill_null(pc.match_substring(extra, '"image_id":'), False).to_numpy()
        odd &= (image >= 0) if self._is_text else (image < 0)
        joined: dict[object, int] = {}  # boxes of an image are many
        for row in np.flatnonzero(odd):
            value = json.loads(extra[int(row)].as_py()).get("image_id")
            if self._is_text:
                kept = json.loads(self._extra[int(image[row])].as_py() or "{}")
                if type(value) is not int or type(kept.get("id")) is int:
                    continue
            elif isinstance(value, str):
                if value not in joined:
                    joined[value] = self._row_of_text(value)
                image[row] = joined[value]
            if image[row] >= 0:
                said = f"image_id {short(value)} and the image's id are text and number, joined"
                problems.add(kind, "" if kind in problems.counts else said)

    def _row_of_text(self, value: object) -> int:
        """Return the row of the image whose number a text says, such as "12"; -1 if none."""
        if self._is_text or not isinstance(value, str) or not _WHOLE.fullmatch(value):
            return -1
        return int(self.find(pa.chunked_array([[int(value)]], pa.int64()))[0])

    def _rows_of(self, wanted: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the rows of numbers between the first id and the last; -1 if unknown."""
        if self._dense is not None:
            return np.asarray(self._dense[wanted - self._ids[0]])
        place = np.searchsorted(self._ids, wanted)
        return np.where(self._ids[place] == wanted, self._first[place], np.int32(-1))
