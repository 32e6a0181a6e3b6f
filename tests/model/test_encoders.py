"""Encoders: names, feature maps, the resampled position grid, and weights from three places."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from malcli.config import ENCODER_NAMES
from malcli.errors import CheckpointError, ConfigError
from malcli.model import encoders
from malcli.model.encoders import (
    ENCODERS,
    build_encoder,
    licence_of,
    load_encoder_weights,
    load_hub_weights,
    timm_name_of,
)

TINY = "test_vit.r160_in1k"  # 64 channels, patches of 16, grid of 10 x 10
FILE = Path("tiny.pth")


@pytest.fixture(scope="module")
def tiny_state():
    """A state as timm publishes it: native grid, classifier included."""
    torch.manual_seed(0)
    return timm.create_model(TINY).state_dict()


def test_every_name_of_the_command_line_is_a_model_of_timm():
    assert tuple(ENCODERS) == ENCODER_NAMES
    for name in ENCODER_NAMES:
        assert timm.is_model(timm_name_of(name))
        assert timm.get_pretrained_cfg(timm_name_of(name)) is not None  # the tag exists, too


@pytest.mark.parametrize(
    ("name", "near"), [("vit_mae_bas", "vit_mae_base"), ("dinov3_small", "vit_dinov3_small")]
)
def test_an_unknown_name_gets_the_nearest_one(name, near):
    with pytest.raises(ConfigError, match=rf"{name}: unknown; did you mean {near}\?"):
        timm_name_of(name)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(ConfigError, match=r"--encoder qqq: unknown \(one of vit_mae_base, .*timm/"):
        timm_name_of("qqq")


def test_any_timm_name_passes():
    assert timm_name_of("timm/resnet50.a1_in1k") == "resnet50.a1_in1k"


def test_an_unknown_timm_name_gets_near_ones():
    with pytest.raises(ConfigError, match=r"timm/vit_smal_patch16_224: timm has no .*vit_small_p"):
        build_encoder("vit_smal_patch16_224", 64)


@pytest.mark.parametrize("name", ["pit_ti_224", "test_vit.nonexistent"])
def test_a_network_without_feature_map_is_named(name):
    with pytest.raises(ConfigError, match=rf"timm/{name}: gives no feature map at --crop-size 64"):
        build_encoder(name, 64)


def test_licences_are_stated():
    assert "non-commercial" in licence_of("vit_mae_base")
    assert "vit_deit_base" in licence_of("vit_mae_base")  # the permissive alternative
    assert "box-only" in licence_of("vit_sam_base")
    assert licence_of("timm/test_vit.r160_in1k") == "apache-2.0"
    assert licence_of("timm/no_such_model") == "not stated by timm"


@pytest.mark.parametrize(
    ("name", "crop_size", "channels", "stride"),
    [
        (TINY, 64, 64, 16),
        (TINY, 160, 64, 16),
        ("test_convnext.r160_in1k", 64, 64, 32),
        ("test_resnet.r160_in1k", 64, 96, 32),
    ],
)
def test_channels_and_stride_are_those_of_the_feature_map(name, crop_size, channels, stride):
    encoder = build_encoder(name, crop_size)
    side = crop_size // stride
    assert (encoder.channels, encoder.stride) == (channels, stride)
    assert encoder(torch.zeros(2, 3, crop_size, crop_size)).shape == (2, channels, side, side)
    assert encoder.training


def test_the_feature_map_is_the_normalised_last_block_without_class_token(tiny_state):
    encoder = build_encoder(TINY, 160).eval()
    load_encoder_weights(encoder, tiny_state, FILE, 160)
    image = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    plain = timm.create_model(TINY).eval()
    plain.load_state_dict(tiny_state)
    with torch.no_grad():
        tokens = plain.norm(plain.blocks(plain._pos_embed(plain.patch_embed(image))))
        wanted = tokens[:, 1:].mT.reshape(2, 64, 10, 10)  # row-major, class token dropped
        assert torch.allclose(encoder(image), wanted, atol=1e-5)


def test_normalisation_is_the_encoder_s_own():
    encoder = build_encoder("vit_tiny_patch16_224.augreg_in21k", 64)
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    imagenet = build_encoder(ENCODERS["vit_deit_tiny"].timm_name, 64)
    assert imagenet.mean == (0.485, 0.456, 0.406)
    assert imagenet.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("crop_size", [64, 224])
def test_the_position_grid_is_resampled_to_the_crop_size(tiny_state, crop_size):
    encoder = build_encoder(TINY, crop_size)
    load_encoder_weights(encoder, tiny_state, FILE, crop_size)
    cells = crop_size // 16
    stored = tiny_state["pos_embed"]
    grid = stored[:, 1:].mT.reshape(1, 64, 10, 10)
    resampled = F.interpolate(grid, (cells, cells), mode="bicubic", antialias=True)
    position = encoder.body.pos_embed.detach()
    assert position.shape == (1, 1 + cells**2, 64)
    assert torch.equal(position[:, :1], stored[:, :1])
    assert torch.allclose(position[:, 1:], resampled.flatten(2).mT, atol=1e-6)


def test_a_timm_state_loads_and_its_classifier_is_ignored(tiny_state):
    encoder = build_encoder(TINY, 160)
    load_encoder_weights(encoder, tiny_state, FILE, 160)
    for key, value in encoder.body.state_dict().items():
        assert torch.equal(value, tiny_state[key]), key
    assert "head.weight" in tiny_state


def test_a_state_of_another_grid_loads(tiny_state):
    larger = timm.create_model(TINY, img_size=224)
    state = larger.state_dict()
    encoder = build_encoder(TINY, 224)
    load_encoder_weights(encoder, state, FILE, 224)
    assert torch.equal(encoder.body.pos_embed, state["pos_embed"])


def test_a_windowed_network_loads_at_another_crop_size():
    name = "swin_tiny_patch4_window7_224"
    state = timm.create_model(name).state_dict()
    encoder = build_encoder(name, 224)
    load_encoder_weights(encoder, state, FILE, 224)
    assert torch.equal(
        encoder.body.state_dict()["layers.0.blocks.0.mlp.fc1.weight"],
        state["layers.0.blocks.0.mlp.fc1.weight"],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.attn.qkv.weight": None}, "missing blocks.0.attn.qkv.weight"),
        ({"blocks.99.norm1.weight": torch.zeros(64)}, "unexpected blocks.99.norm1.weight"),
        ({"norm.weight": torch.zeros(65)}, "of another shape norm.weight"),
        ({"pos_embed": torch.zeros(7)}, "of another shape pos_embed"),
        ({"pos_embed": torch.zeros(1, 8, 64)}, "of another shape pos_embed"),
        ({"pos_embed": torch.zeros(1, 0, 64)}, "of another shape pos_embed"),
    ],
)
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(tiny_state, change, message):
    state = {key: value for key, value in (tiny_state | change).items() if value is not None}
    encoder = build_encoder(TINY, 64)
    before = {key: value.clone() for key, value in encoder.body.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"^tiny.pth: not weights of {TINY}: {message}"):
        load_encoder_weights(encoder, state, FILE, 64)
    after = encoder.body.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("offline", [True, False])
def test_the_hub_out_of_reach_names_three_ways_out(monkeypatch, offline):
    if not offline:  # conftest sets HF_HUB_OFFLINE; without it, its guard refuses the connection
        monkeypatch.setattr(encoders.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    encoder = build_encoder(TINY, 64)
    with pytest.raises(CheckpointError) as caught:
        load_hub_weights(encoder, "vit_mae_base", 64)
    message = str(caught.value)
    assert message.startswith("--encoder vit_mae_base: ")
    for way in ("(1) --weights FILE", "(2) connect, or set HF_HOME", "(3) --weights none"):
        assert way in message
    assert f"timm/{TINY}" in message
    assert "\n" not in message


def test_weights_in_the_local_cache_need_no_hub(monkeypatch, tmp_path, tiny_state):
    cached = tmp_path / "model.safetensors"
    save_file(tiny_state, cached)
    asked = []

    def look_up(repository, name):
        asked.append((repository, name))
        return str(cached)

    monkeypatch.setattr(encoders.huggingface_hub, "try_to_load_from_cache", look_up)
    from_hub, from_file = build_encoder(TINY, 96), build_encoder(TINY, 96)
    load_hub_weights(from_hub, TINY, 96)
    load_encoder_weights(from_file, tiny_state, FILE, 96)
    for key, value in from_file.body.state_dict().items():
        assert torch.equal(value, from_hub.body.state_dict()[key]), key
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
