"""Settings of `malcli convert`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import DATA, OUTPUT
from malcli.data.formats.registry import NAMES as FORMATS
from malcli.settings import setting


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of `malcli convert`."""

    src: Path = setting(help="File to read, or the folder of a YOLO or VOC data set.", panel=DATA)
    dst: Path = setting(help="File to write, or the folder of a YOLO or VOC data set.", panel=DATA)
    images: Path | None = setting(
        None, "Image folder, for sizes and links (default: looked up beside SRC).", panel=DATA
    )
    from_: str | None = setting(
        None, "Format of SRC (default: recognised).", panel=DATA, choices=FORMATS
    )
    to: str | None = setting(
        None, "Format of DST (default: from its suffix).", panel=DATA, choices=FORMATS
    )
    rle: str | None = setting(
        None,
        "Form of the masks (default: as they are).",
        panel=OUTPUT,
        choices=("compressed", "uncompressed", "polygon"),
    )
    contiguous_ids: bool = setting(
        False, "Number the categories from 1 without gaps, in the order of their ids.", panel=OUTPUT
    )
    drop_unlabelled: bool = setting(False, "Leave out records without a mask.", panel=OUTPUT)
    min_score: float | None = setting(
        None, "Leave out records with a lower score.", panel=OUTPUT, low=0, high=1
    )
    boxes_only: bool = setting(False, "Leave out the masks and their areas.", panel=OUTPUT)
    overwrite: bool = setting(False, "Replace DST.", panel=OUTPUT)
