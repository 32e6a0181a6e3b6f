"""Pretrained weights: files of several origins, the hub and its cache, and licences."""

import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from malcli.config.shared import ENCODER_NAMES
from malcli.errors import CheckpointError, ConfigError
from malcli.model import pretrained
from malcli.model.encoders import ENCODERS, ImageEncoder, build_encoder
from malcli.model.pretrained import licence_of, load_encoder_weights, load_hub_weights
from malcli.model.surgery import resample_released

TIMM_TINY = "test_vit.r160_in1k"
TINY = f"timm/{TIMM_TINY}"  # 64 channels, patches of 16, grid of 10 x 10
FILE = Path("tiny.pth")
SMALL_VIT = {"embed_dim": 64, "depth": 2, "num_heads": 1}
SMALL_SWIN = {"embed_dim": 32, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


def small_encoder(name, crop_size, options, stem="patch", position="antialiased"):
    return ImageEncoder(name, crop_size, stem, position, options)


def random_state(timm_name, **options):
    """A state as timm publishes it: native size, head included, no value at its start."""
    network = timm.create_model(timm_name, **options)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.state_dict()


@pytest.fixture(scope="module")
def tiny_state():
    return random_state(TIMM_TINY)


def test_the_feature_map_is_the_normalised_last_block_without_class_token(tiny_state):
    encoder = build_encoder(TINY, 160).eval()
    load_encoder_weights(encoder, tiny_state, FILE, 160)
    image = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    plain = timm.create_model(TIMM_TINY).eval()
    plain.load_state_dict(tiny_state)
    with torch.no_grad():
        tokens = plain.norm(plain.blocks(plain._pos_embed(plain.patch_embed(image))))
        wanted = tokens[:, 1:].mT.reshape(2, 64, 10, 10)  # row-major, class token dropped
        assert torch.allclose(encoder(image), wanted, atol=1e-5)


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


def test_the_released_resampling_starts_from_the_stored_grid(tiny_state):
    encoder = build_encoder(TINY, 512, position="released")
    load_encoder_weights(encoder, tiny_state, FILE, 512)
    assert torch.equal(encoder.body.pos_embed, resample_released(tiny_state["pos_embed"], 10, 32))


def test_the_convolutional_stem_takes_all_but_the_patch_embedding(tiny_state):
    encoder = build_encoder(TINY, 160, stem="convolutional", position="released")
    before = {key: value.clone() for key, value in encoder.body.state_dict().items()}
    load_encoder_weights(encoder, tiny_state, FILE, 160)
    for key, value in encoder.body.state_dict().items():
        stem = key.startswith("patch_embed.proj.")
        assert torch.equal(value, before[key] if stem else tiny_state[key]), key


def test_a_convolutional_stem_in_the_file_is_loaded():
    first, second = (build_encoder("vit/64x1", 64, stem="convolutional") for _ in range(2))
    load_encoder_weights(second, first.body.state_dict(), FILE, 64)
    for key, value in first.body.state_dict().items():
        assert torch.equal(value, second.body.state_dict()[key]), key


def test_half_of_a_convolutional_stem_is_refused():
    encoder = build_encoder("vit/64x1", 64, stem="convolutional")
    state = dict(encoder.body.state_dict())
    del state["patch_embed.proj.2.0.weight"]
    with pytest.raises(CheckpointError, match=r"missing patch_embed\.proj\.2\.0\.weight"):
        load_encoder_weights(encoder, state, FILE, 64)


def test_a_timm_state_loads_and_its_classifier_is_ignored(tiny_state):
    encoder = build_encoder(TINY, 160)
    load_encoder_weights(encoder, tiny_state, FILE, 160)
    for key, value in encoder.body.state_dict().items():
        assert torch.equal(value, tiny_state[key]), key
    assert "head.weight" in tiny_state


def test_a_state_of_another_grid_loads(tiny_state):
    larger = timm.create_model(TIMM_TINY, img_size=224)
    state = larger.state_dict()
    encoder = build_encoder(TINY, 224)
    load_encoder_weights(encoder, state, FILE, 224)
    assert torch.equal(encoder.body.pos_embed, state["pos_embed"])


def test_an_mae_state_loads_without_its_decoder(tiny_state):
    state = {key: value for key, value in tiny_state.items() if not key.startswith("head")}
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    encoder = build_encoder(TINY, 160)
    load_encoder_weights(encoder, state, FILE, 160)
    assert torch.equal(encoder.body.norm.weight, state["norm.weight"])


@pytest.mark.parametrize("own_names", [False, True])
def test_a_dinov2_state_loads_under_timm_s_names_and_its_own(own_names):
    name = "vit_base_patch14_reg4_dinov2"
    state = random_state(name, num_classes=0, **SMALL_VIT)
    theirs = dict(state)
    if own_names:  # the authors keep a position for the class token, timm adds it to the token
        theirs["register_tokens"] = theirs.pop("reg_token")
        theirs["mask_token"] = torch.zeros(1, 64)
        class_position = torch.randn(1, 1, 64)
        theirs["cls_token"] = state["cls_token"] - class_position
        theirs["pos_embed"] = torch.cat([class_position, state["pos_embed"]], dim=1)
    encoder = small_encoder(f"timm/{name}", 518, SMALL_VIT)
    load_encoder_weights(encoder, theirs, FILE, 518)
    for key, value in encoder.body.state_dict().items():
        assert torch.allclose(value, state[key], atol=1e-6), key


def test_a_norm_behind_the_pooling_is_found_under_its_own_name():
    state = random_state("test_vit2")
    encoder = build_encoder("timm/test_vit2", 64)
    load_encoder_weights(encoder, state, FILE, 64)
    assert torch.equal(encoder.body.norm.weight, state["fc_norm.weight"])
    state = random_state("test_convnext")
    encoder = build_encoder("timm/test_convnext", 64)
    load_encoder_weights(encoder, state, FILE, 64)
    assert torch.equal(encoder.body.norm_pre.weight, state["head.norm.weight"])


def test_what_the_map_does_not_need_may_be_in_the_file_or_not():
    state = random_state("test_vit3")  # with an attention pool
    encoder = build_encoder("timm/test_vit3", 64)
    load_encoder_weights(encoder, state, FILE, 64)
    load_encoder_weights(encoder, encoder.body.state_dict(), FILE, 64)
    assert torch.equal(encoder.body.norm.weight, state["norm.weight"])


@pytest.mark.parametrize("crop_size", [64, 224, 448])
def test_a_windowed_network_loads_at_another_crop_size(crop_size):
    name = "swin_tiny_patch4_window7_224"
    state = random_state(name, **SMALL_SWIN)
    encoder = small_encoder(f"timm/{name}", crop_size, SMALL_SWIN)
    load_encoder_weights(encoder, state, FILE, crop_size)
    for part in ("mlp.fc1.weight", "attn.relative_position_bias_table"):
        key = f"layers.0.blocks.0.{part}"
        assert torch.equal(encoder.body.state_dict()[key], state[key])


@pytest.mark.parametrize("original", [False, True])
def test_a_sam_state_loads_at_another_crop_size(original):
    options = {**SMALL_VIT, "neck_chans": 32, "global_attn_indexes": (1,), "window_size": 4}
    state = random_state("samvit_base_patch16", num_classes=0, **options)
    theirs = state
    if original:
        theirs = {f"image_encoder.{k.replace('mlp.fc', 'mlp.lin')}": v for k, v in state.items()}
        theirs["mask_decoder.iou_token.weight"] = torch.zeros(1)
    encoder = small_encoder("vit_sam_base", 64, options)
    load_encoder_weights(encoder, theirs, FILE, 64)
    own = encoder.body.state_dict()
    assert own["pos_embed"].shape == (1, 4, 4, 64)
    assert own["blocks.1.attn.rel_pos_h"].shape == (7, 64)
    assert torch.equal(own["blocks.0.attn.rel_pos_h"], state["blocks.0.attn.rel_pos_h"])
    assert torch.equal(own["neck.0.weight"], state["neck.0.weight"])


def test_a_network_bound_to_its_size_names_the_size_of_its_weights():
    state = random_state("cait_xxs24_224", depth=1)
    encoder = small_encoder("timm/cait_xxs24_224", 64, {"depth": 1})
    with pytest.raises(CheckpointError, match=r"another shape pos_embed\. .*, or --crop-size 224"):
        load_encoder_weights(encoder, state, FILE, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.attn.qkv.weight": None}, "missing blocks.0.attn.qkv.weight"),
        ({"blocks.99.norm1.weight": torch.zeros(64)}, "unexpected blocks.99.norm1.weight"),
        ({"norm.weight": torch.zeros(65)}, "of another shape norm.weight"),
        ({"pos_embed": torch.zeros(7)}, "of another shape pos_embed"),
        ({"pos_embed": torch.zeros(1, 8, 64)}, "of another shape pos_embed"),
        ({"pos_embed": torch.zeros(1, 0, 64)}, "of another shape pos_embed"),
        ({"pos_embed": torch.zeros(7), "odd": torch.zeros(1)}, "of another shape pos_embed; unexp"),
        ({"patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)}, "of another shape patch_embed"),
    ],
)
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(tiny_state, change, message):
    state = {key: value for key, value in (tiny_state | change).items() if value is not None}
    encoder = build_encoder(TINY, 64)
    before = {key: value.clone() for key, value in encoder.body.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"^tiny.pth: not weights of {TIMM_TINY}: {message}"):
        load_encoder_weights(encoder, state, FILE, 64)
    after = encoder.body.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("offline", [True, False])
def test_the_hub_out_of_reach_names_three_ways_out(monkeypatch, offline):
    if not offline:  # conftest sets HF_HUB_OFFLINE; without it, its guard refuses the connection
        monkeypatch.setattr(pretrained.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    encoder = build_encoder(TINY, 64)
    with pytest.raises(CheckpointError) as caught:
        load_hub_weights(encoder, "vit_mae_base", 64)
    message = str(caught.value)
    assert message.startswith("--encoder vit_mae_base: ")
    for way in ("(1) --weights FILE", "(2) connect, or set HF_HOME", "(3) --weights none"):
        assert way in message
    assert TINY in message
    assert "\n" not in message


@pytest.mark.parametrize("stem", ["patch", "convolutional"])
def test_weights_in_the_local_cache_need_no_hub(monkeypatch, tmp_path, tiny_state, stem):
    cached = tmp_path / "model.safetensors"
    save_file(tiny_state, cached)
    asked = []

    def look_up(repository, name):
        asked.append((repository, name))
        return str(cached) if name == "model.safetensors" else None

    monkeypatch.setattr(pretrained.huggingface_hub, "try_to_load_from_cache", look_up)
    from_hub, from_file = (build_encoder(TINY, 96, stem=stem) for _ in range(2))
    load_hub_weights(from_hub, TINY, 96)
    load_encoder_weights(from_file, tiny_state, FILE, 96)
    for key, value in from_file.body.state_dict().items():
        if stem == "patch" or not key.startswith("patch_embed."):
            assert torch.equal(value, from_hub.body.state_dict()[key]), key
    assert asked[0] == ("timm/test_vit.r160_in1k", "model.safetensors")


@pytest.mark.parametrize("name", ["vit/64x1", "timm/mobilenetv5_base.untrained"])
def test_a_network_without_published_weights_says_so(name):
    encoder = build_encoder("vit/64x1", 64)
    encoder.timm_name = "mobilenetv5_base.untrained"
    message = rf"--encoder {re.escape(name)}: no pretrained weights .*--weights FILE .*none"
    with pytest.raises(ConfigError, match=message):
        load_hub_weights(encoder, name, 64)


@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_the_licence_of_each_name_is_the_one_that_timm_states(name):
    stated = timm.get_pretrained_cfg(ENCODERS[name].timm_name).license
    assert licence_of(name).lower().split(";")[0] == stated
    tagged = licence_of(f"timm/{ENCODERS[name].timm_name}")
    assert tagged.lower() == licence_of(name).lower()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vit_mae_base", ("non-commercial", "permissive alternative: vit_deit_base")),
        ("vit_mae_large", ("non-commercial", "permissive alternative: vit_dinov2_large")),
        ("vit_sam_base", ("Apache-2.0", "masks", "not box-only")),
        ("vit_dinov3_small", ("passed on", "alternative: vit_dinov2_small")),
        ("vit_dinov3_large", ("passed on", "alternative: vit_dinov2_large")),
        ("timm/convnext_base.dinov3_lvd1689m", ("passed on", "alternative: vit_dinov2_base")),
        ("timm/hiera_base_224.mae", ("non-commercial", "alternative: vit_deit_base")),
        ("timm/hiera_tiny_224.mae", ("non-commercial", "alternative: vit_deit_small")),
        ("timm/sam2_hiera_tiny.fb_r896", ("apache-2.0", "masks", "not box-only")),
        ("timm/samvit_huge_patch16.sa1b", ("apache-2.0", "masks", "not box-only")),
        ("timm/vit_pe_spatial_base_patch16_512.fb", ("SAM", "not box-only")),
        ("timm/mobileone_s0.apple_in1k", ("read its terms", "alternative")),
        ("timm/no_such_model", ("not stated by timm",)),
        ("vit/64x1", ("none",)),
    ],
)
def test_what_to_mind_is_said(name, parts):
    for part in parts:
        assert part in licence_of(name)


@pytest.mark.parametrize("name", ["vit_deit_small", "swin_base", TINY])
def test_a_permissive_licence_comes_without_warning(name):
    assert ";" not in licence_of(name)
    assert licence_of(name).lower() in ("apache-2.0", "mit")


def test_the_optimiser_sam_is_not_taken_for_the_network():
    assert "mask" not in licence_of("timm/vit_base_patch16_224.sam_in1k")
