"""`Labeler` against `label` of the same photograph, boxes and settings."""

import json
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image

import malcli
from malcli.config.label import LabelConfig
from malcli.engine.label import labeler as module
from malcli.engine.label.command import label
from malcli.engine.label.labeler import Labeler
from malcli.engine.label.predictor import Predictor
from malcli.errors import CheckpointError, ConfigError, InputError, MalcliError, RunError
from malcli.geometry.rle import decode_rle
from malcli.model.locate import SHIPPED

# Whole, overlapping, cut at the border, thin, and without an area inside the image.
BOXES = np.array(
    [
        [10, 12, 60, 60],
        [20.5, 8.25, 71.75, 55],
        [22, 10, 70, 50],
        [-30, 20, 40, 110],
        [80.1, 0, 200, 40.3],
        [3, 4, 3.2, 4.2],
        [500, 10, 540, 50],
        [40, 10, 40, 50],
        [50, 50, 30, 60],
    ]
)
NO_AREA = [6, 7, 8]


@pytest.fixture
def photo(scenes):
    return min(scenes.images.iterdir())


@pytest.fixture
def command(photo, tiny, tmp_path):
    """Returns what `label` writes for boxes of the photograph."""

    def run(boxes, **settings):
        with Image.open(photo) as image:
            width, height = image.size
        corners = np.asarray(boxes, dtype=np.float64)
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        records = [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box}
            for n, box in enumerate(xywh.tolist())
        ]
        image = {"id": 1, "file_name": photo.name, "height": height, "width": width}
        categories = [{"id": 1, "name": "a"}]
        path = tmp_path / "boxes.json"
        path.write_text(
            json.dumps({"images": [image], "annotations": records, "categories": categories})
        )
        out = tmp_path / "masks.json"
        values = {"checkpoint": tiny, "device": "cpu", **settings}
        label(LabelConfig(boxes=path, images=photo.parent, out=out, overwrite=True, **values))
        return json.loads(out.read_text())["annotations"]

    return run


def pixels_of(photo):
    with Image.open(photo) as image:
        return np.array(image.convert("RGB"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": "2"},
        {"overlaps": "smaller"},
        {"overlaps": "score", "refine": "none", "tta": "none", "network": "mean"},
        {"threshold": "0.3,0.4,0.6", "margin": 1.0, "min_score": 0.1, "workers": 0},
        {"crop_size": "auto", "refine": "colour"},
        {"geometry": "released", "network": "student", "refine": "none"},
    ],
)
def test_masks_and_scores_are_those_of_the_command_bit_for_bit(photo, tiny, command, settings):
    wanted = command(BOXES, **settings)
    labeler = Labeler.load(tiny, device="cpu", **settings)
    pixels = pixels_of(photo)
    rles, scores = labeler.predict_rle(pixels, BOXES)
    masks, again = labeler.predict(pixels, BOXES)
    assert (masks.dtype, masks.shape) == (bool, (len(BOXES), *pixels.shape[:2]))
    assert np.array_equal(scores, again)
    skipped = [one["id"] for one in wanted if one["malcli_status"] == "skipped:bad-box"]
    assert skipped == NO_AREA
    assert sum(one["malcli_status"] == "ok" for one in wanted) >= 2, wanted
    for one, rle, mask, score in zip(wanted, rles, masks, scores, strict=True):
        assert np.array_equal(decode_rle(rle), mask)
        assert isinstance(rle["counts"], str)
        if one["id"] in NO_AREA:
            assert (mask.any(), score) == (False, 0)
        else:
            assert (one["segmentation"], one["malcli_score"]) == (rle, score)


def test_one_box_and_more_boxes_than_a_batch_holds(photo, tiny, command):
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 50, (40, 2)), rng.uniform(5, 40, (40, 2))
    boxes = np.concatenate([corner, corner + side], axis=1)
    labeler = Labeler.load(tiny, device="cpu")
    assert labeler.batch_size < len(boxes)
    for some in (boxes[:1], boxes):
        rles, scores = labeler.predict_rle(Image.open(photo), some.tolist())
        wanted = command(some)
        assert rles == [one["segmentation"] for one in wanted]
        assert scores.tolist() == [one["malcli_score"] for one in wanted]


def test_the_image_may_be_a_view_and_pillows_of_any_mode(photo, tiny):
    labeler = Labeler.load(tiny, device="cpu", refine="none")
    pixels = pixels_of(photo)
    wanted, _ = labeler.predict_rle(pixels, BOXES)
    assert labeler.predict_rle(pixels[..., ::-1].copy()[..., ::-1], BOXES)[0] == wanted
    with_alpha = Image.fromarray(np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)]))
    assert with_alpha.mode == "RGBA"
    assert labeler.predict_rle(with_alpha, BOXES)[0] == wanted
    grey = pixels[..., 0]
    wanted, _ = labeler.predict_rle(np.repeat(grey[..., None], 3, axis=2), BOXES)
    assert labeler.predict_rle(Image.fromarray(grey), BOXES)[0] == wanted
    deep = Image.fromarray(grey.astype(np.uint16) << 8)
    assert deep.mode.startswith("I")
    assert labeler.predict_rle(deep, BOXES)[0] == wanted


def test_an_orientation_in_exif_is_not_applied(photo, tiny, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as image:
        image.save(tmp_path / "turned.png", exif=exif)
        size = image.height, image.width
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.getexif()[0x0112] == 6
        masks, _ = Labeler.load(tiny, device="cpu").predict(turned, BOXES)
    assert masks.shape[1:] == size


def test_no_boxes_give_no_masks(photo, tiny):
    labeler = Labeler.load(tiny, device="cpu")
    for empty in ([], np.zeros((0, 4)), np.zeros(0)):
        masks, scores = labeler.predict(pixels_of(photo), empty)
        assert (masks.shape[0], scores.shape) == (0, (0,))
        assert masks.shape[1:] == pixels_of(photo).shape[:2]


IMAGE = np.zeros((8, 9, 3), np.uint8)
BOX = [[1, 1, 5, 5]]


@pytest.mark.parametrize(
    ("image", "boxes", "message"),
    [
        (IMAGE.astype(np.float32), BOX, "float32 of shape"),
        (IMAGE[..., 0], BOX, r"shape \(8, 9\); give \(height, width, 3\) uint8"),
        (IMAGE.transpose(2, 0, 1), BOX, r"shape \(3, 8, 9\)"),
        (IMAGE[:0], BOX, r"shape \(0, 9, 3\)"),
        ("photo.jpg", BOX, "give"),
        (Image.new("F", (9, 8)), BOX, "floats of unknown range"),
        (np.zeros((20, 20, 3), np.uint8), BOX, "20 x 20 pixels are more than max_pixels 300"),
        (Image.new("RGB", (20, 20)), BOX, "20 x 20 pixels are more than max_pixels 300"),
        (IMAGE, [1, 1, 5, 5], r"shape \(4,\); give \(N, 4\)"),
        (IMAGE, [[1, 1, 5]], r"shape \(1, 3\)"),
        (IMAGE, [["a", 1, 5, 5]], "no array of numbers"),
        (IMAGE, [*BOX, [1, np.nan, 5, 5]], r"boxes_xyxy\[1\]: .* no finite"),
        (IMAGE, [[1, 1, 5, np.inf]], r"boxes_xyxy\[0\]"),
        (IMAGE, [[-1.5e308, 1, 1.5e308, 5]], r"boxes_xyxy\[0\]"),
    ],
)
def test_a_wrong_image_or_box_is_refused_by_name(tiny, image, boxes, message):
    labeler = Labeler.load(tiny, device="cpu", max_pixels=300)
    with pytest.raises(ValueError, match=message) as caught:
        labeler.predict(image, boxes)
    assert isinstance(caught.value, MalcliError)
    assert isinstance(caught.value, InputError)


def test_threads_share_a_labeler_one_at_a_time(photo, tiny, monkeypatch):
    labeler = Labeler.load(tiny, device="cpu", batch_size=2)
    pixels, before = pixels_of(photo), cv2.getNumThreads()
    wanted, found = labeler.predict_rle(pixels, BOXES), {}
    predict, inside, most = Predictor.__call__, [], []

    def watched(*args):
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.01)
        made = predict(*args)
        inside.pop()
        return made

    monkeypatch.setattr(Predictor, "__call__", watched)

    def work(number):
        found[number] = labeler.predict_rle(pixels, BOXES)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(found) == [0, 1, 2, 3]
    for rles, scores in found.values():
        assert rles == wanted[0]
        assert np.array_equal(scores, wanted[1])
    assert max(most) == 1
    assert cv2.getNumThreads() == before


def test_the_labeler_that_ships_is_loaded_and_not_the_newest_run(tmp_path, monkeypatch, tiny):
    run = tmp_path / "runs" / "mine"
    (run / "state").mkdir(parents=True)
    (run / "state" / "finished").touch()
    (run / "checkpoint.safetensors").write_bytes(tiny.read_bytes())
    monkeypatch.chdir(tmp_path)
    loaded = []
    load = module.load_checkpoint
    monkeypatch.setattr(module, "load_checkpoint", lambda path: loaded.append(path) or load(tiny))
    Labeler.load(device="cpu")
    Labeler.load("shipped", device="cpu")
    Labeler.load(run, device="cpu")
    assert loaded == [SHIPPED, SHIPPED, run / "checkpoint.safetensors"]
    with pytest.raises(CheckpointError, match=r"gone: no such file"):
        Labeler.load("gone")


def test_settings_are_those_of_label(tiny):
    labeler = Labeler.load(tiny, device="cpu", recipe="paper", margin=0.5, threshold=0.25)
    config = labeler.config
    assert (config.network, config.refine, config.margin) == ("student", "none", 0.5)
    assert labeler._predictor.rule.threshold == (0.25, 0.25, 0.25)
    with pytest.raises(ConfigError, match="did you mean 'teacher'"):
        Labeler.load(tiny, network="teecher")
    with pytest.raises(ConfigError, match="threshold='auto': looks at a whole set"):
        Labeler.load(tiny, device="cpu", threshold="auto")


def test_memory_that_suffices_for_fewer_crops_only(photo, tiny, monkeypatch):
    labeler = Labeler.load(tiny, device="cpu", batch_size=4)
    pixels = pixels_of(photo)
    predict, most = Predictor.__call__, [2]

    def small(self, crops, rois):
        if len(rois) > most[0]:
            raise module.torch.OutOfMemoryError
        return predict(self, crops, rois)

    monkeypatch.setattr(Predictor, "__call__", small)
    masks, _ = labeler.predict(pixels, BOXES)
    assert masks.any(axis=(1, 2)).sum() >= 4
    assert labeler.batch_size == 2
    most[0] = 0
    with pytest.raises(RunError, match="single crop"):
        labeler.predict(pixels, BOXES)


def test_labeler_is_at_the_top_of_the_package():
    assert malcli.Labeler is Labeler
