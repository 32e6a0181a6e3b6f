"""How sure a mask is, without a human mask: evidence -> a score that estimates its IoU.

The evidence is read off a box's probabilities, its pixels and its neighbours; the score is a
logistic function of it, with weights that were fitted once to IoUs with human masks. Also measures
how good a score is. Knows nothing of files or networks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from malcli.metrics.score_weights import WEIGHTS

FloatArray = NDArray[np.float64]

EVIDENCE = ("certainty", "fill", "touch", "overlap", "edge", "corner", "texture", "size")

SMALLEST = 1e-4  # probability; bounds the certainty, a logit
OUTERMOST = 0.25  # share of a cell that must be in the box to count as its outermost
SIDES = (16.0, 512.0)  # pixels: of smaller and larger boxes too few were seen
FLAT = 3.0  # added to the change of colour of a crop that has next to none
LARGEST_OVERLAP = 0.5  # of more, such as of a box given twice, too few were seen
POOR_IOU = 0.6  # below it a mask is worth a look
DROPPED = (0.1, 0.2, 0.3)  # shares of the least sure masks
NEWTON_STEPS = 50


def evidence(
    prob_GG: NDArray[np.floating],
    box: FloatArray,
    colour_GG3: NDArray[Any],
    sides: float,
    overlap: float = 0.0,
) -> dict[str, float]:
    """Return what a box's probabilities, pixels and neighbours tell of its mask.

    Args:
        prob_GG: (G, G) probabilities on the crop's grid, in [0, 1].
        box: (4,) x0 y0 x1 y1 of the box in the unit square of the crop.
        colour_GG3: (G, G, 3) mean colours of the grid's cells, in [0, 255].
        sides: Width times height of the box, pixels of the image.
        overlap: Largest IoU of the box with another one of the image.

    Returns:
        `certainty`: the logit of the probability where there is any, its mean in the box weighted
        by itself; `fill`: the mean probability in the box; `touch`: the largest probability along
        each of the four sides of the box, their mean; `overlap`, at most 0.5: what lies in two
        boxes is often given to the wrong one; `edge`: how much more colours change where the
        probability does than elsewhere in the crop; `corner`: the mean probability of the fullest
        corner of the box, a quarter of its sides: few objects fill one; `texture`: spread of the
        colours inside the mask; `size`: log of the box's mean side. No threshold or refinement
        enters.
    """
    prob = np.asarray(prob_GG, dtype=np.float64)
    columns, rows = (_covered(box[axis], box[axis + 2], len(prob)) for axis in (0, 1))
    weight = rows[:, None] * columns
    inside = weight * prob
    total = inside.sum()
    certain = (inside * prob).sum() / total if total > 0 else 0.0
    certain = min(max(certain, SMALLEST), 1 - SMALLEST)
    (top, bottom), (left, right) = _ends(rows), _ends(columns)
    part = prob[top : bottom + 1, left : right + 1]
    ends = (part[0].max(), part[-1].max(), part[:, 0].max(), part[:, -1].max())
    # Planes one after the other: sums over channels are four times as fast.
    colour_3GG = np.ascontiguousarray(np.moveaxis(colour_GG3, 2, 0))
    # Levels as small whole numbers: equal differences in a third of the time.
    signed = colour_3GG.astype(np.int16 if colour_3GG.dtype == np.uint8 else np.float64)
    return {
        "certainty": float(np.log(certain / (1 - certain))),
        "fill": float(total / weight.sum()),
        "touch": float(sum(ends) / 4),
        "overlap": min(overlap, LARGEST_OVERLAP),
        "edge": _edge(inside, signed),
        "corner": _corner(part),
        "texture": _texture(inside, colour_3GG.astype(np.float64)),
        "size": float(np.log(np.clip(np.sqrt(sides), *SIDES))),
    }


def _edge(inside_GG: FloatArray, colour_3GG: NDArray[Any]) -> float:
    """Return the change of colour where the probability changes, as a multiple of the crop's."""
    across = total = everywhere = 0.0
    for axis in (0, 1):
        change_3 = np.diff(colour_3GG, axis=axis + 1)
        change = np.abs(change_3, out=change_3).sum(axis=0)
        border = np.diff(inside_GG, axis=axis)
        np.abs(border, out=border)
        across += float((change * border).sum())  # BLAS adds by its threads
        total += float(border.sum())
        everywhere += float(change.mean()) / 2
    return across / (total + SMALLEST) / (everywhere + FLAT)


def _corner(part_hw: FloatArray) -> float:
    """Return the largest mean of the four corners of a box's probabilities."""
    tall, wide = (max(1, side // 4) for side in part_hw.shape)
    ends = (slice(0, tall), slice(-tall, None)), (slice(0, wide), slice(-wide, None))
    return max(float(part_hw[rows, columns].mean()) for rows in ends[0] for columns in ends[1])


def _texture(inside_GG: FloatArray, colour_3GG: FloatArray) -> float:
    """Return the root of the summed variances of the colours in a mask, a share of 64."""
    share = inside_GG.ravel() / (inside_GG.sum() + SMALLEST)
    flat = colour_3GG.reshape(3, -1)
    # einsum adds in one order; BLAS would by its number of threads.
    away = flat - np.einsum("cn,n->c", flat, share)[:, None]
    spread = float(np.einsum("cn,cn,n->", away, away, share))
    return float(np.sqrt(spread) / 64)


def _covered(low: float, high: float, cells: int) -> FloatArray:
    """Return the share of each cell along an axis of [0, 1] that an interval covers."""
    cell = np.arange(cells)
    covered: FloatArray = np.minimum(high * cells, cell + 1) - np.maximum(low * cells, cell)
    return np.clip(covered, 0, 1)


def _ends(covered: FloatArray) -> tuple[int, int]:
    """Return the first and the last cell that the box covers well, or covers most."""
    well = np.flatnonzero(covered > min(OUTERMOST, covered.max() / 2))
    return int(well[0]), int(well[-1])


def predict_iou(found: Mapping[str, float], weights: Mapping[str, float] = WEIGHTS) -> float:
    """Return the estimate of a mask's IoU with a human mask, in [0, 1].

    Args:
        found: `evidence`: {name: value}, every name of the weights but `intercept`.
        weights: {name: weight} and `intercept`, as `fit_weights` makes them.
    """
    logit = weights["intercept"]
    for name, weight in weights.items():
        if name != "intercept":
            logit += weight * found[name]
    return float(1 / (1 + np.exp(-np.clip(logit, -60.0, 60.0))))


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


def measure_score(score: FloatArray, iou: FloatArray, bins: int = 10) -> dict[str, Any]:
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
    rows = [
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
