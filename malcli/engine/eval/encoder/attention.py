"""`malcli eval --attention`: where an encoder looks, drawn for chosen boxes.

Reads boxes, no masks, and makes none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from malcli.config.evaluate import EvalConfig
from malcli.data.crops.label_crops import Roi
from malcli.data.formats.open import open_boxes, select
from malcli.data.images.find import ImageFolder, find_images
from malcli.data.images.read import read_image
from malcli.engine.eval.encoder.features import OpenEncoder, lose_boxes, open_encoder
from malcli.engine.inputs import refuse_problems, report_problems
from malcli.engine.label.settings import whole_number
from malcli.errors import BadImage, ConfigError, DataFormatError
from malcli.geometry.boxes import clip_xyxy, roi_frame, xywh_to_xyxy
from malcli.model.attention import attention_maps, check_layers
from malcli.records import STATUS_OK, BoxTable, Problems, category_names
from malcli.report.html import attention_page, check_page, write_page
from malcli.report.plots import Example, attention_picture, jpeg
from malcli.report.progress import Progress, log
from malcli.report.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT_BOXES = 8
DEFAULT_PAGE = Path("attention.html")
NAMED = 3  # ids in an error


@dataclass(frozen=True)
class AttentionResult(Shown):
    """What was drawn.

    Attributes:
        report: The page.
        ids: Annotation ids of the boxes drawn, in the page's order.
        layers: Numbers of the layers, the first is 1.
        class_token: Whether the encoder has one; then each picture has a row for it.
        gt: The boxes.
        encoder: Whose attention, as `OpenEncoder.to_json` says it.
        problems: Boxes that could not be drawn.
    """

    report: Path
    ids: list[int | str]
    layers: list[int]
    class_token: bool
    gt: Path
    encoder: dict[str, Any]
    problems: Problems = field(default_factory=Problems)

    def table(self) -> "RenderableType":
        """Return what the command prints."""
        from malcli.report.encoders import attention_lines

        return attention_lines(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the keys of `malcli eval --attention --json`."""
        return {
            "attention": {
                "report": str(self.report),
                "ids": self.ids,
                "layers": self.layers,
                "class_token": self.class_token,
                **self.encoder,
                "gt": str(self.gt),
                "problems": self.problems.counts,
            }
        }


@dataclass(frozen=True)
class _Drawn:
    number: int | str
    has_class: bool
    example: Example


def draw_attention(config: EvalConfig) -> AttentionResult:
    """Draw attention maps of chosen boxes on one page.

    Args:
        config: The boxes, which of them, which layers, and which encoder.

    Raises:
        ConfigError: An unknown id, or a layer that the encoder does not have.
        DataFormatError: The file cannot be understood, or no box can be drawn.
        MissingImageError: None of the images is found.
        OutputError: The page would replace an input or another file.
    """
    page = config.report or DEFAULT_PAGE
    check_page(page, [config.gt, config.checkpoint], config.overwrite)
    layers = _layers_of(config.layers)
    log(f"eval: reading {config.gt}")
    table = select(
        open_boxes(config.gt, config.format, config.images, with_masks=False, exif=config.exif),
        config.categories,
        config.limit,
    )
    if config.strict:
        refuse_problems(table.path, table.problems)
    rows = chosen_rows(table, config.ids)
    folder = find_images(config.gt, table, config.images, config.exif, config.max_failures)
    found = open_encoder(config)
    check_layers(found.encoder, layers)
    problems = Problems()
    drawn = _draw_all(config, found, table, folder, rows, layers, problems)
    report_problems(problems)
    result = AttentionResult(
        report=page,
        ids=[one.number for one in drawn],
        layers=layers,
        class_token=drawn[0].has_class,
        gt=config.gt,
        encoder=found.to_json(),
        problems=problems,
    )
    listed = {f"{count} {kind}": problems.examples[kind] for kind, count in problems.counts.items()}
    pictures = [one.example for one in drawn]
    write_page(page, attention_page(result.to_json()["attention"], pictures, listed))
    return result


def _layers_of(text: str) -> list[int]:
    """Return the numbers of `--layers`, each once.

    Raises:
        ConfigError: They are no whole numbers above 0.
    """
    numbers = [whole_number(part.strip(), "--layers") for part in text.split(",")]
    return list(dict.fromkeys(numbers))


def chosen_rows(table: BoxTable, ids: str | None) -> NDArray[np.int64]:
    """Return the rows of the boxes to draw: those of `--ids`, or eight spread over the file.

    Args:
        table: The boxes that `--limit` and `--categories` leave.
        ids: Annotation ids, separated by commas; None: eight of those that can be labelled.

    Raises:
        ConfigError: An id is not there, or its box cannot be labelled.
        DataFormatError: No box can be.
    """
    usable = np.flatnonzero(np.asarray(pc.equal(table.boxes["status"], STATUS_OK)))
    if not len(usable):
        raise DataFormatError(table.path, "no box to draw: none can be labelled")
    if ids is None:
        places = np.linspace(0, len(usable) - 1, min(DEFAULT_BOXES, len(usable)))
        return usable[places.round().astype(np.int64)]
    # Bytes that the shell gives and no text has would stop the search.
    texts = ids.encode(errors="replace").decode().split(",")
    wanted = list(dict.fromkeys(filter(None, map(str.strip, texts))))
    if not wanted:
        raise ConfigError("--ids: names no annotation; give ids with commas between, such as 1,2,3")
    known = table.boxes["id"].cast(pa.string())
    rows = pc.index_in(pa.array(wanted, pa.string()), value_set=known).to_pylist()
    for text, row in zip(wanted, rows, strict=True):
        if row is None:
            near = ", ".join(_near(table, usable, text))
            raise ConfigError(
                f"--ids: {table.path} has no annotation {text!r}; take such as {near}"
            )
        status = table.boxes["status"][row].as_py()
        if status != STATUS_OK:
            raise ConfigError(f"--ids: annotation {text} is {status}, which has no crop to draw")
    return np.array(rows, dtype=np.int64)


def _near(table: BoxTable, usable: NDArray[np.int64], text: str) -> list[str]:
    """Return the usable ids nearest to a number, or the first ones."""
    ids = table.boxes["id"]
    few = usable[:NAMED]
    if pa.types.is_integer(ids.type) and text.removeprefix("-").isdecimal() and len(text) < 19:
        distance = np.abs(np.asarray(ids)[usable].astype(np.float64) - int(text))
        few = usable[np.argsort(distance, kind="stable")[:NAMED]]
    return [str(ids[int(row)].as_py()) for row in few]


def _draw_all(
    config: EvalConfig,
    found: OpenEncoder,
    table: BoxTable,
    folder: ImageFolder,
    rows: NDArray[np.int64],
    layers: Sequence[int],
    problems: Problems,
) -> list[_Drawn]:
    """Return a picture of each box whose image can be read.

    Raises:
        DataFormatError: There is none; with `strict`, any image that cannot be read.
    """
    names = category_names(table.header)
    drawn: list[_Drawn] = []
    with Progress(len(rows), "boxes", "eval") as progress:
        for row in rows.tolist():
            box = table.boxes.slice(row, 1).to_pylist()[0]
            image = table.images.slice(box["image"], 1).to_pylist()[0]
            xywh = np.array([box["bbox"]], dtype=np.float64)
            try:
                hw = (image["height"], image["width"])
                pixels = read_image(folder, image["file_name"], hw, config.max_pixels)
            except BadImage as error:
                lose_boxes(config, problems, error, 1)
                continue
            (roi,) = found.rois(pixels, np.array([row]), xywh)
            category = names.get(box["category_id"], str(box["category_id"]))
            caption = (category, f"id {box['id']}, {image['file_name']}")
            has_class, picture = _draw(found, roi, xywh[0], layers)
            drawn.append(_Drawn(box["id"], has_class, Example(jpeg(picture), caption)))
            progress.advance()
    if not drawn:
        kind, examples = next(iter(problems.examples.items()))
        raise DataFormatError(config.gt, f"no box can be drawn: {kind}: {examples[0]}")
    return drawn


def _draw(
    found: OpenEncoder, roi: Roi, xywh: NDArray[np.float64], layers: Sequence[int]
) -> tuple[bool, NDArray[np.uint8]]:
    """Return whether there is a class token, and the picture of a box."""
    crops_BSS3 = found.crops([roi])
    centre = _centre(roi, xywh)
    side = found.crop_size // found.encoder.stride
    column, row = (min(int(place * side), side - 1) for place in centre)
    patch_B = torch.tensor([row * side + column], device=found.device)
    of_class, of_patch = attention_maps(found.encoder, found.normalise(crops_BSS3), layers, patch_B)
    marks = [None, centre] if of_class is not None else [centre]
    kept = [maps for maps in (of_class, of_patch) if maps is not None]
    maps_RLhw = torch.cat(kept).cpu().numpy()
    return of_class is not None, attention_picture(crops_BSS3[0], maps_RLhw, marks)


def _centre(roi: Roi, xywh: NDArray[np.float64]) -> tuple[float, float]:
    """Return the centre of the box's part inside the image, x and y in the crop's unit square."""
    framed = roi_frame(clip_xyxy(xywh_to_xyxy(xywh), roi.image_hw), roi.roi)
    x, y = ((framed[:2] + framed[2:]) / 2).tolist()
    return x, y
