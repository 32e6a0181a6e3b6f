"""Retention: ratios of APs."""

import numpy as np
import pytest

from malcli.metrics.retention import AP_NAMES, retention


def test_retention_is_the_ratio_in_per_cent_with_the_interval_of_the_draws():
    predicted, oracle = dict.fromkeys(AP_NAMES, 0.42), dict.fromkeys(AP_NAMES, 0.45)
    rng = np.random.default_rng(0)
    draws = {name: rng.uniform(0.3, 0.5, 101) for name in AP_NAMES}
    scaled = {name: values * 0.9 for name, values in draws.items()}
    found = retention(predicted, oracle, scaled, draws)
    assert list(found) == list(AP_NAMES)
    assert found["AP"]["value"] == pytest.approx(100 * 0.42 / 0.45)
    # The same images are drawn on both sides, so a constant ratio has no spread.
    assert found["AP"]["low"] == pytest.approx(90)
    assert found["AP"]["high"] == pytest.approx(90)


def test_an_oracle_without_ap_leaves_retention_undefined():
    draws = {name: np.array([np.nan, 0.0]) for name in AP_NAMES}
    for oracle in (None, 0.0):
        found = retention(
            dict.fromkeys(AP_NAMES, 0.4), dict.fromkeys(AP_NAMES, oracle), draws, draws
        )
        assert set(found["APs"].values()) == {None}


def test_without_resamples_there_is_a_value_and_no_interval():
    none = {name: np.zeros(0) for name in AP_NAMES}
    found = retention(dict.fromkeys(AP_NAMES, 0.2), dict.fromkeys(AP_NAMES, 0.4), none, none)
    assert found["AP"] == {"value": 50, "low": None, "high": None}


def test_equal_aps_keep_exactly_100_per_cent():
    # 100 * a / a is 99.99999999999999 for about one a in fourteen.
    for ap in np.random.default_rng(0).uniform(0.01, 1.0, 100).tolist():
        same = dict.fromkeys(AP_NAMES, ap)
        draws = {name: np.array([ap, ap / 3, ap / 7]) for name in AP_NAMES}
        found = retention(same, same, draws, draws)
        assert found["AP"] == {"value": 100, "low": 100, "high": 100}
