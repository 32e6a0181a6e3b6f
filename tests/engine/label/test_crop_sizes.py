"""Crop sizes by box size: the rule, and that each size's boxes get the masks of that size alone."""

import copy
import dataclasses
import json
import math
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import image_rois
from malcli.engine.label import parts
from malcli.engine.label.command import label
from malcli.engine.label.crop_sizes import DETAIL, crop_sides, same_sided, side_of
from malcli.engine.label.predictor import LabelRule, Predictor
from malcli.errors import ConfigError, OutputError
from malcli.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from malcli.model.encoders import ImageEncoder
from malcli.model.labeler import Architecture, MaskLabeler, build_labeler

ARCHITECTURE = Architecture(
    encoder="timm/test_vit.r160_in1k",
    decoder="attention",
    crop_size=96,
    channels=8,
    key_pool="mean",
    key_layers=2,
    upsample_before=4,
    size_scaling=True,
)
SIDES = (48, 64, 96)
DEFAULTS = {"network": "mean", "tta": "flip", "refine": "crf", "batch_size": "3", "workers": 0}


def random_labeler(seed):
    torch.manual_seed(seed)
    return build_labeler(ARCHITECTURE).eval()


def covers_half(labeler):
    """Whether it finds foreground in 30 to 70 % of noise, for boxes of each size."""
    noise = torch.randint(0, 256, (12, 3, 96, 96))
    with torch.no_grad():
        logits = labeler(labeler.normalise(noise), torch.arange(12) % 3)
    share = (logits > 0).float().mean(dim=(1, 2)).view(4, 3).mean(dim=0)
    return bool(((share > 0.3) & (share < 0.7)).all())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A labeler of random values, for crops of 96 pixels, whose masks are not all empty or full."""
    networks = list(islice(filter(covers_half, map(random_labeler, range(100))), 2))
    path = tmp_path_factory.mktemp("labeler") / "tiny.safetensors"
    save_checkpoint(Checkpoint(*networks, ARCHITECTURE, (0.5, 0.5, 0.5)), path)
    return path


def rois_of(*sides):
    xywh = np.array([[1, 1, w, h] for w, h in sides], dtype=np.float64)
    return image_rois(np.zeros((400, 400, 3), np.uint8), np.arange(len(sides)), xywh, 0.4)


def masks_of(path):
    found = json.loads(path.read_text())["annotations"]
    # Without the score, which also depends on the other boxes of the image.
    return {one["id"]: one["segmentation"] for one in found}


@pytest.mark.parametrize(
    ("native", "stride", "sides"),
    [
        (192, 16, (96, 128, 192)),
        (512, 16, (256, 336, 512)),
        (512, 32, (256, 352, 512)),
        (504, 14, (252, 336, 504)),
        (64, 32, (32, 64)),
        (32, 16, (16, 32)),
        (16, 16, (16,)),
    ],
)
def test_sides_are_shares_of_the_own_side_on_the_stride(native, stride, sides):
    assert crop_sides("auto", native, stride) == sides


def test_a_given_side_is_the_only_one():
    assert crop_sides(160, 192, 16) == (160,)


@given(st.integers(1, 80), st.sampled_from([8, 14, 16, 32]))
def test_sides_ascend_to_the_own_side_and_are_multiples_of_the_stride(cells, stride):
    sides = crop_sides("auto", cells * stride, stride)
    assert sides[-1] == cells * stride
    assert all(side > 0 and side % stride == 0 for side in sides)
    assert all(low < high for low, high in pairwise(sides))


def test_a_box_gets_the_smallest_crop_that_shows_its_longest_side():
    limits = [int(side / DETAIL) for side in SIDES]
    boxes = [(3, limits[0]), (limits[0] + 1, 3), (limits[1], 9), (9, limits[1] + 1), (300, 300)]
    assert [side_of(roi, SIDES) for roi in rois_of(*boxes)] == [48, 64, 64, 96, 96]


def test_scores_are_as_fine_as_the_box_where_its_crop_is_not_the_largest():
    sides = crop_sides("auto", 192, 16)
    rois = rois_of((24, 24), (25, 1), (32, 32), (1, 33))
    assert [side_of(roi, sides) for roi in rois] == [96, 128, 128, 192]


def test_only_the_part_of_a_box_inside_the_image_counts():
    xywh = np.array([[395.5, 10.0, 300.0, 4.0]])
    (roi,) = image_rois(np.zeros((400, 400, 3), np.uint8), np.arange(1), xywh, 0.4)
    assert side_of(roi, SIDES) == 48


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 7))
def test_batches_share_a_side_keep_the_order_and_lose_no_box(sides, count):
    rois = rois_of(*((side, 1) for side in sides)) if sides else []
    batches = list(same_sided(rois, SIDES, count))
    for side in SIDES:
        own = [batch for batch in batches if side_of(batch[0], SIDES) == side]
        assert [one.row for batch in own for one in batch] == [
            one.row for one in rois if side_of(one, SIDES) == side
        ]
        assert [len(batch) for batch in own[:-1]] == [count] * (len(own) - 1)
    assert sum(map(len, batches)) == len(rois)
    assert all(0 < len(batch) <= count for batch in batches)
    assert all(len({side_of(one, SIDES) for one in batch}) == 1 for batch in batches)


def side_by_hand(annotation):
    """The side that a box of the drawn scenes, all inside their images, should get."""
    x, y, w, h = annotation["bbox"]
    longest = max(math.ceil(x + w) - math.floor(x), math.ceil(y + h) - math.floor(y))
    return next((side for side in SIDES if side >= DETAIL * longest), SIDES[-1])


@pytest.fixture(scope="module")
def boxes(scenes, tmp_path_factory):
    """The drawn scenes with small copies of their boxes, so that every side occurs."""
    source = json.loads(scenes.boxes.read_text())
    number = max(one["id"] for one in source["annotations"])
    for one in list(source["annotations"]):
        x, y, w, h = one["bbox"]
        for share in (0.2, 0.45):
            number += 1
            small = [x + w / 4, y + h / 4, w * share, h * share]
            source["annotations"].append({**one, "id": number, "bbox": small})
    path = tmp_path_factory.mktemp("boxes") / "boxes.json"
    path.write_text(json.dumps(source))
    return path


@pytest.fixture
def job(boxes, scenes, tiny, tmp_path):
    def config(name="auto.json", **changes):
        values = {"boxes": boxes, "images": scenes.images, "checkpoint": tiny, "crop_size": "auto"}
        return LabelConfig(**(DEFAULTS | values | {"out": tmp_path / name} | changes))

    return config


def test_masks_are_those_of_each_size_s_boxes_labelled_alone(job, boxes, tmp_path):
    label(job())
    found = masks_of(tmp_path / "auto.json")
    source, compared = json.loads(boxes.read_text()), {}
    for side in SIDES:
        own = [one for one in source["annotations"] if side_by_hand(one) == side]
        assert len(own) > 3  # more than a batch
        alone = tmp_path / f"boxes_{side}.json"
        alone.write_text(json.dumps(source | {"annotations": own}))
        label(job(f"{side}.json", boxes=alone, crop_size=str(side)))
        compared |= masks_of(tmp_path / f"{side}.json")
    assert found == compared
    assert len({mask["counts"] for mask in found.values()}) > len(found) / 2


@pytest.mark.parametrize("count", [2, 3])
def test_shards_and_threads_give_the_bytes_of_one_process(job, tmp_path, monkeypatch, count):
    monkeypatch.setattr(parts, "PART_BOXES", 12)
    label(job())
    for index in range(count):
        label(job("shards.json", shard=f"{index}/{count}", workers=2))
    assert (tmp_path / "shards.json").read_bytes() == (tmp_path / "auto.json").read_bytes()


def test_auto_is_another_job_than_a_size_and_said_in_the_output(job, tmp_path):
    label(job())
    stamp = json.loads((tmp_path / "auto.json").read_text())["info"]["malcli"]
    assert (stamp["crop_size"], stamp["settings"]["crop_size"]) == ("auto", "auto")
    with pytest.raises(OutputError, match="crop_size was auto, now 96"):
        label(job(crop_size="96"))


def test_an_interrupted_job_of_auto_continues(job, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BOXES", 12)
    assert not label(job(shard="0/2")).merged
    manifest = json.loads((tmp_path / "auto.json.parts" / "manifest.json").read_text())
    assert manifest["crop_size"] == "auto"
    assert label(job()).merged


def test_networks_of_all_sizes_share_all_but_the_position_grid(tiny):
    rule = LabelRule(
        "mean", "none", "none", (0.5,) * 3, 96, 0.4, 0.0, 10**6, smaller_crops=(48, 64)
    )
    predictor = Predictor(load_checkpoint(tiny), rule, torch.device("cpu"), "bf16")
    assert sorted(predictor.networks) == list(SIDES)
    for one, other in zip(predictor.networks[48], predictor.networks[96], strict=True):
        values, large = dict(one.named_parameters()), dict(other.named_parameters())
        assert values.keys() == large.keys()
        own = {name for name in values if values[name] is not large[name]}
        assert own == {"encoder.body.pos_embed"}
        assert {value.dtype for value in values.values()} == {torch.bfloat16}
        assert one.get_buffer("mean_C11").dtype == torch.float32


SMALL_VIT = {"embed_dim": 64, "depth": 2, "num_heads": 1}
FAMILIES = [
    ("vit_dinov2_base", SMALL_VIT),
    ("vit_dinov3_base", SMALL_VIT),
    ("vit_sam_base", {**SMALL_VIT, "neck_chans": 32, "global_attn_indexes": (1,)}),
    ("swin_base", {"embed_dim": 32, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}),
    ("timm/test_convnext", {}),
    ("timm/sam2_hiera_tiny", {"embed_dim": 32, "stages": (1, 1, 1, 1)}),
]


@pytest.mark.parametrize(("name", "options"), FAMILIES)
def test_each_size_has_the_network_of_a_job_of_that_size(tiny, name, options):
    torch.manual_seed(0)
    encoder = ImageEncoder(name, 224, "patch", "antialiased", options).eval()
    sides = crop_sides("auto", 224, encoder.stride)
    image_BCHW = {side: torch.randn(2, 3, side, side) for side in sides}
    wanted = {}
    for side in sides:
        alone = copy.deepcopy(encoder)
        alone.set_crop_size(side)
        with torch.no_grad():
            wanted[side] = alone(image_BCHW[side])
    network = MaskLabeler(encoder, torch.nn.Identity(), 224)
    checkpoint = dataclasses.replace(load_checkpoint(tiny), student=network, teacher=network)
    rule = LabelRule(
        "student", "none", "none", (0.5,) * 3, 224, 0.4, 0.0, 10**6, smaller_crops=sides[:-1]
    )
    predictor = Predictor(checkpoint, rule, torch.device("cpu"), "fp32")
    for side in sides:
        with torch.no_grad():
            found = predictor.networks[side][0].encoder(image_BCHW[side])
        assert torch.equal(found, wanted[side])


def test_an_encoder_bound_to_its_size_is_refused_in_one_line(tiny):
    encoder = ImageEncoder("timm/cait_xxs24_224", 64, "patch", "antialiased", {"depth": 1})
    network = MaskLabeler(encoder, torch.nn.Identity(), 64)
    checkpoint = dataclasses.replace(load_checkpoint(tiny), student=network, teacher=network)
    rule = LabelRule("mean", "none", "none", (0.5,) * 3, 64, 0.4, 0.0, 10**6, smaller_crops=(32,))
    with pytest.raises(ConfigError) as caught:
        Predictor(checkpoint, rule, torch.device("cpu"), "fp32")
    assert str(caught.value) == (
        "--crop-size auto: --encoder timm/cait_xxs24_224 takes crops of 64 pixels alone; leave "
        "--crop-size out"
    )
