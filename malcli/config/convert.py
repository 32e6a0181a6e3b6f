"""Settings of `malcli convert`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import DATA, EXIF, OUTPUT
from malcli.data.formats.registry import NAMES as FORMATS
from malcli.settings import result, setting


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of `malcli convert`."""

    src: Path = setting(
        help="File to read, or the folder of a data set.", panel=DATA, identity="input"
    )
    dst: Path = setting(
        help="File to write, or the folder of a data set.",
        panel=DATA,
        identity="private",
    )
    images: Path | None = setting(
        None,
        "Image folder, for sizes and links (default: looked up beside SRC).",
        panel=DATA,
        identity="private",
        mode="annotations",
    )
    from_: str | None = setting(
        None,
        "Format of SRC (default: recognised).",
        panel=DATA,
        choices=FORMATS,
        identity="selection",
        mode="annotations",
    )
    exif: str = result(
        "auto",
        "Which way round the boxes of formats without sizes take photographs that EXIF turns "
        "(auto: YOLO upright, Open Images stored).",
        panel=DATA,
        choices=EXIF,
        mode="annotations",
    )
    to: str | None = result(
        None,
        "Format of DST (default: from its suffix).",
        panel=DATA,
        choices=FORMATS,
        mode="annotations",
    )
    rle: str | None = result(
        None,
        "Form of the masks (default: as they are).",
        panel=OUTPUT,
        choices=("compressed", "uncompressed", "polygon"),
        mode="annotations",
    )
    contiguous_ids: bool = result(
        False,
        "Number the categories from 1 without gaps, in the order of their ids.",
        panel=OUTPUT,
        mode="annotations",
    )
    drop_unlabelled: bool = setting(
        False,
        "Leave out records without a mask.",
        panel=OUTPUT,
        identity="selection",
        mode="annotations",
    )
    min_score: float | None = setting(
        None,
        "Leave out records with a lower score.",
        panel=OUTPUT,
        low=0,
        high=1,
        identity="selection",
        mode="annotations",
    )
    boxes_only: bool = result(
        False, "Leave out the masks and their areas.", panel=OUTPUT, mode="annotations"
    )
    overwrite: bool = setting(False, "Replace DST.", panel=OUTPUT, identity="private")
