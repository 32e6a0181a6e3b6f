"""Attention maps against softmax(q k^T / sqrt(d)) written out, and the networks that have none."""

import pytest
import torch
from timm.layers import apply_rot_embed_cat

from malcli.errors import ConfigError
from malcli.model.attention import attention_maps, check_layers
from malcli.model.encoders import build_encoder

TINY = "timm/test_vit.r160_in1k"  # 6 layers, 2 heads
ROTARY = "timm/eva02_tiny_patch14_224.mim_in22k"
NO_CLASS = "timm/test_vit_relpos"


def encoder_of(name, crop_size):
    torch.manual_seed(0)
    encoder = build_encoder(name, crop_size).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # timm's start makes all attention nearly even
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return encoder


def image_of(crop_size, count=2):
    return torch.randn(count, 3, crop_size, crop_size, generator=torch.Generator().manual_seed(1))


def input_of_layer(encoder, image, layer):
    """The normalised tokens that the layer's attention gets."""
    seen = []
    attention = encoder.body.blocks[layer - 1].attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        encoder(image)
    handle.remove()
    return attention, seen[0]


def heads_of(values, count):
    batch, tokens, width = values.shape
    return values.reshape(batch, tokens, count, width // count).transpose(1, 2)


def test_maps_are_the_softmax_of_queries_and_keys():
    encoder, image = encoder_of(TINY, 64), image_of(64)
    attention, ((tokens_BTC, *_), _) = input_of_layer(encoder, image, 3)
    with torch.no_grad():
        query, key, _ = attention.qkv(tokens_BTC).chunk(3, dim=-1)
        query, key = (heads_of(values, attention.num_heads) for values in (query, key))
        scores = query @ key.mT / query.shape[-1] ** 0.5
        wanted = (scores.exp() / scores.exp().sum(-1, keepdim=True)).mean(dim=1)  # (B, T, T)
    of_class, of_patch = attention_maps(encoder, image, [1, 3], torch.tensor([6, 9]))
    assert of_class.shape == of_patch.shape == (2, 2, 4, 4)
    assert of_class.std() > 0.01  # not even, so that order matters
    for b, patch in enumerate((6, 9)):
        assert torch.allclose(of_class[b, 1].flatten(), wanted[b, 0, 1:], atol=1e-6)
        assert torch.allclose(of_patch[b, 1].flatten(), wanted[b, 1 + patch, 1:], atol=1e-6)


def test_maps_of_a_rotary_network_are_the_softmax_of_turned_queries_and_keys():
    encoder, image = encoder_of(ROTARY, 56), image_of(56, 1)
    attention, ((tokens_BTC, *_), options) = input_of_layer(encoder, image, 2)
    with torch.no_grad():
        if attention.qkv is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
            joint = tokens_BTC @ attention.qkv.weight.mT + bias
            query, key, _ = joint.chunk(3, dim=-1)
        else:
            query, key = attention.q_proj(tokens_BTC), attention.k_proj(tokens_BTC)
        turned = []
        for values in (query, key):
            heads = heads_of(values, attention.num_heads)
            patches = apply_rot_embed_cat(heads[:, :, 1:], options["rope"])
            turned.append(torch.cat([heads[:, :, :1], patches], dim=2))
        wanted = (turned[0] @ turned[1].mT / turned[0].shape[-1] ** 0.5).softmax(-1).mean(dim=1)
    of_class, of_patch = attention_maps(encoder, image, [2], torch.tensor([5]))
    assert torch.allclose(of_class[0, 0].flatten(), wanted[0, 0, 1:], atol=1e-6)
    assert torch.allclose(of_patch[0, 0].flatten(), wanted[0, 6, 1:], atol=1e-6)


def test_without_class_token_there_is_the_patch_alone():
    encoder = encoder_of(NO_CLASS, 64)
    of_class, of_patch = attention_maps(encoder, image_of(64), [2], torch.tensor([0, 15]))
    assert of_class is None
    assert torch.allclose(of_patch.sum(dim=(-1, -2)), torch.ones(2, 1), atol=1e-5)


def test_the_network_is_afterwards_as_it_was():
    encoder, image = encoder_of(TINY, 64), image_of(64)
    blocks = encoder.body.blocks
    fused = [block.attn.fused_attn for block in blocks]
    with torch.no_grad():
        before = encoder(image)
    attention_maps(encoder, image, [2, 4], torch.tensor([0, 0]))
    assert [block.attn.fused_attn for block in blocks] == fused
    assert not any(block.attn.attn_drop._forward_pre_hooks for block in blocks)
    with torch.no_grad():
        assert torch.equal(encoder(image), before)


@pytest.mark.parametrize("name", ["test_convnext.r160_in1k", "swin_tiny_patch4_window7_224"])
def test_a_network_of_stages_is_refused_with_the_remedy(name):
    encoder = build_encoder(f"timm/{name}", 224)
    with pytest.raises(ConfigError, match=r"no attention between all patches.*vit_deit_small"):
        check_layers(encoder, [4])


def test_attention_over_channels_is_refused_and_leaves_no_hook():
    encoder = build_encoder("timm/xcit_nano_12_p16_224.fb_in1k", 64).eval()
    check_layers(encoder, [4])  # it looks like a plain ViT until it runs
    with pytest.raises(ConfigError, match="no attention between all patches"):
        attention_maps(encoder, image_of(64), [4], torch.tensor([0, 0]))
    assert not encoder.body.blocks[3].attn.attn_drop._forward_pre_hooks


def test_a_layer_beyond_the_depth_names_the_depth_and_good_ones():
    with pytest.raises(ConfigError, match=r"has 6 layers, not 12; take --layers 2,4,6"):
        check_layers(build_encoder(TINY, 64), [4, 8, 12])


def test_layers_of_windows_are_refused_with_those_that_see_the_whole_crop():
    encoder = build_encoder("vit_sam_base", 64)
    check_layers(encoder, [3, 12])
    with pytest.raises(ConfigError, match=r"layer 4 .* inside windows; .*: 3,6,9,12$"):
        check_layers(encoder, [3, 4])
