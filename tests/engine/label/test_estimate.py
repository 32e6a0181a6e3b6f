import json
from dataclasses import replace

import pytest

from malcli.config.label import LabelConfig
from malcli.data.formats.coco import read_coco
from malcli.engine.label import estimate as estimates
from malcli.engine.label.command import label
from malcli.engine.label.estimate import estimate, known_rate, output_bytes, remember_rate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MALCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_rate_of_a_job_is_that_of_the_next_one_like_it(cache, tmp_path):
    config = LabelConfig(boxes=tmp_path / "a.json", crop_size="96")
    assert known_rate(config) is None
    remember_rate(config, 100, 12.5)
    assert known_rate(config) == 12.5
    assert known_rate(LabelConfig(boxes=tmp_path / "b.json", crop_size="96", limit=50)) == 12.5
    assert known_rate(LabelConfig(boxes=tmp_path / "a.json", crop_size="128")) is None
    assert known_rate(LabelConfig(boxes=tmp_path / "a.json", crop_size="96", tta="none")) is None


def test_a_rate_is_of_one_machine_s_work_on_whichever_boxes(cache, tiny, tmp_path):
    config = LabelConfig(boxes=tmp_path / "a.json", device="cpu")
    remember_rate(config, 100, 12.5)
    assert known_rate(replace(config, categories="dog", limit=3, workers=2)) == 12.5
    for change in ({"device": "cuda"}, {"batch_size": "2"}, {"checkpoint": tiny}):
        assert known_rate(replace(config, **change)) is None


def test_few_boxes_no_cache_and_a_damaged_file_give_no_rate(cache, tmp_path, monkeypatch):
    config = LabelConfig(boxes=tmp_path / "a.json")
    remember_rate(config, 5, 12.5)
    assert known_rate(config) is None
    remember_rate(config, 100, 12.5)
    (file,) = (cache / "rates").iterdir()
    for damage in ("", "[]", "{", '{"boxes_per_s": 0}', '{"boxes_per_s": null}', "\0"):
        file.write_text(damage)
        assert known_rate(config) is None
    monkeypatch.setenv("MALCLI_CACHE", "off")
    remember_rate(config, 100, 12.5)
    assert known_rate(config) is None


def test_a_dry_run_says_time_and_disk(cache, data):
    config = LabelConfig(boxes=data, dry_run=True)
    first = label(config).to_json()["estimate"]
    assert (first["boxes_per_s"], first["seconds"]) == (None, None)
    assert first["free_mb"] > first["json_mb"] > first["parquet_mb"] >= 0
    remember_rate(config, 1000, 4.0)
    result = label(config)
    assert result.estimate["seconds"] == round(result.counts["ok"] / 4, 1)
    table = read_coco(data)
    assert estimate(config, table, {"ok": 80}, processes=2)["seconds"] == 10.0


def test_a_job_of_the_same_settings_leaves_its_rate(cache, data, job, monkeypatch):
    monkeypatch.setattr("malcli.engine.label.estimate.ENOUGH", 1)
    given = job(limit=2)
    result = label(given)
    assert known_rate(given) == pytest.approx(result.boxes_per_s, abs=1e-3)


def test_the_size_is_about_that_of_the_output(data, job):
    """Small scenes of thin masks: within a factor of two."""
    given = job()
    label(given)
    written = given.out.stat().st_size
    assert written / 2 < output_bytes(read_coco(data)) < 2 * written


def test_odd_boxes_add_no_odd_sizes(tmp_path):
    images = [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}]
    boxes = [
        {"id": n, "image_id": 1, "bbox": [0, 0, width, 1]} for n, width in enumerate((1e300, -5))
    ]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    assert 0 < output_bytes(read_coco(tmp_path / "a.json")) < 1e6


def test_a_job_that_may_not_fit_says_so_and_starts(data, job, monkeypatch, capsys):
    given = job(limit=1)
    monkeypatch.setattr(estimates, "free_bytes", lambda out: 10)
    label(given)
    assert "0.0 GB free, and the job may need" in capsys.readouterr().err
    assert given.out.exists()
