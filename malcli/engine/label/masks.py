"""From the network's maps of a box to its mask, its score and its row of the output.

Shape suffixes: B boxes, S crop pixels, G score grid.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from malcli.data.crops.label_crops import Roi
from malcli.engine.label.parts import Outcome
from malcli.engine.label.predictor import LabelRule
from malcli.geometry.areas import paste_above, paste_majority
from malcli.geometry.boxes import roi_frame
from malcli.geometry.crops import resize
from malcli.geometry.released import paste_bilinear
from malcli.geometry.rle import empty_rle, encode_crop
from malcli.metrics.confidence import evidence
from malcli.records import STATUS_EMPTY, STATUS_OK

EVIDENCE_SIDE = 32  # the score's weights were fitted at this side; finer maps only cost time


def evidence_of(
    rois: Sequence[Roi], prob_BGG: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Return what the scores of boxes are made of, read at a side of `EVIDENCE_SIDE` at most."""
    side = min(prob_BGG.shape[-1], EVIDENCE_SIDE)
    coarse_BGG = np.stack([resize(prob_GG, (side, side)) for prob_GG in prob_BGG])
    roi_B4, window_B4 = (np.stack([getattr(roi, key) for roi in rois]) for key in ("roi", "window"))
    box_B4 = roi_frame(window_B4.astype(np.float64), roi_B4)
    return evidence(coarse_BGG, box_B4, np.array([roi.overlap for roi in rois]))


def mask_of(
    rule: LabelRule,
    roi: Roi,
    prob_GG: NDArray[np.float32],
    refined_SS: NDArray[np.uint8] | None = None,
) -> NDArray[np.bool_]:
    """Return a box's mask, (h, w) of its window.

    Args:
        rule: Geometry and thresholds.
        roi: The box.
        prob_GG: Its probabilities.
        refined_SS: 0 and 1, with refinement.
    """
    if rule.geometry == "released":
        threshold = rule.threshold[roi.size] if refined_SS is None else 0.5
        map_SS = prob_GG if refined_SS is None else refined_SS.astype(np.float32)
        mask: NDArray[np.bool_] = paste_bilinear(map_SS, roi.roi, roi.window) > threshold
        return mask
    if refined_SS is None:
        return paste_above(prob_GG, roi.roi, roi.window, rule.threshold[roi.size])
    return paste_majority(refined_SS, roi.roi, roi.window)


def mean_inside(prob_GG: NDArray[np.float32], roi: Roi, mask: NDArray[np.bool_]) -> float:
    """Return the mean probability inside a mask, 0 if it is empty: the score of `released`."""
    if not mask.any():
        return 0.0
    inside = paste_bilinear(prob_GG, roi.roi, roi.window)[mask]
    return float(inside.mean(dtype=np.float64))


def outcome_of(
    rule: LabelRule, roi: Roi, mask: NDArray[np.bool_], area: int, score: float
) -> Outcome:
    """Return what becomes of a box: its mask in run lengths, or nothing if it is too unsure."""
    score = round(score, 6)
    if not area or score < rule.min_score:
        counts = empty_rle(roi.image_hw)["counts"]
        return Outcome(roi.row, STATUS_EMPTY, *roi.image_hw, counts, 0, 0.0)
    rle = encode_crop(mask, int(roi.window[0]), int(roi.window[1]), roi.image_hw)
    return Outcome(roi.row, STATUS_OK, *roi.image_hw, rle["counts"], area, score)
