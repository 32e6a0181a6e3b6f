import json

import pytest
import torch

from malcli.engine.label import batch_size, pipeline
from malcli.engine.label.batch_size import largest_batch
from malcli.engine.label.command import label


@pytest.mark.parametrize(("fits", "wanted"), [(1000, 256), (256, 256), (255, 128), (5, 4), (0, 1)])
def test_the_largest_power_of_two_that_fits_is_found(fits, wanted):
    def predict(count):
        if count > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_batch(predict) == wanted


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    def predict(count):
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        largest_batch(predict)


def test_the_first_start_keeps_what_a_gpu_holds_for_all_later_ones(job, tmp_path, monkeypatch):
    predict, tried = pipeline.Predictor.__call__, []

    def failing(self, crops, rois):
        tried.append(len(rois))
        if len(rois) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, crops, rois)

    monkeypatch.setattr(pipeline.Predictor, "__call__", failing)
    # A stand-in for a GPU: only its kind is asked for, the networks stay on the CPU.
    gpu = torch.device("cuda")
    monkeypatch.setattr(batch_size, "choose_device", lambda name: gpu)
    label(job(shard="0/2"))
    assert tried[:6] == [256, 128, 64, 32, 16, 8]
    manifest = json.loads((tmp_path / "masks.json.parts" / "manifest.json").read_text())
    assert manifest["batch_size"] == 8
    del tried[:]
    assert label(job()).merged
    assert max(tried) <= 8


def test_a_given_batch_size_is_not_tried_out(job, monkeypatch):
    def refuse(config, manifest, checkpoint):
        raise AssertionError("tried out")

    monkeypatch.setattr(batch_size, "open_predictor", refuse)
    assert label(job(batch_size="4")).merged
    assert label(job(overwrite=True)).merged  # nor is anything on a CPU
