"""How sure a mask is, without a human mask: evidence -> a score that estimates its IoU.

The evidence is read off a box's probabilities and its neighbours; the score is a
logistic function of it, with weights that were fitted once to IoUs with human masks. Also measures
how good a score is. Knows nothing of files or networks.

Shape suffixes: B boxes, G cells along a side of the crops' grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from malcli.metrics.score_weights import WEIGHTS

FloatArray = NDArray[np.float64]

EVIDENCE = ("certainty", "touch", "overlap", "corner")

SMALLEST = 1e-4  # probability; bounds the certainty, a logit
OUTERMOST = 0.25  # share of a cell that must be in the box to count as its outermost
LARGEST_OVERLAP = 0.5  # of more, such as of a box given twice, too few were seen
POOR_IOU = 0.6  # below it a mask is worth a look
DROPPED = (0.1, 0.2, 0.3)  # shares of the least sure masks
NEWTON_STEPS = 50


def evidence(
    probability_BGG: NDArray[np.floating], box_B4: FloatArray, overlap_B: FloatArray
) -> dict[str, FloatArray]:
    """Return what the probabilities and neighbours of boxes tell of their masks.

    Many boxes at once: of a single one, calls would cost more than sums.

    Args:
        probability_BGG: (B, G, G) probabilities on the crops' grid, in [0, 1].
        box_B4: (B, 4) x0 y0 x1 y1 of the box in the unit square of its crop.
        overlap_B: (B,) largest IoU of the box with another one of the image.

    Returns:
        (B,) values each of `certainty`: the logit of the probability where there is any, its mean
        in the box weighted by itself; `touch`: the largest probability along each of the four sides
        of the box, their mean; `overlap`, at most 0.5: what lies in two boxes is often given to the
        wrong one; `corner`: the mean probability of the fullest corner of the box, a quarter of its
        sides: few objects fill one. No threshold or refinement enters.
    """
    prob_BGG: FloatArray = np.asarray(probability_BGG, dtype=np.float64)
    grid = prob_BGG.shape[-1]
    columns_BG, rows_BG = (_covered(box_B4[:, [axis, axis + 2]], grid) for axis in (0, 1))
    inside_BGG = prob_BGG * rows_BG[:, :, None] * columns_BG[:, None, :]
    total_B = _sums(inside_BGG)
    certain_B = _sums(inside_BGG * prob_BGG) / np.maximum(total_B, np.finfo(np.float64).tiny)
    certain_B = np.clip(certain_B, SMALLEST, 1 - SMALLEST)
    ends_B4 = np.concatenate([_ends(columns_BG), _ends(rows_BG)], axis=1)[:, [0, 2, 1, 3]]
    return {
        "certainty": np.log(certain_B / (1 - certain_B)),
        "touch": _touch(prob_BGG, ends_B4),
        "overlap": np.minimum(overlap_B, LARGEST_OVERLAP),
        "corner": _corner(prob_BGG, ends_B4),
    }


def _sums(values_BGG: NDArray[Any]) -> FloatArray:
    """Return the sum of each map."""
    sums: FloatArray = values_BGG.reshape(len(values_BGG), -1).sum(axis=1)
    return sums


def _touch(prob_BGG: FloatArray, ends_B4: NDArray[np.int64]) -> FloatArray:
    """Return the mean of the largest probabilities along the four sides of boxes."""
    box = np.arange(len(prob_BGG))
    cell = np.arange(prob_BGG.shape[-1])
    left, top, right, bottom = ends_B4.T
    wide_BG = (cell >= left[:, None]) & (cell <= right[:, None])
    tall_BG = (cell >= top[:, None]) & (cell <= bottom[:, None])
    lines = [(prob_BGG[box, side], wide_BG) for side in (top, bottom)]
    lines += [(prob_BGG[box, :, side], tall_BG) for side in (left, right)]
    touch: FloatArray = sum(np.where(part, line, 0).max(axis=1) for line, part in lines) / 4
    return touch


def _corner(prob_BGG: FloatArray, ends_B4: NDArray[np.int64]) -> FloatArray:
    """Return the largest mean of the four corners of boxes, a quarter of their sides each."""
    corners = np.zeros(len(prob_BGG))
    for place, (left, top, right, bottom) in enumerate(ends_B4.tolist()):
        tall, wide = max(1, (bottom + 1 - top) // 4), max(1, (right + 1 - left) // 4)
        part = prob_BGG[place, top : bottom + 1, left : right + 1]
        high, low = part[:tall].sum(axis=0), part[-tall:].sum(axis=0)
        sums = (high[:wide].sum(), high[-wide:].sum(), low[:wide].sum(), low[-wide:].sum())
        corners[place] = max(sums) / (tall * wide)
    return corners


def _covered(interval_B2: FloatArray, cells: int) -> FloatArray:
    """Return the share of each cell along an axis of [0, 1] that intervals cover, (B, cells)."""
    cell = np.arange(cells)
    low_B1, high_B1 = interval_B2[:, :1] * cells, interval_B2[:, 1:] * cells
    covered_BG: FloatArray = np.minimum(high_B1, cell + 1) - np.maximum(low_B1, cell)
    return covered_BG.clip(0, 1)


def _ends(covered_BG: FloatArray) -> NDArray[np.int64]:
    """Return the first and the last cell that boxes cover well, or cover most, (B, 2)."""
    enough_B = np.minimum(OUTERMOST, covered_BG.max(axis=1) / 2)
    well_BG = covered_BG > enough_B[:, None]
    last_B = well_BG.shape[1] - 1 - well_BG[:, ::-1].argmax(axis=1)
    return np.stack([well_BG.argmax(axis=1), last_B], axis=1)


def predict_iou(
    found: Mapping[str, float | FloatArray], weights: Mapping[str, float] = WEIGHTS
) -> FloatArray:
    """Return the estimates of masks' IoU with human masks, in [0, 1], shaped as the evidence.

    Args:
        found: `evidence`: {name: values}, every name of the weights but `intercept`.
        weights: {name: weight} and `intercept`, as `fit_weights` makes them.
    """
    logit = np.asarray(weights["intercept"], dtype=np.float64)
    for name, weight in weights.items():
        if name != "intercept":
            logit = logit + weight * np.asarray(found[name])
    estimate: FloatArray = 1 / (1 + np.exp(-np.clip(logit, -60.0, 60.0)))
    return estimate


def fit_weights(
    evidence_NK: FloatArray, iou: FloatArray, names: Sequence[str], ridge: float = 1.0
) -> dict[str, float]:
    """Return the weights whose estimates explain IoUs best.

    Logistic regression on fractions: the estimate minimises the cross-entropy with the IoU, plus
    half of `ridge` times the squared weights of the standardised evidence.

    Args:
        evidence_NK: (N, K) values.
        iou: (N,) with human masks, in [0, 1].
        names: Of the K columns.
        ridge: > 0.

    Source: Papke and Wooldridge, fractional response, 1996; Newton's method.
    """
    mean, scale = evidence_NK.mean(axis=0), evidence_NK.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = np.concatenate([np.ones((len(iou), 1)), (evidence_NK - mean) / scale], axis=1)
    penalty = np.diag([0.0] + [ridge] * len(names))
    beta = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        guess = 1 / (1 + np.exp(-np.clip(design @ beta, -60, 60)))
        gradient = design.T @ (iou - guess) - penalty @ beta
        spread = np.maximum(guess * (1 - guess), 1e-6)
        step = np.linalg.solve(design.T @ (spread[:, None] * design) + penalty, gradient)
        beta += step
        if np.abs(step).max() < 1e-9:
            break
    weight = beta[1:] / scale
    fitted = dict(zip(names, weight.tolist(), strict=True))
    return {"intercept": float(beta[0] - weight @ mean), **fitted}


class ScoreBin(TypedDict):
    """Masks of similar score: how many, their mean score and mean IoU."""

    low: float
    high: float
    masks: int
    score: float
    iou: float


class ScoreQuality(TypedDict):
    """How good a score is at telling the IoU; see `measure_score`."""

    spearman: float | None
    auroc: float | None
    gap: float | None
    mean_iou: float | None
    gain: dict[str, float]
    bins: list[ScoreBin]


def measure_score(score: FloatArray, iou: FloatArray, bins: int = 10) -> ScoreQuality:
    """Return how good a score is at telling the IoU.

    Args:
        score: (N,) in [0, 1].
        iou: (N,) with human masks.
        bins: Of equal width, for the reliability.

    Returns:
        `spearman`; `auroc`: of telling masks of an IoU below 0.6 (both null if undefined); `gap`:
        the mean over masks of |mean score - mean IoU| of their bin; `mean_iou`; `gain`: {share:
        what the mean IoU gains when so many of the least sure are dropped}; `bins`: one dictionary
        for each bin that has masks.
    """
    place = np.minimum((score * bins).astype(np.int64), bins - 1)
    rows: list[ScoreBin] = [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "masks": int((place == number).sum()),
            "score": float(score[place == number].mean()),
            "iou": float(iou[place == number].mean()),
        }
        for number in np.unique(place).tolist()
    ]
    gaps = [row["masks"] * abs(row["score"] - row["iou"]) for row in rows]
    order = np.argsort(score, kind="stable")
    kept = {share: iou[order[round(share * len(iou)) :]] for share in DROPPED}
    return {
        "spearman": spearman(score, iou),
        "auroc": auroc(score, iou < POOR_IOU),
        "gap": sum(gaps) / len(iou) if len(iou) else None,
        "mean_iou": float(iou.mean()) if len(iou) else None,
        "gain": {str(s): float(k.mean() - iou.mean()) for s, k in kept.items() if len(k)},
        "bins": rows,
    }


def spearman(a: FloatArray, b: FloatArray) -> float | None:
    """Return the rank correlation of two samples, ties at their mean rank; None if undefined."""
    if not len(a):
        return None
    ranks = np.stack([_ranks(a), _ranks(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((ranks**2).sum(axis=1).prod())
    return float((ranks[0] * ranks[1]).sum() / norm) if norm > 0 else None


def auroc(score: FloatArray, poor: NDArray[np.bool_]) -> float | None:
    """Return how often a poor mask has a lower score than another; ties count half.

    None if there are only poor ones, or none.
    """
    count = int(poor.sum())
    others = len(poor) - count
    if not count or not others:
        return None
    above = _ranks(score)[~poor].sum() - others * (others + 1) / 2
    return float(above / (count * others))


def _ranks(values: FloatArray) -> FloatArray:
    """Return ranks from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: FloatArray = (last - (counts - 1) / 2)[place]
    return ranks
