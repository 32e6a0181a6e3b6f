"""The clustering score against Eq. 6 written out, and which token is foreground."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from malcli.geometry.rle import encode_crop
from malcli.metrics.clustering import clustering_scores, size_intervals, size_means, token_sides
from malcli.metrics.miou import resample_images


def written_out(feature, foreground):
    """Eq. 6, token by token, with Python's own floats."""
    total = 0.0
    for vector, side in zip(feature, foreground, strict=True):
        members = [other for other, its in zip(feature, foreground, strict=True) if its == side]
        centre = [math.fsum(values) / len(members) for values in zip(*members, strict=True)]
        f_norm, c_norm = math.hypot(*vector), math.hypot(*centre)
        total += sum((x / f_norm - y / c_norm) ** 2 for x, y in zip(vector, centre, strict=True))
    return total / len(feature)


def score(feature, foreground):
    features, sides = np.array(feature, dtype=np.float32), np.array(foreground, dtype=bool)
    return float(clustering_scores(features, sides[None])[0])


def test_two_tight_groups_score_zero_whatever_their_lengths():
    feature = [[2, 0], [5, 0], [0, 1], [0, 3]]
    assert score(feature, [1, 1, 0, 0]) == pytest.approx(0, abs=1e-12)


def test_one_feature_everywhere_scores_zero_by_any_mask():
    assert score([[1, 2, 3]] * 4, [1, 0, 1, 0]) == pytest.approx(0, abs=1e-12)


def test_two_orthogonal_vectors_mixed_score_two_minus_root_two():
    # Each centre lies at 45 degrees to its members: |u - c|^2 = 2 - 2 cos 45.
    assert score([[1, 0], [0, 1], [1, 0], [0, 1]], [1, 1, 0, 0]) == pytest.approx(2 - math.sqrt(2))


def test_the_centre_is_the_mean_before_normalisation():
    # (3, 0) and (0, 1) have the mean (1.5, 0.5); that of their directions would be (0.5, 0.5).
    feature, cosine = [[3, 0], [0, 1], [0, 1], [0, 1]], np.array([3, 1]) / math.sqrt(10)
    wanted = ((2 - 2 * cosine[0]) + (2 - 2 * cosine[1])) / 4
    assert score(feature, [1, 1, 0, 0]) == pytest.approx(wanted)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), tokens=st.integers(2, 12), channels=st.integers(1, 6))
def test_the_score_is_equation_6(data, tokens, channels):
    values = st.floats(0.125, 8, width=32) | st.floats(-8, -0.125, width=32)
    feature = data.draw(arrays.arrays(np.float32, (tokens, channels), elements=values))
    sides = data.draw(arrays.arrays(bool, tokens))
    if sides.all() or not sides.any():
        assert math.isnan(score(feature, sides))
        return
    centres = [feature[sides].sum(axis=0), feature[~sides].sum(axis=0)]
    if min(np.linalg.norm(centre) for centre in centres) < 0.1:
        return  # no direction to speak of
    assert score(feature, sides) == pytest.approx(
        written_out(feature.tolist(), sides.tolist()), abs=1e-5
    )


def test_many_divisions_at_once_equal_one_by_one():
    rng = np.random.default_rng(0)
    feature, sides = rng.normal(size=(9, 4)), rng.random((3, 9)) > 0.5
    one_by_one = [clustering_scores(feature, side[None])[0] for side in sides]
    assert clustering_scores(feature, sides) == pytest.approx(one_by_one)


def test_vectors_of_zeros_give_a_number():
    assert score([[0, 0], [1, 0], [0, 1], [0, 1]], [1, 1, 0, 0]) == pytest.approx(1 / 4)


@pytest.mark.parametrize("roi", [(2, 1, 10, 9), (-4, -3, 12, 13), (0, 0, 3, 2), (-6, -6, -1, -1)])
def test_the_pixel_under_the_centre_of_a_token_decides(roi):
    rng = np.random.default_rng(1)
    mask = rng.random((11, 13)) > 0.5
    inside, foreground = token_sides(encode_crop(mask, 0, 0, (11, 13)), np.array(roi), (4, 5))
    for i in range(4):
        for j in range(5):
            y = math.floor(roi[1] + (i + 0.5) * (roi[3] - roi[1]) / 4)
            x = math.floor(roi[0] + (j + 0.5) * (roi[2] - roi[0]) / 5)
            within = 0 <= y < 11 and 0 <= x < 13
            assert inside[i, j] == within
            assert foreground[i, j] == (within and mask[y, x])


def test_means_by_size_and_their_intervals():
    values, size = np.array([0.1, 0.2, 0.6]), np.array([0, 0, 2])
    assert size_means(values, size) == pytest.approx(
        {"all": 0.3, "small": 0.15, "medium": None, "large": 0.6}
    )
    image = np.array([0, 1, 1])
    draws = resample_images(2, 400, 0)
    bounds = size_intervals(values, size, image, draws)
    drawn = [
        np.mean([value for value, row in zip(values, image, strict=True) for _ in range(draw[row])])
        for draw in draws
    ]
    assert bounds["all"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    assert bounds["medium"] is None
    assert bounds["large"] == pytest.approx([0.6, 0.6])  # resamples without it do not count


def test_no_instance_has_no_mean():
    none = np.zeros(0, dtype=np.int64)
    assert set(size_means(np.zeros(0), none).values()) == {None}
    assert set(size_intervals(np.zeros(0), none, none, resample_images(2, 5, 0)).values()) == {None}
