"""A small study for the tests of phase 2; a tiny labeler and small jobs for those of `label`."""

import dataclasses
import json
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from malcli.config.label import LabelConfig
from malcli.config.retention import RetentionConfig
from malcli.data.scenes import draw_scenes
from malcli.engine.label import parts
from malcli.engine.label.command import label
from malcli.model import student
from malcli.model.checkpoint import Checkpoint, save_checkpoint
from malcli.model.labeler import Architecture, build_labeler
from malcli.settings import value_type

SIDE = 64  # pixels of the study's scenes


def small_mask_rcnn(classes, image_size, max_image_size):
    """Return torchvision's Mask R-CNN with four layers as its backbone."""
    layers, width = [], 3
    for out, stride in ((16, 2), (32, 2), (32, 1), (32, 1)):
        layers += [nn.Conv2d(width, out, 3, stride, 1), nn.GroupNorm(4, out), nn.ReLU()]
        width = out
    backbone = nn.Sequential(*layers)
    backbone.out_channels = width
    return MaskRCNN(
        backbone,
        min_size=image_size,
        max_size=max_image_size,
        rpn_anchor_generator=AnchorGenerator(((16, 32, 48),), ((1.0,),)),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=20,
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2),
        box_head=TwoMLPHead(width * 25, 64),
        box_predictor=FastRCNNPredictor(64, classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        mask_head=MaskRCNNHeads(width, (32,), 1),
        mask_predictor=MaskRCNNPredictor(32, 32, classes + 1),
        box_batch_size_per_image=24,
        box_detections_per_img=10,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )


@dataclass(frozen=True)
class Study:
    """Drawn scenes of one category: human masks, and the filled boxes as another's masks."""

    human: Path
    filled: Path
    images: Path

    def config(self, out, **changes):
        """Return settings of a study on them."""
        settings = {
            "train": self.human,
            "masks": self.filled,
            "val": self.human,
            "images": self.images,
            "val_images": self.images,
            "out": out,
            "weights": "none",
            "image_size": SIDE,
            "max_image_size": SIDE,
            "epochs": 40,
            "batch_size": 4,
            "lr": 0.0125,
            "workers": 0,
            "device": "cpu",
        }
        return RetentionConfig(**settings | changes)


@pytest.fixture(scope="session")
def study_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    scenes = draw_scenes(folder, 12, seed=4, size_hw=(SIDE, SIDE), objects=(1, 2))
    human = json.loads(scenes.instances.read_text("utf-8"))
    human["categories"] = [{"id": 7, "name": "thing"}]
    for one in human["annotations"]:
        one["category_id"] = 7
    filled = human | {"annotations": [fill(one) for one in human["annotations"]]}
    for name, value in (("human", human), ("filled", filled)):
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")
    return Study(folder / "human.json", folder / "filled.json", scenes.images)


def fill(annotation):
    x, y, w, h = annotation["bbox"]
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    return annotation | {"segmentation": [corners], "area": w * h}


@pytest.fixture(scope="module")
def small_student():
    """Make torchvision's student small while the module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(student.STUDENTS, "maskrcnn_resnet50_fpn_v2", small_mask_rcnn)
        yield


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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A labeler of random values whose masks cover about half of their boxes."""
    networks = list(islice(filter(covers_half, map(random_labeler, range(100))), 2))
    path = tmp_path_factory.mktemp("labeler") / "tiny.safetensors"
    save_checkpoint(Checkpoint(*networks, ARCHITECTURE, (0.5, 0.5, 0.5)), path)
    return path


@pytest.fixture(scope="session")
def data(scenes, tmp_path_factory):
    """The drawn scenes with every kind of record that label must not lose, out of order."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    for path in scenes.images.iterdir():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    source = json.loads(scenes.boxes.read_text())
    whole = min(scenes.images.iterdir()).read_bytes()
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
        box(1007, 900, [1, 1, 20, 20], area=3, malcli_score=0.7, malcli_status="ok"),
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


@pytest.fixture
def another():
    """Returns another value of a setting than a config's, of the setting's own kind."""

    def value(config, name):
        item = next(one for one in dataclasses.fields(config) if one.name == name)
        now, kind = getattr(config, name), value_type(get_type_hints(type(config))[name])
        if item.metadata["choices"]:
            return next(choice for choice in item.metadata["choices"] if choice != now)
        if kind is Path:
            return Path("another")
        if kind is str:
            return "0.25" if name == "threshold" else "192"
        return not now if kind is bool else (now or 0) + 1

    return value


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few boxes; returns how many."""
    monkeypatch.setattr(parts, "PART_BOXES", PART_BOXES)
    return PART_BOXES


@pytest.fixture
def job(data, tiny, small_parts, tmp_path):
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


@pytest.fixture(scope="session")
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


@pytest.fixture
def equals_reference(reference):
    """Returns whether an output has the bytes of the uninterrupted one, its images file too."""

    def equal(out):
        names = [""] if out.suffix == ".json" else ["", ".images"]
        made, wanted = (
            [one.with_suffix(name + one.suffix).read_bytes() for name in names]
            for one in (out, reference[out.suffix])
        )
        return made == wanted

    return equal
