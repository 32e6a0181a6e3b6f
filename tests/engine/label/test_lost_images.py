"""`label` where images vanish or memory runs out, and `--retry-skipped`."""

import errno
import json
import os
import shutil
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from malcli.config.label import LabelConfig
from malcli.data.images import decode, health
from malcli.engine.label import mask_maker, pipeline
from malcli.engine.label.command import label
from malcli.engine.label.parts import PartFolder
from malcli.errors import BadImage, ConfigError, DataFormatError, Interrupted, RunError

RETRIED = ("skipped:no-image", "skipped:bad-image", "skipped:memory")


@pytest.fixture
def images(data, tmp_path):
    """The job's images, in a folder that may be harmed."""
    return shutil.copytree(data.parent / "images", tmp_path / "images")


def records(out):
    return {one["id"]: one for one in json.loads(out.read_text())["annotations"]}


@contextmanager
def after_part(monkeypatch, count, act):
    """Act when so many parts are committed."""
    write, seen = PartFolder.write, []

    def writing(self, index, outcomes):
        write(self, index, outcomes)
        seen.append(index)
        if len(seen) == count:
            act()

    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "write", writing)
        yield seen


def test_a_folder_that_vanishes_stops_the_job_before_the_part_is_committed(
    job, images, equals_reference, tmp_path, monkeypatch
):
    away = tmp_path / "away"
    with (
        after_part(monkeypatch, 2, lambda: images.rename(away)) as seen,
        pytest.raises(RunError, match=r"images: the image folder is gone.*start the same command"),
    ):
        label(job(images=images, workers=0))
    assert seen == [0, 1]
    assert not job().out.exists()
    away.rename(images)
    assert label(job(images=images)).merged
    assert equals_reference(job().out)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_share_that_fails_stops_the_job_and_nothing_is_skipped(
    job, images, equals_reference, monkeypatch, number
):
    is_open = type(images).open

    def fail():
        def failing(self, *args, **kwargs):
            if self.suffix == ".png":
                raise OSError(number, os.strerror(number))
            return is_open(self, *args, **kwargs)

        monkeypatch.setattr(type(images), "open", failing)

    with after_part(monkeypatch, 1, fail), pytest.raises(RunError, match="cannot be read") as told:
        label(job(images=images))
    assert told.value.exit_code == 1
    monkeypatch.setattr(type(images), "open", is_open)
    assert label(job(images=images)).merged
    assert equals_reference(job().out)


def test_a_dry_run_stops_at_a_failing_disk_but_reports_any_number_of_missing_images(
    job, images, monkeypatch
):
    monkeypatch.setattr(health, "ENOUGH", 2)
    monkeypatch.setattr(health, "IN_A_ROW", 2)
    for path in sorted(images.iterdir())[3:]:
        path.unlink()
    counts = label(job(images=images, dry_run=True)).counts
    assert counts["skipped:no-image"] > 5
    with pytest.raises(RunError, match="--max-failures"):
        label(job(images=images))
    assert label(job(images=images, max_failures=1.0)).merged
    is_open = type(images).open

    def failing(self, *args, **kwargs):
        if self.suffix == ".png":
            raise OSError(errno.EIO, "Input/output error")
        return is_open(self, *args, **kwargs)

    monkeypatch.setattr(type(images), "open", failing)
    with pytest.raises(RunError, match="Input/output error"):
        label(job(images=images, dry_run=True))


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_retry_gives_what_an_undisturbed_job_gives(
    job, images, equals_reference, tmp_path, suffix, shards
):
    out = tmp_path / f"masks{suffix}"
    names = [path for path in sorted(images.iterdir()) if path.name not in ("cut.png", "small.png")]
    away = tmp_path / "away"
    away.mkdir()
    names[0].rename(away / names[0].name)
    shutil.copy(names[3], away / names[3].name)
    names[3].write_bytes(names[3].read_bytes()[:60])
    result = label(job(images=images, out=out))
    assert result.counts["skipped:no-image"] > 2
    assert not equals_reference(out)
    for path in away.iterdir():
        shutil.copy(path, images / path.name)
    for index in range(shards):
        label(job(images=images, out=out, retry_skipped=True, shard=f"{index}/{shards}"))
    assert equals_reference(out)
    assert not (tmp_path / f"{out.name}.parts").exists()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_retry_labels_the_skipped_boxes_alone(job, images, monkeypatch):
    lost = sorted(images.iterdir())[-1]
    kept = lost.read_bytes()
    lost.unlink()
    label(job(images=images))
    before = records(job().out)
    lost.write_bytes(kept)
    opened, read = [], pipeline.read_image

    def noting(folder, name, *args):
        opened.append(name)
        return read(folder, name, *args)

    monkeypatch.setattr(pipeline, "read_image", noting)
    result = label(job(images=images, retry_skipped=True))
    after = records(job().out)
    again = {number for number, one in before.items() if one["malcli_status"] in RETRIED}
    assert lost.name in opened
    assert set(opened) == {lost.name, "gone.png", "cut.png", "small.png", "../tiny.png"}
    assert result.labelled[0] == len(again)
    assert {number for number in before if before[number] != after[number]} < again
    assert list(before) == list(after)


def test_a_finished_job_names_what_a_retry_would_do_again(job, data, capsys):
    label(job())
    told = capsys.readouterr().err
    counts = json.loads(job().out.read_text())["info"]["malcli"]["counts"]
    count = sum(counts.get(status, 0) for status in RETRIED)
    assert count
    assert f"label: {count} boxes were skipped" in told
    assert f"malcli label --device cpu --boxes {data}" in told
    assert "--retry-skipped" in told


def test_nothing_to_retry_is_said_and_no_failure(scenes, tiny, tmp_path, capsys):
    config = LabelConfig(boxes=scenes.boxes, images=scenes.images, checkpoint=tiny, device="cpu",
                         out=tmp_path / "m.json", limit=2)  # fmt: skip
    label(config)
    before = config.out.stat().st_mtime_ns
    capsys.readouterr()
    again = LabelConfig(**{**vars(config), "retry_skipped": True})
    assert label(again).merged
    assert "nothing to retry" in capsys.readouterr().err
    assert config.out.stat().st_mtime_ns == before
    label(LabelConfig(**{**vars(again), "out": tmp_path / "new.json"}))
    assert "not finished yet" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--merge"):
        label(LabelConfig(**{**vars(again), "merge": True}))


def test_a_retry_that_is_stopped_leaves_the_output_and_goes_on_later(
    job, images, equals_reference, monkeypatch, tmp_path
):
    names = sorted(path for path in images.iterdir() if path.name not in ("cut.png", "small.png"))
    away = tmp_path / "away"
    away.mkdir()
    for path in (names[0], names[-1]):
        path.rename(away / path.name)
    label(job(images=images))
    first = job().out.read_bytes()
    for path in list(away.iterdir()):
        path.rename(images / path.name)
    predict, calls = mask_maker.Predictor.__call__, []

    def stopping(self, crops, rois):
        calls.append(len(rois))
        if len(calls) == 2:
            os.kill(os.getpid(), 15)
        return predict(self, crops, rois)

    with monkeypatch.context() as patch:
        patch.setattr(mask_maker.Predictor, "__call__", stopping)
        with pytest.raises(Interrupted, match="--retry-skipped"):
            label(job(images=images, retry_skipped=True))
    assert job().out.read_bytes() == first
    label(job(images=images, retry_skipped=True))
    assert equals_reference(job().out)


def test_a_retry_whose_merge_fails_says_so(job, images, monkeypatch):
    label(job(images=images))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("malcli.engine.label.parts.os.replace", full)
    with pytest.raises(RunError, match="no space left"):
        label(job(images=images, retry_skipped=True))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_cpu_without_memory_gets_smaller_batches(job, equals_reference, monkeypatch, error):
    predict, tried = mask_maker.Predictor.__call__, []

    def failing(self, crops, rois):
        tried.append(len(rois))
        if len(rois) > 2:
            raise error
        return predict(self, crops, rois)

    monkeypatch.setattr(mask_maker.Predictor, "__call__", failing)
    assert "skipped:memory" not in label(job(batch_size="4")).counts
    assert max(tried) == 4


def test_another_error_of_the_network_is_no_lack_of_memory(job, monkeypatch):
    def failing(self, crops, rois):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(mask_maker.Predictor, "__call__", failing)
    with pytest.raises(RuntimeError, match="mat1"):
        label(job())


@pytest.mark.parametrize("place", ["crop_batch", "mask_of", "read_image"])
def test_memory_that_ends_beside_the_network_skips_the_box_and_a_retry_makes_it(
    job, equals_reference, monkeypatch, place
):
    def failing(*args, **kwargs):
        if place == "read_image":
            raise BadImage("memory", "x.png: there is not enough memory to decode it")
        if place == "mask_of":
            raise cv2.error("OpenCV(4) error: (-4:Insufficient memory) Failed to allocate 9 bytes")
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pipeline if place == "read_image" else mask_maker, place, failing)
        counts = label(job(batch_size="1")).counts
    assert "ok" not in counts
    assert counts["skipped:memory"] > 12
    label(job(retry_skipped=True))
    assert equals_reference(job().out)


def test_a_decoder_without_memory_is_no_bad_image(images, monkeypatch):
    path = sorted(images.iterdir())[-1]

    def failing(*args):
        raise MemoryError

    monkeypatch.setattr(decode, "to_rgb", failing)
    with pytest.raises(BadImage) as caught:
        decode.decode_image(path, decode.read_size(path))
    assert caught.value.status == "memory"


def turn_all(images, orientation):
    """Give every whole photograph an EXIF orientation; returns how many there are."""
    count = 0
    for path in images.iterdir():
        if path.name not in ("cut.png", "small.png"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            with Image.open(path) as image:
                image.load()
                image.save(path, exif=exif)
            count += 1
    return count


def test_exif_that_the_size_does_not_settle_is_counted_and_settled_by_the_setting(
    job, images, equals_reference, tmp_path, capsys
):
    count = turn_all(images, 3)
    result = label(job(images=images))
    assert equals_reference(job().out)  # as stored
    kinds = result.to_json()["problems"]
    assert 0 < kinds["unsettled-exif"]["count"] <= count
    assert f"unsettled-exif: {kinds['unsettled-exif']['count']}" in capsys.readouterr().err
    assert label(job(images=images, dry_run=True)).problems.counts["unsettled-exif"] == count
    with pytest.raises(DataFormatError, match="unsettled-exif"):
        label(job(images=images, dry_run=True, strict=True))
    stored = label(job(images=images, exif="stored", out=tmp_path / "s.json"))
    assert "unsettled-exif" not in stored.problems.counts
    upright = label(job(images=images, exif="upright", out=tmp_path / "u.json"))
    assert "unsettled-exif" not in upright.problems.counts
    masks = [records(tmp_path / name) for name in ("masks.json", "s.json", "u.json")]
    assert masks[0] == masks[1]
    assert masks[0] != masks[2]


def test_yolo_labels_are_of_the_picture_as_shown(tiny, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (48, 72, 3), dtype=np.uint8)
    upright = np.rot90(noise, -1)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(noise).save(tmp_path / "images/a.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "images/b.png")
    for name in "ab":
        (tmp_path / f"labels/{name}.txt").write_text("0 0.4 0.5 0.5 0.3\n0 0.6 0.3 0.2 0.4\n")
    (tmp_path / "data.yaml").write_text("names: [thing]\ntrain: images\n")

    def made(**changes):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        label(LabelConfig(boxes=tmp_path / "data.yaml", out=out, checkpoint=tiny, device="cpu",
                          batch_size="2", **changes))  # fmt: skip
        return json.loads(out.read_text())

    said = made()
    sizes = [(one["height"], one["width"]) for one in said["images"]]
    assert sizes == [(72, 48), (72, 48)]
    masks = [[one["segmentation"], one["bbox"]] for one in said["annotations"]]
    assert masks[:2] == masks[2:]
    stored = made(exif="stored")
    assert (stored["images"][0]["height"], stored["images"][0]["width"]) == (48, 72)


def test_an_out_of_memory_error_of_torch_is_still_one():
    assert mask_maker.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
