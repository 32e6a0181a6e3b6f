"""COCO's matching of detections to instances: by hotcoco where it is installed, else pycocotools.

pycocotools is the reference; hotcoco (the extra `fast-eval`) gives the same numbers in a fraction
of the time. Knows nothing of files.

Shape suffixes: T IoU levels, R recalls, K categories, A area ranges, M limits of detections.
"""

import contextlib
import importlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from malcli.geometry.rle import area as mask_area
from malcli.geometry.rle import paired_iou, rle_box
from malcli.metrics.pairing import Instances
from malcli.records import Rle

FloatArray = NDArray[np.float64]


def _installed(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


hotcoco = _installed("hotcoco")  # None: everything below takes pycocotools


@dataclass(frozen=True)
class Side:
    """Columns of one side, N rows, as COCO's evaluation takes them.

    Attributes:
        image: (N,) rows of the images.
        category: (N,) category ids.
        xywh: (N, 4) boxes, pixels; finite.
        area: (N,) what decides the area range, pixels.
        crowd: (N,) bool.
        score: (N,).
        rles: Masks; None where only boxes are compared.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    xywh: FloatArray
    area: FloatArray
    crowd: NDArray[np.bool_]
    score: FloatArray
    rles: list[Rle | None]

    def take(self, rows: NDArray[np.bool_]) -> "Side":
        """Return some rows."""
        picked = np.flatnonzero(rows)
        return Side(
            self.image[picked],
            self.category[picked],
            self.xywh[picked],
            self.area[picked],
            self.crowd[picked],
            self.score[picked],
            [self.rles[row] for row in picked],
        )


@dataclass(frozen=True)
class Matched:
    """What COCO's evaluation found.

    Attributes:
        precision_TRKAM: Precision at each recall; -1 where there is no instance.
        recall_TKAM: Recall; -1 likewise.
        each: Returns the matches image by image, as `COCOeval.evalImgs`; category k has the id
            k + 1. Asking costs time.
    """

    precision_TRKAM: FloatArray
    recall_TKAM: FloatArray
    each: Callable[[], Iterable[dict[str, Any] | None]]


def side_of(instances: Instances, kind: str, *, human: bool) -> Side:
    """Return a side with the boxes and areas that COCO's rules give it.

    Args:
        instances: Human or predicted.
        kind: `segm` or `bbox`.
        human: Human instances keep their given area and are used only if they have a mask.
    """
    masks = np.array([rle is not None for rle in instances.rles], dtype=bool)
    xywh = instances.xywh.copy()
    for row in np.flatnonzero(~np.isfinite(xywh).all(axis=1)):
        rle = instances.rles[row]
        xywh[row] = rle_box(rle) if rle else 0
    area = instances.area.copy() if human else np.full(len(instances), np.nan)
    if not human and kind == "bbox":
        area = xywh[:, 2] * xywh[:, 3]
    unknown = np.flatnonzero(~np.isfinite(area) & masks)
    rles = [rle for rle in (instances.rles[row] for row in unknown) if rle is not None]
    area[unknown] = [mask_area(rle) for rle in rles]  # one by one: many at once overflow a byte
    whole = Side(
        image=instances.image,
        category=instances.category,
        xywh=xywh,
        area=area,
        crowd=instances.crowd if human else np.zeros(len(instances), dtype=bool),
        score=instances.score,
        rles=instances.rles,
    )
    return whole.take(masks) if human or kind == "segm" else whole


def match(truth: Side, found: Side, images: int, kind: str) -> Matched:
    """Return COCO's precision and recall; categories are the sorted ones of the human side.

    Args:
        truth: Human instances, at least one.
        found: Detections; those of other categories do not count.
        images: Number of images; both sides' rows are below it.
        kind: `segm` or `bbox`.
    """
    categories = np.unique(truth.category)
    found = found.take(np.isin(found.category, categories))
    truth_K, found_K = (np.searchsorted(categories, side.category) + 1 for side in (truth, found))
    if hotcoco is not None:
        return _by_hotcoco(hotcoco, (truth, truth_K), (found, found_K), images, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(truth, truth_K, images, len(categories)),
            _coco(found, found_K, images, len(categories)),
            kind,
        )
        evaluation.evaluate()
        evaluation.accumulate()
    tables = evaluation.eval
    return Matched(tables["precision"], tables["recall"], lambda: evaluation.evalImgs)


def _coco(side: Side, category: NDArray[np.int64], images: int, categories: int) -> COCO:
    """Return a side as pycocotools' data set, ids from 1: COCOeval takes id 0 for no match."""
    columns = zip(
        side.image.tolist(),
        category.tolist(),
        side.xywh.tolist(),
        side.rles,
        side.area.tolist(),
        side.crowd.tolist(),
        side.score.tolist(),
        strict=True,
    )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": number + 1} for number in range(categories)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": kind,
                "bbox": box,
                "segmentation": dict(rle or {}),
                "area": area,
                "iscrowd": int(crowd),
                "score": score,
            }
            for number, (image, kind, box, rle, area, crowd, score) in enumerate(columns, 1)
        ],
    }
    coco.createIndex()
    # The masks are RLEs of their image's size already; sizes are not kept in these records.
    coco.annToRLE = lambda record: record["segmentation"]
    return coco


def _by_hotcoco(
    library: ModuleType,
    truth: tuple[Side, NDArray[np.int64]],
    found: tuple[Side, NDArray[np.int64]],
    images: int,
    kind: str,
) -> Matched:
    (human, human_K), (side, side_K) = truth, found
    masked = kind == "segm"
    gt = library.COCO.from_arrays(
        [{"id": image} for image in range(images)],
        [{"id": n + 1, "name": str(n)} for n in range(int(human_K.max()))],
        human.image,
        human_K,
        human.xywh,
        ids=np.arange(1, len(human_K) + 1),
        area=human.area,
        iscrowd=human.crowd.astype(np.int64),
        segmentation=human.rles if masked else None,
    )
    rows = np.column_stack([side.image, side.xywh, side.score, side_K]).astype(np.float64)
    dt = gt.load_res(rows, segmentation=side.rles if masked else None)
    if len(rows):
        # It takes a box's area for a detection with a box; COCO's rule for masks is their pixels.
        dt.update_anns(ids=np.arange(1, len(rows) + 1), area=side.area)
    evaluation = library.COCOeval(gt, dt, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    return Matched(tables["precision"], tables["recall"], lambda: evaluation.eval_imgs)


def mask_iou(a: Sequence[Rle], b: Sequence[Rle]) -> FloatArray:
    """Return the IoU of each a with its b, (N,); 0 where both are empty.

    Args:
        a: Checked masks.
        b: As many, of the same sizes.
    """
    if hotcoco is None:
        return paired_iou(a, b)
    iou, no_crowd = hotcoco.mask.iou, [False]
    pairs = zip(a, b, strict=True)
    values = [iou([one], [other], no_crowd)[0, 0] for one, other in pairs]
    return np.maximum(np.array(values, dtype=np.float64), 0)
