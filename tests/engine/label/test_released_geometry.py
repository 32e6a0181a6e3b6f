"""`--geometry released` against a literal reference of mal.md 8, on whole images.

The network is a stand-in whose logits are a plain function of its crop, so that the reference,
which makes its own crops, checks the whole way from the box to the run lengths.
"""

import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from malcli.data.formats.open import open_boxes
from malcli.data.images.find import find_images
from malcli.engine.label.pipeline import Pipeline
from malcli.engine.label.predictor import LabelRule, Predictor
from malcli.engine.machine.clock import Clock

S, G = 64, 16
THRESHOLD = (0.1, 0.15, 0.2)


class Stand(nn.Module):
    """Logits from the crop's brightness: about half of them above the threshold."""

    def __init__(self, told=None):
        super().__init__()
        self.crop_size = S
        self.told = [] if told is None else told
        self.register_buffer("mean_C11", torch.full((3, 1, 1), 120.0))
        self.register_buffer("std_C11", torch.full((3, 1, 1), 60.0))

    def normalise(self, image):
        return (image.float() - self.mean_C11) / self.std_C11

    def forward(self, image, size):
        self.told += size.tolist()
        return logits_of(image) * (size != 3)[:, None, None]


def logits_of(image):
    """Return (B, G, G) logits of normalised crops; not the same for a flipped crop."""
    pooled = F.avg_pool2d(image.mean(dim=1), S // G)
    return 3 * pooled + torch.linspace(-4, 0, G)


def literal_mask(image, xywh, tta, thresholds, strict):
    """Return mal.md 1.1-1.7 and 8.1-8.5 for one box: an (H, W) mask, and its mean probability."""
    height, width = image.shape[:2]
    x, y, w, h = xywh
    x0, y0, x1, y1 = (np.float32(value) for value in (x, y, x + w, y + h))
    cx, cy = (x1 + x0) / np.float32(2), (y1 + y0) / np.float32(2)
    left = int(np.floor(np.float64(cx) - np.float64(cx - x0) * 1.3))
    top = int(np.floor(np.float64(cy) - np.float64(cy - y0) * 1.3))
    right = int(np.ceil(np.float64(cx) + np.float64(x1 - cx) * 1.3 + 1))
    bottom = int(np.ceil(np.float64(cy) + np.float64(y1 - cy) * 1.3 + 1))

    rows = np.take(image, range(top, bottom), axis=0, mode="wrap")
    patch = np.take(rows, range(left, right), axis=1, mode="wrap")
    crop = np.asarray(Image.fromarray(patch).resize((S, S), Image.Resampling.BICUBIC))

    box = np.zeros((height, width), np.uint8)
    box[max(int(y), 0) : int(y + h) + 1, max(int(x), 0) : int(x + w) + 1] = 1
    padded = np.pad(box, 2 * max(height, width))
    origin = 2 * max(height, width)
    cut = padded[top + origin : bottom + origin, left + origin : right + origin]
    assert cut.shape == patch.shape[:2]
    box_SS = np.asarray(Image.fromarray(cut).resize((S, S), Image.Resampling.BICUBIC))
    assert set(np.unique(box_SS)) <= {0, 1}

    normal = (torch.tensor(crop.copy()).permute(2, 0, 1)[None].float() - 120) / 60
    area = (x1 - x0) * (y1 - y0)
    logits = logits_of(normal)
    if tta == "flip":
        logits = (logits + logits_of(normal.flip(-1)).flip(-1)) / 2
    if strict and area in (1024, 9216):
        logits = torch.zeros_like(logits)
    full = F.interpolate(logits[None], (S, S), mode="bilinear", align_corners=False)
    prob = full.sigmoid() * torch.tensor(box_SS.copy()).float()
    grown = F.interpolate(prob, (bottom - top, right - left), mode="bilinear", align_corners=False)

    pasted = np.zeros((height, width), np.float32)
    for row in range(max(top, 0), min(bottom, height)):
        inside = slice(max(left, 0), min(right, width))
        pasted[row, inside] = grown[0, 0, row - top, inside.start - left : inside.stop - left]
    bucket = 0 if area <= 1024 else 1 if area <= 9216 else 2
    mask = pasted > thresholds[bucket]
    return mask, float(pasted[mask].mean()) if mask.any() else 0.0


def draw_image(height, width, seed):
    """Return a picture of blobs a few pixels wide."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def draw_boxes(rng, height, width, count):
    """Return boxes of many kinds, each with a part inside the image and a RoI that is near."""
    boxes = [
        [0.0, 0.0, width, height],  # the whole image
        [0.0, 3.5, width, 10.0],  # touches both sides
        [width - 5.0, height - 4.0, 5.0, 4.0],
        [-8.5, -6.2, 30.1, 20.3],
        [width - 12.3, 4.0, 40.0, 25.0],
        [-3.0, -2.0, width + 7.0, height + 5.0],  # all of the image and more
        [7.0, 7.0, 32.0, 32.0],  # exactly 1024
        [1.0, 2.0, 64.0, 16.0],
        [2.0, 1.0, 96.0, 96.0],  # exactly 9216
        [20.3, 20.7, 0.4, 0.2],
        [11.0, 12.0, 1.0, 1.0],
        [10.0, 30.0, 2.0, 40.0],
        [15.0, 15.0, 3.0, 3.0],
        [121.49 - 100, 17.53, 33.33, 40.01],
    ]
    for _ in range(count):
        w, h = np.exp(rng.uniform(0, np.log([width, height])))
        x, y = rng.uniform(-w / 2, width - w / 2), rng.uniform(-h / 2, height - h / 2)
        boxes.append(np.round([x, y, w, h], 2).tolist())
    return boxes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two images and their boxes, and the file that says so."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    images, boxes, annotations = {}, [], []
    for number, hw in enumerate([(110, 131), (100, 98)], start=1):
        images[number] = draw_image(*hw, number)
        Image.fromarray(images[number]).save(folder / f"{number}.png")
        for xywh in draw_boxes(rng, *hw, 40):
            boxes.append((number, xywh))
            annotations.append(
                {"id": len(boxes), "image_id": number, "category_id": 1, "bbox": xywh}
            )
    path = folder / "boxes.json"
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": key, "file_name": f"{key}.png", "height": one.shape[0],
                     "width": one.shape[1]}
                    for key, one in images.items()
                ],
                "categories": [{"id": 1, "name": "thing"}],
                "annotations": annotations,
            }
        )
    )  # fmt: skip
    return SimpleNamespace(path=path, images=images, boxes=boxes)


def outcomes_of(path, *, size_classes="strict", network=None, **changes):
    """Return what `label` makes of a file's boxes with the stand-in network."""
    settings = {
        "network": "student", "tta": "none", "refine": "none", "threshold": THRESHOLD,
        "crop_size": S, "margin": 0.6, "min_score": 0.0, "max_pixels": 10**6,
        "geometry": "released",
    }  # fmt: skip
    rule = LabelRule(**(settings | changes))
    network = network or Stand()
    checkpoint = SimpleNamespace(
        student=network,
        teacher=network,
        settings={},
        architecture=SimpleNamespace(size_classes=size_classes),
    )
    table = open_boxes(path)
    predictor = Predictor(checkpoint, rule, torch.device("cpu"), "fp32")
    pipeline = Pipeline(
        table, find_images(path, table, None), predictor, Clock(defaultdict(float)), 0
    )
    made = [one for batch in pipeline.label(np.arange(table.boxes.num_rows), 7) for one in batch]
    return sorted(made, key=lambda one: one.row)


def mask_of(outcome):
    size = [outcome.height, outcome.width]
    return coco_mask.decode({"size": size, "counts": outcome.counts.encode()}).astype(bool)


@pytest.mark.parametrize("tta", ["none", "flip"])
@pytest.mark.parametrize("size_classes", ["strict", "half-open"])
def test_masks_are_those_of_the_literal_reference(scenes, tta, size_classes):
    outcomes = outcomes_of(scenes.path, tta=tta, size_classes=size_classes)
    assert len(outcomes) == len(scenes.boxes)
    equal = 0
    for outcome, (number, xywh) in zip(outcomes, scenes.boxes, strict=True):
        wanted, score = literal_mask(
            scenes.images[number], xywh, tta, THRESHOLD, size_classes == "strict"
        )
        found = mask_of(outcome)
        assert (found == wanted).mean() >= 0.999, xywh
        assert outcome.status == ("ok" if wanted.any() else "empty")
        assert outcome.score == pytest.approx(score, abs=1e-4)
        equal += np.array_equal(found, wanted)
    assert equal >= 0.95 * len(outcomes)
    assert sum(outcome.status == "ok" for outcome in outcomes) > 0.8 * len(outcomes)


def boxes_file(folder, *boxes):
    """Write boxes of one 120 x 120 image, noise around a grey box, and return the file."""
    image = np.random.default_rng(1).integers(0, 255, (120, 120, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "1.png")
    record = {"id": 1, "file_name": "1.png", "height": 120, "width": 120}
    annotations = [
        {"id": place, "image_id": 1, "category_id": 1, "bbox": box}
        for place, box in enumerate(boxes, start=1)
    ]
    path = folder / "boxes.json"
    categories = [{"id": 1, "name": "thing"}]
    path.write_text(
        json.dumps({"images": [record], "categories": categories, "annotations": annotations})
    )
    return path


class Sure(Stand):
    """Says yes everywhere."""

    def forward(self, image, size):
        self.told += size.tolist()
        return torch.full((len(image), G, G), 8.0)


def test_a_sure_mask_leaks_past_its_inclusive_box_and_an_exact_one_never(tmp_path):
    path = boxes_file(tmp_path, [20.0, 30.0, 70.0, 60.0])
    (released,) = outcomes_of(path, network=Sure())
    (exact,) = outcomes_of(path, network=Sure(), geometry="exact")
    box = np.zeros((120, 120), bool)
    box[30:90, 20:90] = True
    inclusive = np.zeros((120, 120), bool)
    inclusive[30:91, 20:91] = True
    assert np.array_equal(mask_of(exact), box)
    leaked = mask_of(released) & ~inclusive
    assert mask_of(released)[inclusive].all()
    assert leaked.any()
    rows, columns = np.nonzero(leaked)
    assert rows.min() >= 28
    assert rows.max() <= 92  # a source pixel: 1.5 image pixels
    assert columns.min() >= 18
    assert columns.max() <= 92


@pytest.mark.parametrize("box", [[8.0, 8.0, 32.0, 32.0], [8.0, 8.0, 96.0, 96.0]])
def test_an_area_on_a_border_becomes_the_whole_box_under_strict_classes(tmp_path, box):
    path = boxes_file(tmp_path, box)
    (strict,) = outcomes_of(path)
    (half_open,) = outcomes_of(path, size_classes="half-open")
    side = int(box[2])
    # Bilinear resizing from a half takes a pixel or two of its corners.
    assert mask_of(strict)[8 : 8 + side, 8 : 8 + side].sum() >= side**2 - 8
    assert mask_of(half_open)[8 : 8 + side, 8 : 8 + side].sum() < 0.9 * side**2


def test_networks_and_thresholds_have_their_own_classes_at_the_borders(tmp_path):
    boxes = [[8.0, 8.0, side, side] for side in (31.0, 32.0, 33.0, 96.0, 97.0)]
    path = boxes_file(tmp_path, *boxes)
    for size_classes, told in (("strict", [0, 3, 1, 3, 2]), ("half-open", [0, 1, 1, 2, 2])):
        network = Sure()
        outcomes_of(path, network=network, size_classes=size_classes)
        assert network.told == told
        network = Sure()
        outcomes_of(path, network=network, size_classes=size_classes, geometry="exact")
        assert network.told == told
    # Closed above: 1024 is small and 9216 medium; Sure says 0.9997 everywhere.
    found = outcomes_of(path, network=Sure(), threshold=(0.5, 0.99999, 0.5))
    assert [one.status for one in found] == ["ok", "ok", "empty", "empty", "ok"]
    found = outcomes_of(path, network=Sure(), threshold=(0.5, 0.99999, 0.5), geometry="exact")
    assert [one.status for one in found] == ["ok", "empty", "empty", "ok", "ok"]


def test_no_box_is_lost_however_far_it_leaves_the_image(tmp_path):
    boxes = [
        [-1e300, -1e300, 2e300, 2e300],
        [-1e6, 5.0, 1e7, 20.0],
        [119.9999999999, 119.9999999999, 1e-12, 1e-12],
        [5.0, 5.0, 0.001, 100.0],
        [-500.0, -500.0, 500.5, 500.5],
    ]
    outcomes = outcomes_of(boxes_file(tmp_path, *boxes), network=Sure())
    assert [one.row for one in outcomes] == [0, 1, 2, 3, 4]
    assert {one.status for one in outcomes} <= {"ok", "empty"}
    assert mask_of(outcomes[0]).all()
    assert mask_of(outcomes[1])[5:26].all()
    assert mask_of(outcomes[3])[5:106, 5].all()


def test_refined_masks_stay_within_a_crop_pixel_of_the_inclusive_box(tmp_path):
    path = boxes_file(tmp_path, [20.0, 30.0, 70.0, 60.0], [-10.0, 5.0, 50.0, 90.0])
    refined = outcomes_of(path, refine="crf", geometry="released")
    plain = outcomes_of(path, geometry="released")
    assert [one.status for one in refined] == ["ok", "ok"]
    assert [one.counts for one in refined] != [one.counts for one in plain]
    outside = mask_of(refined[0]).copy()
    outside[29:92, 19:92] = False
    assert not outside.any()


def test_min_score_empties_masks_as_in_the_exact_geometry(tmp_path):
    path = boxes_file(tmp_path, [20.0, 30.0, 70.0, 60.0])
    (outcome,) = outcomes_of(path, min_score=0.99)
    assert (outcome.status, outcome.area, outcome.score) == ("empty", 0, 0.0)
