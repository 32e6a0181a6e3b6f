"""The charts of eval's report, read back from their HTML."""

import re

import numpy as np
import pytest

from malcli.report.charts import Category, category_bars, iou_histograms, reliability


def test_categories_stand_best_first_with_values_that_sort():
    html = category_bars([Category("cat", 0.25, 1200), Category("<dog>", 0.75, 3)])
    assert re.findall("<tr><td>(.*?)</td>", html) == ["&lt;dog&gt;", "cat"]
    assert re.findall("data-value='(.*?)'", html) == ["0.750000", "3", "0.250000", "1200"]
    assert "1,200" in html
    assert "width:75.0%" in html
    # Off until the script can sort; buttons, so that the keyboard reaches them.
    assert html.count("<button type='button' disabled>") == 3
    assert category_bars([]) == ""


def test_each_size_has_its_histogram_and_says_how_many():
    small = {"masks": np.array([0.1, 0.1, 0.6]), "ellipse": np.array([0.5, 0.5, 0.5])}
    whole = {name: np.append(values, 0.9) for name, values in small.items()}
    html = iou_histograms({"all": whole, "small": small})
    assert re.findall("<h3>(.*?)</h3>", html) == ["all (4 instances)", "small (3 instances)"]
    assert re.findall("IoU 0.10–0.15: (.*?) %", html) == ["50.0", "66.7"]
    assert html.count("<polyline") == 2
    assert "masks as bars, ellipse dashed." in html


def test_a_reliability_diagram_has_a_bar_for_each_tenth_that_has_masks():
    bins = [
        {"low": 0.2, "high": 0.3, "masks": 1, "score": 0.25, "iou": 0.5},
        {"low": 0.9, "high": 1.0, "masks": 9, "score": 0.95, "iou": 1.0},
    ]
    chart = reliability({"bins": bins})
    bars = re.findall(r"<rect x='([\d.]+)' y='([\d.]+)' .*? height='([\d.]+)'", chart)
    assert len(bars) == 2
    assert float(bars[1][1]) == 0
    assert float(bars[0][2]) == pytest.approx(float(bars[1][2]) / 2)
    assert "score 0.9–1.0: 9 masks, IoU 1.000" in chart
