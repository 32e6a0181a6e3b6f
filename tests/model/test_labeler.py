"""The wired labeler: one network out of plain values."""

import dataclasses
import json

import pytest
import torch

from malcli.errors import ConfigError
from malcli.geometry.boxes import NO_SIZE
from malcli.model.labeler import Architecture, build_labeler

TINY = Architecture(
    encoder="timm/test_vit.r160_in1k",
    decoder="attention",
    crop_size=64,
    channels=8,
    key_pool="mean",
    key_layers=2,
    upsample_before=4,
    size_scaling=True,
)


@pytest.fixture(scope="module")
def labeler():
    torch.manual_seed(0)
    return build_labeler(TINY).eval()


def test_logits_are_decoder_of_encoder_on_the_grid(labeler):
    image, size = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2])
    with torch.no_grad():
        logits = labeler(image, size)
        assert logits.shape == (3, labeler.grid, labeler.grid) == (3, 16, 16)
        assert torch.equal(logits, labeler.decoder(labeler.encoder(image), size))


@pytest.mark.parametrize("settings", [{"key_pool": "max", "key_layers": 1, "upsample_before": 3}])
def test_settings_reach_the_decoder(settings):
    decoder = build_labeler(dataclasses.replace(TINY, size_scaling=False, **settings)).decoder
    assert (decoder.key_pool, decoder.upsample_before, decoder.size_scaling) == ("max", 3, False)
    assert len(decoder.key) == 1
    assert decoder.value[0].weight.shape == (8, 64, 3, 3)


def test_normalise_uses_the_encoder_s_mean_and_std(labeler):
    mean, std = labeler.encoder.mean, labeler.encoder.std
    image = torch.tensor([0.0, 128.0, 255.0]).view(1, 3, 1, 1).to(torch.uint8)
    wanted = [(value / 255 - m) / s for value, m, s in zip((0, 128, 255), mean, std, strict=True)]
    normal = labeler.normalise(image)
    assert normal.dtype == torch.float32
    assert normal.flatten().tolist() == pytest.approx(wanted, abs=1e-6)


def test_mean_and_std_stay_out_of_the_state(labeler):
    assert not [key for key in labeler.state_dict() if "mean" in key or "std" in key]
    assert labeler.mean_C11.shape == labeler.std_C11.shape == (3, 1, 1)


@pytest.mark.parametrize("crop_size", [32, 96, 160])
def test_set_crop_size_changes_the_grid_and_keeps_working(crop_size):
    labeler = build_labeler(TINY)
    labeler.set_crop_size(crop_size)
    logits = labeler(torch.zeros(1, 3, crop_size, crop_size), torch.tensor([1]))
    assert labeler.crop_size == crop_size
    assert logits.shape == (1, labeler.grid, labeler.grid)
    assert labeler.grid == crop_size // 4


def test_a_crop_size_off_the_stride_is_refused_and_changes_nothing():
    labeler = build_labeler(TINY)
    with pytest.raises(ConfigError, match=r"--crop-size 100: .*multiple .* stride 16; take 96"):
        labeler.set_crop_size(100)
    assert labeler.crop_size == 64
    assert labeler(torch.zeros(1, 3, 64, 64), torch.tensor([1])).shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("encoder", "crop_size", "stride", "near"),
    [
        ("timm/test_vit.r160_in1k", 72, 16, 64),
        ("timm/test_convnext.r160_in1k", 144, 32, 128),
        ("vit_dinov2_small", 508, 14, 504),
    ],
)
def test_an_architecture_off_the_stride_gets_the_nearest_size(encoder, crop_size, stride, near):
    wanted = rf"--crop-size {crop_size}: .* stride {stride}; take {near}$"
    with pytest.raises(ConfigError, match=wanted):
        build_labeler(dataclasses.replace(TINY, encoder=encoder, crop_size=crop_size))


def test_the_default_crop_size_just_works_at_patches_of_14():
    labeler = build_labeler(dataclasses.replace(TINY, encoder="vit_dinov2_small"))
    assert labeler.crop_size == 64
    assert labeler.grid == 64 // 14 * 4
    logits = labeler(torch.zeros(1, 3, 64, 64), torch.tensor([1]))
    assert logits.shape == (1, labeler.grid, labeler.grid)
    labeler.set_crop_size(80)
    assert labeler(torch.zeros(1, 3, 80, 80), torch.tensor([1])).shape == (1, 20, 20)


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "vit/64x1", "stem": "convolutional", "position": "released"},
        {"encoder": "timm/test_convnext"},
    ],
)
def test_every_architecture_s_logits_lie_on_its_grid(settings):
    labeler = build_labeler(dataclasses.replace(TINY, **settings), drop_path=0.2)
    logits = labeler(torch.zeros(2, 3, 64, 64), torch.tensor([0, 2]))
    assert logits.shape == (2, labeler.grid, labeler.grid) == (2, 16, 16)
    for name, parameter in labeler.named_parameters():
        assert parameter.requires_grad, name


def test_a_box_of_no_size_class_gets_logits_of_zero(labeler):
    image = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = labeler(image, torch.tensor([0, NO_SIZE, 2]))
        others = labeler(image[[0, 2]], torch.tensor([0, 2]))
    assert not logits[1].any()
    assert torch.allclose(logits[[0, 2]], others, atol=1e-5)


def test_an_architecture_is_plain_json():
    plain = json.loads(json.dumps(TINY.to_plain()))
    assert Architecture(**plain) == TINY
