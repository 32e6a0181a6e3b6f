import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malcli.metrics.confidence import (
    EVIDENCE,
    auroc,
    fit_weights,
    measure_score,
    predict_iou,
    spearman,
)
from malcli.metrics.confidence import evidence as evidence_of_all
from malcli.metrics.score_weights import WEIGHTS


def evidence(prob, box, overlap=0.0):
    """The evidence of one box."""
    one = prob[None], np.asarray(box)[None], np.array([overlap])
    return {name: float(value[0]) for name, value in evidence_of_all(*one).items()}


FEW = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=12)


def test_the_estimate_is_the_logistic_of_a_weighted_sum():
    weights = {"intercept": -1.0, "flip": 2.0, "fill": 0.5}
    logit = -1.0 + 2.0 * 0.75 + 0.5 * 0.2
    found = predict_iou({"flip": 0.75, "fill": 0.2, "unused": 9.0}, weights)
    assert found == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)


@pytest.mark.parametrize("value", [-1e9, 1e9, 0.0])
def test_the_estimate_stays_between_0_and_1_whatever_the_evidence(value):
    assert 0 <= predict_iou({"flip": value}, {"intercept": 0.0, "flip": 1e6}) <= 1


def test_fitting_finds_the_weights_that_made_the_data():
    rng = np.random.default_rng(0)
    evidence = rng.normal(3.0, 2.0, (4000, 2))
    iou = 1 / (1 + np.exp(-(0.5 + 0.4 * evidence[:, 0] - 0.7 * evidence[:, 1])))
    found = fit_weights(evidence, iou, ("a", "b"), ridge=1e-6)
    assert found == pytest.approx({"intercept": 0.5, "a": 0.4, "b": -0.7}, abs=1e-4)


def test_a_fitted_score_has_the_mean_of_the_ious():
    rng = np.random.default_rng(1)
    evidence, iou = rng.random((300, 3)), rng.random(300)
    weights = fit_weights(evidence, iou, ("a", "b", "c"), ridge=5.0)
    scores = [predict_iou(dict(zip("abc", row, strict=True)), weights) for row in evidence]
    assert np.mean(scores) == pytest.approx(iou.mean(), abs=1e-9)


def test_evidence_that_never_changes_gets_no_weight():
    rng = np.random.default_rng(2)
    evidence = np.stack([rng.random(50), np.full(50, 0.3)], axis=1)
    assert fit_weights(evidence, evidence[:, 0], ("a", "b"))["b"] == pytest.approx(0.0, abs=1e-9)


def slow_evidence(prob, box, overlap):
    """The definition, cell by cell, with areas in exact fractions of a cell."""
    side = len(prob)
    weight = [[0.0] * side for _ in range(side)]
    for y in range(side):
        for x in range(side):
            wide = min(box[2] * side, x + 1) - max(box[0] * side, x)
            high = min(box[3] * side, y + 1) - max(box[1] * side, y)
            weight[y][x] = max(wide, 0) * max(high, 0)
    cells = [(y, x) for y in range(side) for x in range(side)]
    inside = {(y, x): weight[y][x] * prob[y][x] for y, x in cells}
    total = sum(inside.values())
    mean = sum(weight[y][x] * prob[y][x] ** 2 for y, x in cells) / total
    good = [(y, x) for y, x in cells if weight[y][x] > 0.25]
    top, bottom = min(y for y, _ in good), max(y for y, _ in good)
    left, right = min(x for _, x in good), max(x for _, x in good)
    ends = [
        max(prob[top][x] for x in range(left, right + 1)),
        max(prob[bottom][x] for x in range(left, right + 1)),
        max(prob[y][left] for y in range(top, bottom + 1)),
        max(prob[y][right] for y in range(top, bottom + 1)),
    ]
    tall, wide = max(1, (bottom - top + 1) // 4), max(1, (right - left + 1) // 4)
    corners = [
        [prob[y][x] for y in range(first, first + tall) for x in range(begin, begin + wide)]
        for first in (top, bottom + 1 - tall)
        for begin in (left, right + 1 - wide)
    ]
    return {
        "certainty": math.log(mean / (1 - mean)),
        "touch": sum(ends) / 4,
        "overlap": overlap,
        "corner": max(sum(one) / len(one) for one in corners),
    }


@pytest.mark.parametrize("box", [(0.15, 0.2, 0.85, 0.9), (0.0, 0.0, 1.0, 1.0), (0.25, 0.5, 0.5, 1)])
def test_evidence_is_what_its_definition_says(box):
    prob = np.random.default_rng(5).random((8, 8))
    found = evidence(prob, np.array(box), 0.2)
    assert found == pytest.approx(slow_evidence(prob.tolist(), box, 0.2))
    assert tuple(found) == EVIDENCE


def test_boxes_together_have_the_evidence_of_each_alone():
    rng = np.random.default_rng(11)
    prob, low = rng.random((5, 9, 9)), rng.random((5, 2)) / 2
    box, overlap = np.hstack([low, low + 0.4]), rng.random(5)
    together = evidence_of_all(prob, box, overlap)
    for place, single in enumerate(zip(prob, box, overlap, strict=True)):
        alone = evidence(*single)
        assert alone == {name: pytest.approx(value[place]) for name, value in together.items()}


def test_no_probability_outside_the_box_is_evidence():
    prob = np.random.default_rng(6).random((16, 16))
    other = prob.copy()
    other[:4], other[12:], other[:, :4], other[:, 12:] = 0.9, 0.1, 0.2, 0.8
    box = np.array([0.25, 0.25, 0.75, 0.75])
    assert evidence(prob, box) == evidence(other, box)


def test_a_box_that_shares_its_pixels_is_less_sure_up_to_a_half():
    given = np.full((8, 8), 0.8), np.array([0.1, 0.1, 0.9, 0.9])
    alone, near, nearer, twice = (
        predict_iou(evidence(*given, overlap)) for overlap in (0.0, 0.2, 0.5, 1.0)
    )
    assert alone > near > nearer == twice


def test_a_flipped_crop_has_equal_evidence():
    prob = np.random.default_rng(7).random((12, 12))
    turned = evidence(prob[:, ::-1], np.array([0.3, 0.1, 0.9, 0.6]))
    plain = evidence(prob, np.array([0.1, 0.1, 0.7, 0.6]))
    assert turned == pytest.approx(plain)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("width", [1e-9, 0.5])
def test_flat_probabilities_and_thin_boxes_give_numbers(value, width):
    found = evidence(np.full((4, 4), value), np.array([0.4, 0.4, 0.4 + width, 0.9]))
    assert all(math.isfinite(number) for number in found.values())
    assert 0 <= predict_iou(found) <= 1


def test_the_shipped_weights_use_evidence_there_is_and_prefer_what_is_certain():
    assert {"intercept", "certainty"} < set(WEIGHTS) <= {"intercept", *EVIDENCE}
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    distance = np.hypot(x, y)
    box = np.array([0.1, 0.1, 0.9, 0.9])
    sharp = predict_iou(evidence(1 / (1 + np.exp(40 * (distance - 0.8))), box))
    vague = predict_iou(evidence(1 / (1 + np.exp(4 * (distance - 0.8))), box))
    assert sharp > vague + 0.1


def brute_auroc(score, poor):
    pairs = [
        1.0 if good_score > bad_score else 0.5 if good_score == bad_score else 0.0
        for bad_score, is_bad in zip(score, poor, strict=True)
        for good_score, other_is_bad in zip(score, poor, strict=True)
        if is_bad and not other_is_bad
    ]
    return sum(pairs) / len(pairs) if pairs else None


@given(FEW, st.randoms(use_true_random=False))
def test_auroc_counts_the_pairs_in_the_right_order(score, random):
    poor = [random.random() < 0.5 for _ in score]
    found = auroc(np.array(score), np.array(poor))
    wanted = brute_auroc(score, poor)
    assert found == (wanted if wanted is None else pytest.approx(wanted, abs=1e-12))


def slow_ranks(values):
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


@given(FEW, st.randoms(use_true_random=False))
def test_spearman_is_the_correlation_of_mean_ranks(a, random):
    b = [random.choice(a) for _ in a]
    found = spearman(np.array(a), np.array(b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        wanted = np.corrcoef(slow_ranks(a), slow_ranks(b))[0, 1]
        assert found == pytest.approx(wanted, abs=1e-9)


def test_a_perfect_score_leaves_nothing_to_wish():
    iou = np.linspace(0.05, 0.95, 10)
    found = measure_score(iou, iou)
    assert found["spearman"] == pytest.approx(1)
    assert found["auroc"] == 1
    assert found["gap"] == pytest.approx(0, abs=1e-12)
    assert [row["masks"] for row in found["bins"]] == [1] * 10
    # Without 0.05 the mean goes from 0.5 to 0.55.
    assert found["gain"] == pytest.approx({"0.1": 0.05, "0.2": 0.1, "0.3": 0.15})


def test_the_gap_is_the_mean_distance_from_the_diagonal():
    score = np.array([0.05, 0.08, 0.95, 1.0])
    iou = np.array([0.1, 0.3, 0.5, 0.7])
    found = measure_score(score, iou)
    low, high = found["bins"]
    assert (low["low"], low["high"], low["masks"]) == (0.0, 0.1, 2)
    assert (low["score"], low["iou"]) == (pytest.approx(0.065), pytest.approx(0.2))
    assert (high["score"], high["iou"]) == (pytest.approx(0.975), pytest.approx(0.6))
    assert found["gap"] == pytest.approx((0.135 + 0.375) / 2)


def test_no_masks_at_all_give_no_numbers():
    found = measure_score(np.zeros(0), np.zeros(0))
    assert (found["spearman"], found["auroc"], found["gap"], found["mean_iou"]) == (None,) * 4
    assert (found["gain"], found["bins"]) == ({}, [])
