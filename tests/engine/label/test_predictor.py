"""The networks as `label` uses them; `test_label.py` compares whole masks with a plain loop."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from malcli.data.crops.label_crops import image_rois
from malcli.engine.label.predictor import LabelRule, Predictor
from malcli.engine.machine import processes
from malcli.model.checkpoint import load_checkpoint

HW = (90, 120)
CPU = torch.device("cpu")


@pytest.fixture
def predictor(tiny):
    rule = LabelRule("student", "none", "crf", (0.5,) * 3, 64, 0.4, 0.0, 10**9)
    return Predictor(load_checkpoint(tiny), rule, CPU, "fp32")


def smooth_noise(rng, count, side):
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack(
        [cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC) for one in coarse]
    )


@pytest.mark.parametrize("edge", [False, True])
def test_refining_where_boxes_are_equals_refining_whole_crops(predictor, monkeypatch, edge):
    rng = np.random.default_rng(3)
    image = np.zeros((*HW, 3), dtype=np.uint8)
    sides = rng.uniform(4, 70, (12, 2))
    corners = rng.uniform(-20 * edge, 20, (12, 2))
    rois = image_rois(image, np.arange(12), np.concatenate([corners, sides], axis=1), 0.4)
    crops_BSS3 = smooth_noise(rng, 12, 64)
    part = predictor._needed(rois, 64)
    assert edge or all(0 < one.stop - one.start < 64 for one in part)
    found = predictor(crops_BSS3, rois)[1]
    monkeypatch.setattr(predictor, "_needed", lambda rois, side: (slice(0, side),) * 2)
    whole = predictor(crops_BSS3, rois)[1]
    assert 0.05 < whole.mean() < 0.95
    assert torch.equal(found, whole)


@pytest.mark.parametrize("capability", [None, (7, 0), (7, 5), (8, 0), (9, 0)])
def test_compiling_is_left_out_with_a_line_where_it_cannot_pay(monkeypatch, capsys, capability):
    device = torch.device("cuda" if capability else "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    pays = capability is not None and capability >= (8, 0)
    assert processes.choose_compile(True, device) == pays
    assert ("--compile: left out" in capsys.readouterr().err) != pays
    assert not processes.choose_compile(False, device)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "epsilon"),
    [({}, 0.0), ({"preset": "released"}, 1e-6), ({"crf_epsilon": 1e-3}, 1e-3)],
)
def test_the_mean_field_divides_as_where_the_labeler_comes_from(tiny, settings, epsilon):
    checkpoint = dataclasses.replace(load_checkpoint(tiny), settings=settings)
    rule = LabelRule("student", "none", "crf", (0.5,) * 3, 64, 0.4, 0.0, 10**9)
    assert Predictor(checkpoint, rule, CPU, "fp32").crf["epsilon"] == epsilon


@pytest.mark.parametrize("network", ["student", "mean"])
def test_every_network_that_is_used_is_compiled(tiny, monkeypatch, network):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    rule = LabelRule(network, "none", "none", (0.5,) * 3, 64, 0.4, 0.0, 10**9, smaller_crops=(32,))
    Predictor(load_checkpoint(tiny), rule, CPU, "fp32")
    assert compiled == []
    made = Predictor(load_checkpoint(tiny), rule, CPU, "fp32", compiled=True)
    used = [one for some in made.networks.values() for one in some]
    assert len(used) == {"student": 2, "mean": 4}[network]
    assert {id(one) for one in compiled} == {id(one) for one in used}
