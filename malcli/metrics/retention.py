"""Retention: what share of a model's AP on human masks the same model keeps on malcli's.

Works on AP values and their resamples; knows nothing of masks or files.
Source: Sec. 4.1, "retention rate".
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from malcli.metrics.miou import Bounded

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def retention(
    predicted: Mapping[str, float | None],
    oracle: Mapping[str, float | None],
    predicted_draws: Mapping[str, NDArray[np.float64]],
    oracle_draws: Mapping[str, NDArray[np.float64]],
) -> dict[str, Bounded]:
    """Return 100 * AP(predicted) / AP(oracle) for every AP, with a 95 % interval.

    Args:
        predicted: AP of the model trained on malcli's masks, in [0, 1] or None.
        oracle: AP of the model trained on human masks.
        predicted_draws: {name: (R,)} the same on resampled images, NaN where undefined.
        oracle_draws: On the same resamples, so that the images' difficulty cancels.

    Returns:
        {name: {value, low, high}}, per cent; None where the oracle's AP is 0 or undefined.
    """
    result: dict[str, Bounded] = {}
    for name in AP_NAMES:
        low, high = _interval(predicted_draws[name], oracle_draws[name])
        result[name] = {"value": _ratio(predicted[name], oracle[name]), "low": low, "high": high}
    return result


def _ratio(predicted: float | None, oracle: float | None) -> float | None:
    # Divided first: 100 * a / a is 99.99999999999999 for some a.
    return 100 * (predicted / oracle) if predicted is not None and oracle else None


def _interval(
    predicted: NDArray[np.float64], oracle: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    usable = np.isfinite(predicted) & np.isfinite(oracle) & (oracle > 0)
    if not usable.any():
        return None, None
    low, high = 100 * np.percentile(predicted[usable] / oracle[usable], [2.5, 97.5])
    return float(low), float(high)
