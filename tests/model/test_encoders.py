"""Encoders: names, feature maps of every family, crop sizes, and what training asks of them."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F

from malcli.config.shared import ENCODER_NAMES
from malcli.errors import ConfigError
from malcli.model import encoders
from malcli.model.encoders import (
    ENCODERS,
    ImageEncoder,
    build_encoder,
    check_crop_size,
    timm_name_of,
)

TINY = "timm/test_vit.r160_in1k"  # 64 channels, patches of 16, grid of 10 x 10
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

SMALL_VIT = {"embed_dim": 64, "depth": 2, "num_heads": 1}
SMALL_SAM = {**SMALL_VIT, "neck_chans": 32, "global_attn_indexes": (1,)}
SMALL_SWIN = {"embed_dim": 32, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
SMALL_HIERA = {"embed_dim": 32, "stages": (1, 1, 1, 1)}

# name, crop size, channels, stride, upsample, normalisation, what makes it small; of each family
FAMILIES = [
    (TINY, 64, 64, 16, 1, HALF, {}),
    ("vit_mae_base", 64, 64, 16, 1, IMAGENET, SMALL_VIT),
    ("vit_deit_base", 64, 64, 16, 1, IMAGENET, SMALL_VIT),
    ("timm/deit_tiny_distilled_patch16_224", 64, 64, 16, 1, IMAGENET, SMALL_VIT),
    ("timm/deit3_small_patch16_224", 64, 64, 16, 1, IMAGENET, SMALL_VIT),
    ("timm/vit_tiny_patch16_224.augreg_in21k", 64, 64, 16, 1, HALF, SMALL_VIT),
    ("timm/vit_base_patch16_siglip_224", 64, 64, 16, 1, HALF, SMALL_VIT),  # attention pool
    ("timm/test_vit2", 64, 64, 16, 1, HALF, {}),  # registers, and a norm behind the pooling
    ("timm/test_vit4", 64, 96, 16, 1, HALF, {}),  # RMS norm
    ("timm/test_vit_relpos", 64, 96, 16, 1, HALF, {}),
    ("timm/beit_base_patch16_224", 64, 64, 16, 1, HALF, SMALL_VIT),
    ("vit_dinov2_base", 64, 64, 14, 1, IMAGENET, SMALL_VIT),  # 64 is resized to 56
    ("timm/vit_base_patch14_reg4_dinov2", 56, 64, 14, 1, IMAGENET, SMALL_VIT),
    ("timm/eva02_tiny_patch14_224", 56, 64, 14, 1, None, SMALL_VIT),
    ("vit_dinov3_base", 64, 64, 16, 1, IMAGENET, SMALL_VIT),
    ("timm/vit_pe_spatial_tiny_patch16_512", 64, 64, 16, 1, HALF, SMALL_VIT),
    ("vit_sam_base", 64, 32, 16, 1, IMAGENET, SMALL_SAM),
    ("swin_base", 64, 256, 32, 2, IMAGENET, SMALL_SWIN),
    ("timm/swinv2_tiny_window8_256", 64, 256, 32, 2, IMAGENET, SMALL_SWIN),
    ("convnext_base", 64, 40, 32, 2, IMAGENET, {"dims": (8, 16, 24, 40), "depths": (1, 1, 1, 1)}),
    ("timm/sam2_hiera_tiny", 64, 256, 32, 2, IMAGENET, SMALL_HIERA),
    ("timm/hiera_tiny_224", 64, 256, 32, 2, IMAGENET, SMALL_HIERA),
    ("timm/test_resnet", 64, 96, 32, 2, HALF, {}),
    ("timm/test_coatnet", 64, 128, 32, 2, None, {}),
    ("timm/hrnet_w18_small", 64, 1024, 32, 2, IMAGENET, {}),  # its last map ignores some blocks
    ("timm/efficientvit_m0", 64, 192, 64, 4, IMAGENET, {}),
]


def small_encoder(name, crop_size, options):
    return ImageEncoder(name, crop_size, "patch", "antialiased", options)


def test_every_name_of_the_command_line_is_a_model_of_timm():
    assert tuple(ENCODERS) == ENCODER_NAMES
    for name in ENCODER_NAMES:
        assert timm.is_model(timm_name_of(name))
        assert timm.get_pretrained_cfg(timm_name_of(name)).has_weights  # the tag exists, too


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_mae_bas", "vit_mae_base"),
        ("dinov3_small", "vit_dinov3_small"),
        ("VIT_DEIT_TINY", "vit_deit_tiny"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(name, near):
    with pytest.raises(ConfigError, match=rf"{name}: unknown; did you mean {near}\?"):
        build_encoder(name, 64)


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(ConfigError, match=r"--encoder qqq: unknown \(one of vit_mae_base, .*timm/"):
        timm_name_of("qqq")


def test_any_timm_name_passes():
    assert timm_name_of("timm/resnet50.a1_in1k") == "resnet50.a1_in1k"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("timm/vit_smal_patch16_224", "; did you mean .*vit_small_patch16_224"),
        ("timm/test_vit.nonexistent", r"; did you mean test_vit\.r160_in1k\?$"),
        ("timm/", "$"),
        ("timm/hf-hub:someone/something", "$"),  # timm would download and trust it
        ("timm/local-dir:folder", ""),
    ],
)
def test_what_timm_does_not_know_gets_near_names(name, near):
    with pytest.raises(
        ConfigError, match=rf"--encoder {re.escape(name)}: timm has no such .*{near}"
    ):
        build_encoder(name, 64)


@pytest.mark.parametrize("name", ["vit/", "vit/768", "vit/100x2", "vit/64x0", "vit/99999999999x1"])
def test_a_plain_vit_s_name_must_say_width_and_depth(name):
    with pytest.raises(ConfigError, match=rf"--encoder {name}: .* such as vit/768x12$"):
        build_encoder(name, 64)


def test_a_plain_vit_has_the_width_depth_and_heads_of_its_name():
    body = build_encoder("vit/128x3", 64).body
    assert body.embed_dim == 128
    assert len(body.blocks) == 3
    assert body.blocks[0].attn.num_heads == 2
    assert body.patch_embed.patch_size == (16, 16)
    assert body.norm.eps == 1e-6


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "halonet_h1"])
def test_a_network_without_feature_map_is_named(name):
    with pytest.raises(ConfigError, match=rf"timm/{name}: gives no feature map at --crop-size 64"):
        build_encoder(f"timm/{name}", 64)


@pytest.mark.parametrize(
    ("name", "crop_size", "channels", "stride", "upsample", "normal", "options"), FAMILIES
)
def test_every_family_gives_a_map_and_a_gradient_to_all_it_trains(
    name, crop_size, channels, stride, upsample, normal, options
):
    torch.manual_seed(0)
    encoder = small_encoder(name, crop_size, options)
    side = crop_size // stride
    assert (encoder.channels, encoder.stride, encoder.upsample) == (channels, stride, upsample)
    assert normal is None or (encoder.mean, encoder.std) == normal
    assert encoder.training
    feature = encoder(torch.randn(2, 3, crop_size, crop_size))
    assert feature.shape == (2, channels, side, side)
    assert feature.isfinite().all()
    (feature * torch.randn_like(feature)).sum().backward()
    lacking = [k for k, p in encoder.named_parameters() if p.requires_grad == (p.grad is None)]
    assert not lacking
    assert sum(p.requires_grad for p in encoder.parameters()) > 10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (TINY, {}),
        ("vit_dinov2_base", SMALL_VIT),
        ("vit_dinov3_base", SMALL_VIT),
        ("vit_sam_base", SMALL_SAM),
        ("timm/eva02_tiny_patch14_224", SMALL_VIT),
        ("timm/test_vit_relpos", {}),
        ("timm/test_convnext", {}),
        ("timm/test_coatnet", {}),
        ("timm/sam2_hiera_tiny", SMALL_HIERA),
        ("swin_base", SMALL_SWIN),
    ],
)
def test_another_crop_size_gives_a_map_of_another_size(name, options):
    encoder = small_encoder(name, 224, options).eval()
    for crop_size in (96, 224):
        encoder.set_crop_size(crop_size)
        with torch.no_grad():
            feature = encoder(torch.randn(1, 3, crop_size, crop_size))
        side = crop_size // encoder.stride
        assert feature.shape == (1, encoder.channels, side, side)
        assert feature.isfinite().all()


def test_a_network_bound_to_its_size_takes_it_when_built_and_no_other_later():
    encoder = small_encoder("timm/cait_xxs24_224", 64, {"depth": 1})
    message = r"--crop-size 96: --encoder timm/cait_xxs24_224 was built for crops of 64"
    with pytest.raises(ConfigError, match=message):
        encoder.set_crop_size(96)
    encoder.set_crop_size(64)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 192, 4, 4)


def test_the_default_crop_of_512_is_shrunk_to_patches_of_14():
    encoder = small_encoder("vit_dinov2_base", 64, SMALL_VIT).eval()  # 4 * 14 = 56
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shrunk = F.interpolate(image, (56, 56), mode="bilinear")
    with torch.no_grad():
        assert torch.equal(encoder(image), encoder(shrunk))
    check_crop_size(512, 14)
    check_crop_size(518, 14)


@pytest.mark.parametrize(
    ("crop_size", "stride", "near"), [(100, 14, 98), (72, 16, 64), (144, 32, 128), (0, 14, 14)]
)
def test_a_crop_size_off_the_stride_gets_the_nearest(crop_size, stride, near):
    with pytest.raises(ConfigError, match=rf"--crop-size {crop_size}: .* {stride}; take {near}$"):
        check_crop_size(crop_size, stride)


def test_a_norm_behind_the_pooling_is_applied_to_each_feature():
    for name in ("timm/test_vit2", "timm/test_convnext"):
        feature = build_encoder(name, 64).eval()(torch.randn(1, 3, 64, 64))
        assert torch.allclose(feature.mean(1), torch.zeros(()), atol=1e-5), name
        assert torch.allclose(feature.var(1, unbiased=False), torch.ones(()), atol=1e-2), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stem": "convolutional"}, "--stem convolutional: --encoder .* no plain ViT .* of 16"),
        ({"position": "released"}, "--position released: .* no grid of position values"),
    ],
)
@pytest.mark.parametrize("name", ["timm/test_convnext", "timm/vit_tiny_patch16_dinov3_qkvb"])
def test_settings_of_plain_vits_are_refused_elsewhere(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, 64, **settings)


def test_the_convolutional_stem_needs_patches_of_16():
    with pytest.raises(ConfigError, match="no plain ViT with patches of 16; take --stem patch"):
        build_encoder("vit_dinov2_small", 64, stem="convolutional")


def test_tokens_of_the_convolutional_stem_are_its_map_row_by_row():
    torch.manual_seed(0)
    encoder = build_encoder("vit/64x1", 64, stem="convolutional", position="released").eval()
    state, value = encoder.body.state_dict(), torch.randn(2, 3, 64, 64)
    tokens = encoder.body.patch_embed(value)
    for stage in range(4):  # written out with single operations
        key = f"patch_embed.proj.{stage}"
        value = F.conv2d(value, state[f"{key}.0.weight"], stride=2, padding=1)
        mean = value.mean((1, 2, 3), keepdim=True)
        value = (value - mean) / (value.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-6).sqrt()
        value = value * state[f"{key}.1.weight"].view(-1, 1, 1)
        value = value + state[f"{key}.1.bias"].view(-1, 1, 1)
        value = value * 0.5 * (1 + torch.erf(value / 2**0.5))
    value = F.conv2d(
        value, state["patch_embed.proj.3.3.weight"], state["patch_embed.proj.3.3.bias"]
    )
    assert value.shape == (2, 64, 4, 4)
    for row in range(4):
        for column in range(4):
            got, wanted = tokens[:, 4 * row + column], value[:, :, row, column]
            assert torch.allclose(got, wanted, atol=1e-5)
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, 64, 4, 4)


def test_drop_path_leaves_out_blocks_in_training_only():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, 64)
    encoder = build_encoder(TINY, 64, drop_path=0.5)
    plain = build_encoder(TINY, 64)
    plain.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert any(not torch.equal(encoder(image), encoder(image)) for _ in range(5))
        assert torch.equal(plain(image), plain(image))
        assert torch.equal(encoder.eval()(image), plain.eval()(image))


def test_a_network_without_stochastic_depth_says_so():
    message = r"--drop-path 0.1: --encoder timm/dla46x_c has no stochastic depth"
    with pytest.raises(ConfigError, match=message):
        build_encoder("timm/dla46x_c", 64, drop_path=0.1)
    assert build_encoder("timm/dla46x_c", 64, drop_path=0.0).channels == 256


def test_recomputed_activations_give_the_same_gradients():
    torch.manual_seed(0)
    encoder, image = build_encoder(TINY, 64), torch.randn(2, 3, 64, 64)
    gradients = []
    for on in (False, True):
        encoder.set_grad_checkpointing(on)
        encoder.zero_grad()
        encoder(image).pow(3).sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    calls = []
    encoder.body.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    encoder(image).sum().backward()
    assert len(calls) == 2  # once forward, once again in backward


def test_a_network_that_cannot_recompute_says_so():
    with pytest.raises(ConfigError, match="--grad-checkpointing: --encoder timm/dla46x_c cannot"):
        build_encoder("timm/dla46x_c", 64).set_grad_checkpointing(True)


def test_depths_of_a_plain_vit_count_the_blocks_above():
    encoder = build_encoder("vit/64x3", 64)
    for name, depth in encoder.depths().items():
        block = re.match(r"body\.blocks\.(\d)\.", name)
        wanted = 2 - int(block[1]) if block else 0 if name.startswith("body.norm.") else 3
        assert depth == wanted, name
    assert encoder.depths().keys() == dict(encoder.named_parameters()).keys()


@pytest.mark.parametrize(
    ("name", "options", "lowest", "highest", "most"),
    [
        ("timm/test_convnext", {}, "stem.0.weight", "norm_pre.weight", 9),
        ("vit_dinov3_base", SMALL_VIT, "patch_embed.proj.weight", "norm.weight", 2),
        ("timm/vit_small_patch16_rope_mixed_224", SMALL_VIT, "rope.freqs", "norm.weight", 2),
        ("timm/sam2_hiera_tiny", SMALL_HIERA, "pos_embed_window", "blocks.3.norm1.weight", 4),
        ("swin_base", SMALL_SWIN, "patch_embed.proj.weight", "norm.weight", 4),
        ("vit_sam_base", SMALL_SAM, "pos_embed", "neck.0.weight", 2),
        ("timm/hrnet_w18_small", {}, "conv1.weight", "incre_modules.3.0.conv1.weight", 4),
        ("timm/test_vit_relpos", {}, "patch_embed.proj.weight", "norm.weight", 9),
    ],
)
def test_depths_run_from_the_stem_to_the_last_norm_without_gap(
    name, options, lowest, highest, most
):
    depths = small_encoder(name, 64, options).depths()
    assert depths[f"body.{lowest}"] == most
    assert depths[f"body.{highest}"] == 0
    assert set(depths.values()) == set(range(most + 1))


def test_layers_without_known_order_are_refused():
    with pytest.raises(ConfigError, match=r"--layer-decay: .* the layers of .*pit_ti"):
        build_encoder("timm/pit_ti_224", 64).depths()


def test_building_keeps_frozen_parameters_and_modes_of_callers_alone():
    with torch.no_grad():
        encoder = build_encoder(TINY, 64)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    encoder.requires_grad_(False)
    encoder.set_crop_size(96)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_encoder_names_sort_into_the_module_s_failures_only():
    assert not issubclass(ConfigError, encoders.FAILURES)  # or a clear message would be wrapped
