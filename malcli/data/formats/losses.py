"""Counts what formats that say little cannot say of a table's header and images."""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import pyarrow.compute as pc

from malcli.records import BoxTable, category_names, category_records


def losses_of(
    table: BoxTable,
    image_ids: Iterable[Any],
    category_ids: dict[int, int],
    category_keys: Collection[str] = ("id", "name"),
) -> Counter[str]:
    """Count the header's keys, the other keys of images and categories, and ids that change.

    Args:
        table: What is to be written.
        image_ids: The id that reading back gives each image, in order.
        category_ids: The id that reading back gives each category.
        category_keys: Keys of categories that the format says.
    """
    lost = Counter(f"header '{key}'" for key in table.header if key != "categories")
    extra = table.images["extra"]
    lost["other keys of images"] = len(extra) - extra.null_count
    for each in category_records(table.header):
        lost["other keys of categories"] += not each.keys() <= set(category_keys)
        number = each.get("id")
        same = type(number) is int and number == category_ids.get(number)
        lost["ids of categories, which get others"] += not same
    pairs = zip(table.images["id"].to_pylist(), image_ids, strict=True)
    lost["ids of images, which get others"] = sum(old != new for old, new in pairs)
    return lost


def losses_by_name(table: BoxTable, image_ids: Iterable[Any]) -> Counter[str]:
    """Count as `losses_of` does for files that say a category by its name, at its boxes.

    Reading back numbers the names in their order, from 1.

    Args:
        table: What is to be written.
        image_ids: The id that reading back gives each image, in order.
    """
    names = category_names(table.header)
    used = set(pc.unique(table.boxes["category_id"]).to_pylist()) & names.keys()
    place = {name: n for n, name in enumerate(sorted({names[number] for number in used}), 1)}
    lost = losses_of(table, image_ids, {number: place[names[number]] for number in used})
    lost["categories without boxes"] = len(names) - len(used)
    lost["categories that share a name"] = len(used) - len(place)
    return lost
