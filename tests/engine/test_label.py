"""`label` against a plain loop, and against itself cut, killed, sharded and repeated."""

import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.config import LabelConfig
from malcli.data.formats import open_boxes
from malcli.engine import inference, parts
from malcli.engine.label import label
from malcli.engine.parts import PartFolder
from malcli.engine.predictor import LabelRule, Predictor
from malcli.errors import (
    CheckpointError,
    ConfigError,
    DataFormatError,
    Interrupted,
    MissingImageError,
    OutputError,
    RunError,
)
from malcli.model import checkpoint as checkpoints
from malcli.model import locate
from malcli.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from malcli.model.labeler import Architecture, build_labeler
from malcli.records import records_of

ARCHITECTURE = Architecture(
    encoder="timm/test_vit.r160_in1k",
    decoder="attention",
    crop_size=64,
    channels=8,
    key_pool="mean",
    key_layers=2,
    upsample_before=4,
    size_scaling=True,
)
H, W = 72, 96
PART_BOXES = 6


def random_labeler(seed):
    torch.manual_seed(seed)
    return build_labeler(ARCHITECTURE).eval()


def covers_half(labeler):
    """Whether it finds foreground in 30 to 70 % of noise, for boxes of each size."""
    noise = torch.randint(0, 256, (12, 3, ARCHITECTURE.crop_size, ARCHITECTURE.crop_size))
    with torch.no_grad():
        logits = labeler(labeler.normalise(noise), torch.arange(12) % 3)
    share = (logits > 0).float().mean(dim=(1, 2)).view(4, 3).mean(dim=0)
    return bool(((share > 0.3) & (share < 0.7)).all())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A labeler of random values whose masks cover about half of their boxes."""
    networks = list(islice(filter(covers_half, map(random_labeler, range(100))), 2))
    path = tmp_path_factory.mktemp("labeler") / "tiny.safetensors"
    save_checkpoint(Checkpoint(*networks, ARCHITECTURE, (0.5, 0.5, 0.5)), path)
    return path


@pytest.fixture(scope="module")
def data(scenes, tmp_path_factory):
    """The drawn scenes with every kind of record that label must not lose, out of order."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    for path in scenes.images.iterdir():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    source = json.loads(scenes.boxes.read_text())
    whole = next(scenes.images.iterdir()).read_bytes()
    (folder / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 9)).save(folder / "images" / "small.png")
    images = source["images"]
    images += [
        {"id": 900 + i, "file_name": name, "height": H, "width": W}
        for i, name in enumerate(("gone.png", "cut.png", "small.png", "../tiny.png"))
    ]
    here, category = images[0]["id"], source["categories"][0]["id"]

    def box(number, image, bbox, **extra):
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": bbox,
            **extra,
        }

    annotations = source["annotations"] + [
        box(1001, here, [1, 1, 20, 20], iscrowd=1, area=5.5),
        box(1002, 424242, [1, 1, 20, 20], area=7),
        box(1003, here, [1, 1, 0, 20]),
        box(1004, here, None),
        {"id": 1005, "image_id": here, "category_id": category, "note": "no box"},
        box(1006, here, [500, 1, 20, 20]),
        box(1007, 900, [1, 1, 20, 20], area=3),
        box(1008, 901, [1, 1, 20, 20], segmentation=[[0, 0, 5, 0, 5, 5]]),
        box(1009, 902, [1, 1, 20, 20]),
        box(1010, 903, [1, 1, 20, 20]),
        box(1011, here, [-5.5, 30.2, 30.7, 90], attributes={"a": [1, None, "é"]}, score=0.25),
        box(1012, here, [-5.5, 30.2, 30.7, 90], malcli_score=0.9, malcli_status="ok"),
        {**box(1013, here, [90.5, 60, 5.5, 12]), "category_id": 777},
        box(1014, here, [3, 4, 0.2, 0.2], segmentation={"size": [1, 1], "counts": "1"}),
    ]
    random.Random(0).shuffle(annotations)
    path = folder / "boxes_x.json"
    text = json.dumps(
        {"annotations": annotations, "licenses": [], **source}
        | {"images": images, "annotations": annotations, "info": {"by": "hand"}}
    )
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_BOXES", PART_BOXES)


@pytest.fixture
def job(data, tiny, tmp_path):
    """Returns a job's settings with changes."""

    def settings(**changes):
        values = {
            "boxes": data,
            "checkpoint": tiny,
            "out": tmp_path / "masks.json",
            "device": "cpu",
        }
        return LabelConfig(**values | changes)

    return settings


@pytest.fixture(scope="module")
def reference(data, tiny, tmp_path_factory):
    """What one uninterrupted process gives: {suffix: output}, with the parts of every test."""
    outputs = {}
    before, parts.PART_BOXES = parts.PART_BOXES, PART_BOXES
    for suffix in (".json", ".parquet"):
        out = tmp_path_factory.mktemp("reference") / f"masks{suffix}"
        result = label(LabelConfig(boxes=data, checkpoint=tiny, out=out, device="cpu"))
        assert result.merged
        outputs[suffix] = out
    parts.PART_BOXES = before
    return outputs


def annotations_of(path):
    return json.loads(path.read_text())["annotations"]


def same_files(one, other):
    names = [""] if one.suffix == ".json" else ["", ".images"]
    pairs = [(one.with_suffix(n + one.suffix), other.with_suffix(n + other.suffix)) for n in names]
    return all(a.read_bytes() == b.read_bytes() for a, b in pairs)


SKIPPED = {
    1001: "crowd",
    1002: "no-image",
    1003: "bad-box",
    1004: "bad-box",
    1005: "bad-box",
    1006: "bad-box",
    1007: "no-image",
    1008: "bad-image",
    1009: "bad-image",
    1010: "no-image",
}


def test_every_annotation_comes_back_in_order_with_its_keys(data, reference):
    given, made = annotations_of(data), annotations_of(reference[".json"])
    assert [one["id"] for one in made] == [one["id"] for one in given]
    ours = {"segmentation", "area", "malcli_score", "malcli_status"}
    for before, after in zip(given, made, strict=True):
        assert {k: v for k, v in after.items() if k not in ours} == {
            k: v for k, v in before.items() if k not in ours
        }


def test_skipped_boxes_have_a_reason_and_nothing_else(data, reference):
    given = {one["id"]: one for one in annotations_of(data)}
    made = {one["id"]: one for one in annotations_of(reference[".json"])}
    found = {
        i: one["malcli_status"] for i, one in made.items() if "skipped" in one["malcli_status"]
    }
    assert found == {number: f"skipped:{why}" for number, why in SKIPPED.items()}
    for number in SKIPPED:
        assert not {"segmentation", "malcli_score"} & made[number].keys()
        assert made[number].get("area") == given[number].get("area")


def test_labelled_boxes_have_mask_area_and_score_inside_their_box(reference):
    made = annotations_of(reference[".json"])
    labelled = [one for one in made if one["malcli_status"] == "ok"]
    assert len(labelled) > 12
    for one in labelled:
        mask = coco_mask.decode(one["segmentation"])
        assert mask.shape == (H, W)
        assert one["area"] == mask.sum() > 0
        assert isinstance(one["segmentation"]["counts"], str)
        assert 0.5 < one["malcli_score"] <= 1
        x, y, w, h = one["bbox"]
        rows, columns = np.nonzero(mask)
        assert np.floor(x) <= columns.min() <= columns.max() < np.ceil(x + w)
        assert np.floor(y) <= rows.min() <= rows.max() < np.ceil(y + h)


def test_masks_equal_a_plain_loop_over_boxes(data, tiny, job, tmp_path):
    label(job(refine="none"))
    labeler = load_checkpoint(tiny).student
    names = {one["id"]: one["file_name"] for one in json.loads(data.read_text())["images"]}
    for one in annotations_of(tmp_path / "masks.json"):
        if "segmentation" not in one:
            continue
        image = np.asarray(Image.open(data.parent / "images" / names[one["image_id"]]))
        x, y, w, h = one["bbox"]
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, W), min(y + h, H)
        left, right = int(np.floor(x0 - 0.1 * (x1 - x0))), int(np.ceil(x1 + 0.1 * (x1 - x0)))
        top, bottom = int(np.floor(y0 - 0.1 * (y1 - y0))), int(np.ceil(y1 + 0.1 * (y1 - y0)))
        padded = cv2.copyMakeBorder(image, 99, 99, 99, 99, cv2.BORDER_REFLECT_101)
        patch = padded[top + 99 : bottom + 99, left + 99 : right + 99]
        crop = resized(patch, 64, 64, cv2.INTER_CUBIC)
        tensor = torch.from_numpy(crop).permute(2, 0, 1)[None]
        size = torch.tensor([0 if w * h < 1024 else 1 if w * h < 9216 else 2])
        with torch.no_grad():
            image_BCSS = labeler.normalise(tensor)
            logits = (labeler(image_BCSS, size) + labeler(image_BCSS.flip(-1), size).flip(-1)) / 2
            prob = logits.sigmoid()[0].numpy()
        full = np.zeros((H + 198, W + 198), np.float32)
        pasted = resized(prob, bottom - top, right - left)
        full[top + 99 : bottom + 99, left + 99 : right + 99] = pasted
        full = full[99:-99, 99:-99].copy()
        inside = np.zeros((H, W), bool)
        inside[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
        expected = (full > 0.5) & inside
        mask = coco_mask.decode(one["segmentation"]).astype(bool)
        # A batch of another size may round a probability at the threshold differently.
        assert (mask != expected).sum() <= 2, one
        if expected.any() and (mask == expected).all():
            assert one["malcli_score"] == pytest.approx(full[expected].mean(), abs=1e-5)


def resized(values, height, width, grow=cv2.INTER_LINEAR):
    """Area mean where it shrinks, first; `grow` where it grows."""
    if height < values.shape[0] or width < values.shape[1]:
        size = min(width, values.shape[1]), min(height, values.shape[0])
        values = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(values, (width, height), interpolation=grow)


def test_the_output_says_what_made_it(reference, data, tiny):
    info = json.loads(reference[".json"].read_text())["info"]
    assert info["by"] == "hand"
    stamp = info["malcli"]
    assert stamp["checkpoint"] == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert stamp["boxes"] == hashlib.sha256(data.read_bytes()).hexdigest()
    statuses = [one["malcli_status"] for one in annotations_of(reference[".json"])]
    assert stamp["counts"] == {one: statuses.count(one) for one in sorted(set(statuses))}
    words = json.dumps(stamp)
    assert not any(word in words for word in ("cpu", "batch", "shard", "worker", str(data.parent)))


def test_parquet_says_the_same_as_json(reference):
    table = open_boxes(reference[".parquet"])
    made = {one["id"]: one for one in records_of(table)}
    assert list(made) == [one["id"] for one in annotations_of(reference[".json"])]
    for one in annotations_of(reference[".json"]):
        assert made[one["id"]] == one
    assert table.header["info"] == json.loads(reference[".json"].read_text())["info"]


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_in_any_order_give_the_bytes_of_one_process(job, reference, tmp_path, suffix, count):
    out = tmp_path / f"masks{suffix}"
    order = [*reversed(range(count)), 0]  # the first share a second time, after the merge
    merged = [label(job(out=out, shard=f"{i}/{count}")).merged for i in order]
    assert merged == [False] * (count - 1) + [True, True]
    assert same_files(out, reference[suffix])
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".parts"] == []


def test_an_empty_share_is_no_failure(job, tmp_path):
    result = label(job(shard="400/500"))
    assert (result.merged, result.counts) == (False, {})
    assert list(tmp_path.iterdir()) == []


def test_counts_of_a_share_are_its_own(job, reference):
    counts = [label(job(shard=f"{i}/2")).counts for i in (0, 1)]
    whole = json.loads(reference[".json"].read_text())["info"]["malcli"]["counts"]
    assert sum(counts[0].values()) < sum(whole.values())
    assert counts[1] == whole


@pytest.mark.parametrize("changes", [{"workers": 0}, {"workers": 1}, {"workers": 4}])
def test_threads_do_not_change_the_bytes(job, reference, tmp_path, changes):
    label(job(**changes))
    assert same_files(tmp_path / "masks.json", reference[".json"])


def test_batch_size_changes_no_more_than_a_pixel(job, reference, tmp_path):
    label(job(batch_size="1"))
    made = annotations_of(tmp_path / "masks.json")
    for one, other in zip(made, annotations_of(reference[".json"]), strict=True):
        assert one["malcli_status"] == other["malcli_status"]
        if "segmentation" in one:
            masks = [coco_mask.decode(each["segmentation"]) for each in (one, other)]
            assert (masks[0] != masks[1]).sum() <= 2


def interrupt_after(monkeypatch, count, signum):
    """Send a signal to this process when part number `count` is committed."""
    write = PartFolder.write
    seen = []

    def writing(self, index, outcomes):
        write(self, index, outcomes)
        seen.append(index)
        if len(seen) == count:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(PartFolder, "write", writing)
    return seen


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_finished_parts_and_resuming_gives_the_same_bytes(
    job, reference, tmp_path, monkeypatch, signum, code
):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, signum)
        with pytest.raises(Interrupted) as stopped:
            label(job())
    assert stopped.value.exit_code == code
    assert f"malcli label --device cpu --boxes {job().boxes}" in str(stopped.value)
    assert not (tmp_path / "masks.json").exists()
    assert len(list((tmp_path / "masks.json.parts").glob("part-*.parquet"))) == 2
    seen = interrupt_after(monkeypatch, 0, 0)
    label(job(resume=True))
    assert 0 not in seen
    assert 1 not in seen
    assert same_files(tmp_path / "masks.json", reference[".json"])


def test_a_signal_is_heard_while_the_network_is_at_work(job, monkeypatch):
    def slow(self, crops, rois):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(inference.Predictor, "__call__", slow)
    with pytest.raises(Interrupted) as stopped:
        label(job())
    assert stopped.value.exit_code == 143


KILLED = """
import os, signal
import malcli.engine.parts as parts
import malcli.files as files
parts.PART_BOXES = {part_boxes}
replace, seen = os.replace, []
def dying(source, target):
    seen.append(target)
    if len(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
files.os.replace = dying
from malcli.cli.main import main
main()
"""


def test_kill_9_while_a_part_is_renamed_then_again_gives_the_same_bytes(job, reference, tmp_path):
    config = job()
    code = KILLED.format(part_boxes=PART_BOXES)
    flags = ["label", "--boxes", config.boxes, "--checkpoint", config.checkpoint]
    command = [sys.executable, "-c", code, *flags, "--out", config.out, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "masks.json.parts"
    left = sorted(path.name for path in folder.iterdir())
    assert [name for name in left if name.endswith(".tmp")]
    label(config)
    assert same_files(config.out, reference[".json"])
    assert [path.name for path in tmp_path.iterdir()] == ["masks.json"]


def test_a_damaged_part_is_made_again(job, reference, tmp_path):
    assert not label(job(shard="0/2")).merged
    part = tmp_path / "masks.json.parts" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    assert label(job()).merged
    assert same_files(tmp_path / "masks.json", reference[".json"])


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_a_finished_job_is_left_alone(job, reference, monkeypatch, suffix):
    def refuse(path):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(checkpoints, "load_checkpoint", refuse)
    out = reference[suffix]
    before = {path: path.stat().st_mtime_ns for path in out.parent.iterdir()}
    result = label(job(out=out))
    assert result.merged
    assert result.counts["ok"] > 12
    assert {path: path.stat().st_mtime_ns for path in out.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threshold": "0.6"}, "threshold was not given, now [0.6, 0.6, 0.6]"),
        ({"network": "teacher"}, "network was student, now teacher"),
        ({"limit": 2}, "limit was not given, now 2"),
        ({"crop_size": "32"}, "crop_size was not given, now 32"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_job_is_refused_by_name(job, reference, tmp_path, change, named, finished):
    out = reference[".json"] if finished else tmp_path / "masks.json"
    if not finished:
        label(job(shard="0/2"))
    before = out.read_bytes() if finished else None
    with pytest.raises(OutputError, match="another job") as refused:
        label(job(out=out, **change))
    assert named in str(refused.value)
    assert (out.read_bytes() if finished else None) == before


def test_changed_boxes_and_checkpoints_are_refused_by_name(job, data, tiny, tmp_path):
    label(job(shard="0/2"))
    other_boxes = tmp_path / "boxes.json"
    other_boxes.write_text(data.read_text() + "\n")
    loaded = load_checkpoint(tiny)
    save_checkpoint(dataclasses.replace(loaded, threshold=(0.4,) * 3), tmp_path / "c.safetensors")
    with pytest.raises(OutputError, match="another job: boxes changed; give"):
        label(job(boxes=other_boxes, images=data.parent / "images"))
    with pytest.raises(OutputError, match="another job: checkpoint changed; give"):
        label(job(checkpoint=tmp_path / "c.safetensors"))


def test_overwrite_replaces_another_job_and_its_parts(job, tmp_path):
    out = tmp_path / "masks.json"
    out.write_text("[]")
    with pytest.raises(OutputError, match="no output of malcli label"):
        label(job())
    label(job(overwrite=True, threshold="0.4", shard="0/2"))
    assert out.read_text() == "[]"
    label(job(overwrite=True, threshold="0.6"))
    assert json.loads(out.read_text())["info"]["malcli"]["threshold"] == [0.6] * 3


def test_outputs_that_are_inputs_are_refused(job, data, tiny, tmp_path):
    before = data.read_bytes()
    link = tmp_path / "link.json"
    link.symlink_to(data)
    for out in (data, link):
        with pytest.raises(OutputError, match="also another input"):
            label(job(out=out, overwrite=True))
    assert data.read_bytes() == before
    parquet = tmp_path / "x.parquet"
    for changes in (
        {"review": data},
        {"report": tiny},
        {"review": tmp_path / "masks.json"},
        {"boxes": tmp_path / "x.images.parquet", "out": parquet},
    ):
        with pytest.raises(OutputError, match="also another input"):
            label(job(**changes))
    run = tmp_path / "run.json"
    run.mkdir()
    (run / "checkpoint.safetensors").write_bytes(tiny.read_bytes())
    with pytest.raises(OutputError, match="is a folder"):
        label(job(out=run))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"out": None}, ConfigError, "--out is required"),
        ({"out": Path("masks.txt")}, ConfigError, "must end in .json or .parquet"),
        ({"threshold": "2"}, ConfigError, "--threshold"),
        ({"threshold": "0.1,0.2"}, ConfigError, "--threshold"),
        ({"shard": "3/3"}, ConfigError, "from 0 to N - 1"),
        ({"shard": "a/3"}, ConfigError, "give I/N"),
        ({"shard": "1"}, ConfigError, "give I/N"),
        ({"batch_size": "0"}, ConfigError, "--batch-size '0'"),
        ({"crop_size": "huge"}, ConfigError, "--crop-size 'huge'"),
        ({"crop_size": "63"}, ConfigError, "multiple of the encoder's stride"),
        ({"categories": "nothing-like-it"}, ConfigError, "has no category"),
        ({"boxes": Path("missing.json")}, DataFormatError, "missing.json"),
        ({"checkpoint": Path("missing.safetensors")}, CheckpointError, "no such file"),
        ({"images": Path("nowhere")}, MissingImageError, "nowhere"),
    ],
)
def test_wrong_settings_end_before_any_work(job, tmp_path, changes, error, words):
    with pytest.raises(error, match=words) as refused:
        label(job(**changes))
    assert refused.value.exit_code == 2
    assert not list(tmp_path.glob("*.json"))


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_parts_and_the_job_goes_on_later(
    job, reference, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        write, written = pq.write_table, []

        def filling(table, *args, **kwargs):
            written.append(table)
            return full_disk() if len(written) == 3 else write(table, *args, **kwargs)

        patch.setattr(parts.pq, "write_table", filling)
        with pytest.raises(RunError, match="no space left") as failed:
            label(job())
    assert failed.value.exit_code == 1
    names = sorted(path.name for path in (tmp_path / "masks.json.parts").iterdir())
    assert names == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
    with monkeypatch.context() as patch:
        patch.setattr(parts.pa.ipc, "new_stream", full_disk)
        with pytest.raises(RunError, match="no space left"):
            label(job())
    assert not [p for p in (tmp_path / "masks.json.parts").iterdir() if "merge" in p.name]
    label(job(merge=True))
    assert same_files(tmp_path / "masks.json", reference[".json"])


def test_merge_needs_all_parts_and_no_model(job, reference, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="no part is there"):
        label(job(merge=True))
    label(job(shard="0/3"))
    monkeypatch.setattr(locate, "locate_checkpoint", full_disk)
    with pytest.raises(RunError, match=r"parts are missing: 1, 2") as failed:
        label(LabelConfig(boxes=job().boxes, out=job().out, merge=True))
    assert failed.value.exit_code == 1
    monkeypatch.undo()
    monkeypatch.setattr(parts, "PART_BOXES", PART_BOXES)
    for share in ("1/3", "2/3"):
        label(job(shard=share))
    assert label(job(merge=True)).merged  # a second merge finds the job finished
    assert same_files(tmp_path / "masks.json", reference[".json"])


def test_two_merges_at_once_are_harmless(job, reference, tmp_path, monkeypatch):
    in_order = PartFolder.in_order
    inner = []

    def overtaken(self, scratch):
        """Another process merges, and removes the parts, while this one reads them."""
        if not inner:
            inner.append(True)
            inner.append(label(job(merge=True)))
        yield from in_order(self, scratch)

    monkeypatch.setattr(PartFolder, "in_order", overtaken)
    assert label(job()).merged
    assert inner[1].merged
    assert same_files(tmp_path / "masks.json", reference[".json"])
    assert not (tmp_path / "masks.json.parts").exists()


def test_limit_leaves_only_the_first_images(job, data, tmp_path):
    label(job(limit=2))
    made = json.loads((tmp_path / "masks.json").read_text())
    kept = [one["id"] for one in json.loads(data.read_text())["images"][:2]]
    assert [one["id"] for one in made["images"]] == kept
    wanted = [one["id"] for one in annotations_of(data) if one["image_id"] in kept]
    assert [one["id"] for one in made["annotations"]] == wanted


def test_no_boxes_at_all_give_an_empty_list(job, data, tmp_path):
    empty = tmp_path / "none.json"
    empty.write_text(json.dumps(json.loads(data.read_text()) | {"annotations": []}))
    result = label(job(boxes=empty, images=data.parent / "images"))
    assert (result.merged, result.counts) == (True, {})
    assert annotations_of(tmp_path / "masks.json") == []


def out_of_memory_above(monkeypatch, limit):
    """Make the network fail for batches above a limit; returns the sizes that were tried."""
    predict, tried = inference.Predictor.__call__, []

    def failing(self, crops, rois):
        tried.append(len(rois))
        if len(rois) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, crops, rois)

    monkeypatch.setattr(inference.Predictor, "__call__", failing)
    return tried


def test_memory_that_runs_out_halves_the_batch_for_all_later_starts(job, tmp_path, monkeypatch):
    tried = out_of_memory_above(monkeypatch, 2)
    label(job(batch_size="4", shard="0/2"))
    assert max(tried) == 4
    manifest = json.loads((tmp_path / "masks.json.parts" / "manifest.json").read_text())
    assert manifest["batch_size"] == 2
    del tried[:]
    assert label(job(batch_size="4")).merged
    assert max(tried) == 2


def test_memory_for_not_even_one_crop_skips_the_box(job, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    counts = label(job()).counts
    assert "ok" not in counts
    assert counts["skipped:memory"] > 12


def test_a_network_without_numbers_stops_the_run(job, monkeypatch):
    predict = inference.Predictor.__call__
    monkeypatch.setattr(
        inference.Predictor, "__call__", lambda *args: [predict(*args)[0] * float("nan")]
    )
    with pytest.raises(RunError, match="no numbers"):
        label(job())


def test_a_score_below_the_least_leaves_the_mask_empty(job, tmp_path):
    label(job(min_score=0.99))
    made = [one for one in annotations_of(tmp_path / "masks.json") if "segmentation" in one]
    empty = [one for one in made if one["malcli_status"] == "empty"]
    assert len(empty) > 5
    for one in empty:
        assert (one["area"], one["malcli_score"]) == (0, 0.0)
        assert coco_mask.decode(one["segmentation"]).shape == (H, W)
        assert coco_mask.area(one["segmentation"]) == 0


def test_thresholds_go_by_the_size_of_the_box_as_given(job, tmp_path):
    label(job(threshold="0,0.999,0.999"))
    for one in annotations_of(tmp_path / "masks.json"):
        if "segmentation" in one:
            small = one["bbox"][2] * one["bbox"][3] < 1024
            assert one["malcli_status"] == ("ok" if small else "empty")


def test_the_mean_of_networks_and_views_is_taken_over_logits(job, tiny, data, tmp_path):
    loaded = load_checkpoint(tiny)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    rois = [
        inference.Roi(0, crops[0], np.array([0, 0, 64, 64]), np.array([4, 4, 60, 60]), size)
        for size in (0, 2)
    ]
    base = LabelRule("mean", "flip", "none", (0.5,) * 3, 64, 0.6, 0.0, 10**6)
    found = Predictor(loaded, base, torch.device("cpu"), "fp32")(crops, rois)[0]
    image = torch.from_numpy(crops).permute(0, 3, 1, 2)
    size = torch.tensor([0, 2])
    logits = []
    for network in (loaded.student, loaded.teacher):
        normal = network.normalise(image)
        logits += [network(normal, size), network(normal.flip(-1), size).flip(-1)]
    assert torch.allclose(found, (sum(logits) / 4).sigmoid(), atol=1e-5)


def test_refining_keeps_masks_in_their_boxes_and_changes_them(job, tmp_path):
    label(job(refine="crf"))
    label(job(refine="none", out=tmp_path / "plain.json"))
    changed = 0
    plain = annotations_of(tmp_path / "plain.json")
    for one, other in zip(annotations_of(tmp_path / "masks.json"), plain, strict=True):
        if one["malcli_status"] == "ok":
            mask = coco_mask.decode(one["segmentation"])
            x, y, w, h = one["bbox"]
            outside = mask.copy()
            outside[
                max(int(np.floor(y)), 0) : int(np.ceil(y + h)),
                max(int(np.floor(x)), 0) : int(np.ceil(x + w)),
            ] = 0
            assert not outside.any()
            changed += one["segmentation"] != other["segmentation"]
    assert changed > 5


def test_another_crop_size_and_bf16_work(job, tmp_path):
    result = label(job(crop_size="32", precision="bf16"))
    stamp = json.loads((tmp_path / "masks.json").read_text())["info"]["malcli"]
    assert (stamp["crop_size"], stamp["precision"]) == (32, "bf16")
    assert result.counts["ok"] > 10


def test_a_dry_run_counts_what_would_be_done_and_writes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "load_checkpoint", full_disk)
    result = label(LabelConfig(boxes=data, dry_run=True))
    assert result.counts["ok"] > 12
    assert sum(result.counts.values()) == len(annotations_of(data))
    # The cut file has a whole header, so only decoding it would tell.
    assert result.counts["skipped:bad-image"] == 1
    assert result.counts["skipped:no-image"] == 3
    assert result.counts["skipped:bad-box"] == 4
    assert result.counts["skipped:crowd"] == 1
    assert result.to_json()["problems"]["equal-box"]["count"] == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_strict_ends_before_labelling_where_headers_tell(job, tmp_path, dry_run):
    with pytest.raises(DataFormatError, match=r"--strict: .*4 bad-box"):
        label(job(strict=True, dry_run=dry_run))
    assert list(tmp_path.iterdir()) == []


def test_strict_allows_crowd_but_no_image_that_fails_while_it_is_decoded(job, data, tmp_path):
    given = json.loads(data.read_text())
    kept = [one for one in given["annotations"] if one["id"] <= 1001]
    first = [one for one in given["images"] if one["id"] < 900]
    good = tmp_path / "good.json"
    good.write_text(json.dumps(given | {"annotations": kept, "images": first}))
    assert label(job(boxes=good, images=data.parent / "images", strict=True)).merged
    cut = [one for one in given["images"] if one["file_name"] == "cut.png"]
    late = [one for one in given["annotations"] if one["id"] == 1008]
    good.write_text(json.dumps(given | {"annotations": kept + late, "images": first + cut}))
    out = tmp_path / "late.json"
    with pytest.raises(DataFormatError, match="1 boxes skipped:bad-image"):
        label(job(boxes=good, images=data.parent / "images", strict=True, out=out))
    assert not out.exists()


def test_the_result_is_plain_values(reference, job):
    result = label(job())
    plain = json.loads(json.dumps(result.to_json()))
    stages = ["read", "decode", "crop", "network", "paste", "encode", "write", "wait"]
    assert list(plain["seconds"]) == stages
    # Before rounding: of so few boxes some stages take less than a millisecond.
    assert all(result.seconds[stage] > 0 for stage in stages if stage != "wait")
    assert plain["boxes_per_s"] > 0
    assert plain["peak_memory_mb"] > 10
    assert plain["out"] == str(job().out)
    assert plain["counts"]["ok"] > 12


def test_review_and_report_are_written_for_a_finished_job_too(job, tmp_path):
    label(job())
    before = (tmp_path / "masks.json").stat().st_mtime_ns
    result = label(job(review=tmp_path / "r.csv", report=tmp_path / "r.html"))
    rows = (tmp_path / "r.csv").read_text().splitlines()
    assert len(rows) == 1 + result.counts["ok"] + result.counts.get("empty", 0)
    assert (tmp_path / "r.html").read_text().count("<figure>") > 20
    assert (tmp_path / "masks.json").stat().st_mtime_ns == before


def test_images_that_cannot_be_read_are_named_with_their_number(job):
    problems = label(job()).to_json()["problems"]
    assert problems["no-image-file"]["count"] == 2
    assert problems["bad-image-file"]["count"] == 2
    assert any("cut.png" in text for text in problems["bad-image-file"]["examples"])
