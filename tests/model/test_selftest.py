"""The self-test tells the labeler that ships from networks that were never trained, or broken."""

import copy
import dataclasses

import pytest
import torch

from malcli.model.checkpoint import load_checkpoint
from malcli.model.labeler import Architecture, build_labeler
from malcli.model.locate import SHIPPED
from malcli.model.selftest import CROPS, LEAST_AUC, behaves_trained


@pytest.fixture(scope="module")
def shipped():
    """The labeler that ships; read only."""
    return load_checkpoint(SHIPPED)


def small(encoder, **changes):
    defaults = {"decoder": "attention", "crop_size": 96, "channels": 32, "key_pool": "mean",
                "key_layers": 2, "upsample_before": 4, "size_scaling": True}  # fmt: skip
    return Architecture(encoder=encoder, **defaults | changes)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_trained_networks_pass_by_far(shipped, network):
    result = behaves_trained(getattr(shipped, network))
    assert result.passed
    assert result.values["auc"] > 0.85 > LEAST_AUC
    assert result.values["inside"] > 0.9
    assert result.values["outside"] < 0.15
    assert result.values["iou"] > 2 * result.values["iou_of_crop"]
    assert result.sentence.startswith("self-test: behaves like a trained labeler (3 drawn objects")
    assert {size for _, size, _, _ in CROPS} == {0, 1, 2}


@pytest.mark.parametrize("crop_size", [96, 320])
def test_a_trained_network_passes_at_other_crop_sizes(shipped, crop_size):
    network = copy.deepcopy(shipped.student)
    network.set_crop_size(crop_size)
    assert behaves_trained(network).passed


ARCHITECTURES = {
    "shipped": None,
    "tiny": small("timm/test_vit.r160_in1k"),
    "plain": small("vit/128x4"),
    "released": small("vit/64x2", stem="convolutional", position="released"),
    "paper": small("timm/test_vit.r160_in1k", key_pool="max", key_layers=1, upsample_before=3),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_networks_fail(shipped, name, seed):
    torch.manual_seed(seed)
    chosen = ARCHITECTURES[name] or dataclasses.replace(shipped.architecture, crop_size=96)
    result = behaves_trained(build_labeler(chosen).eval())
    assert not result.passed
    assert "does not behave like a trained labeler" in result.sentence


def shuffle(network, part):
    """Permute the rows of each matrix whose name ends so."""
    for name, value in network.state_dict().items():
        if name.endswith(part):
            value.copy_(value[torch.randperm(len(value))])


def reverse_blocks(network):
    network.encoder.body.blocks = torch.nn.Sequential(*reversed(network.encoder.body.blocks))


def shuffle_positions(network):
    grid = network.encoder.body.pos_embed.data
    grid[:, 1:] = grid[:, 1:][:, torch.randperm(grid.shape[1] - 1)]


def forget(part):
    def change(network):
        fresh = getattr(build_labeler(load_checkpoint(SHIPPED).architecture), part)
        getattr(network, part).load_state_dict(fresh.state_dict())

    return change


def fill(value):
    return lambda network: network.decoder.value[3].weight.data.fill_(value)


BROKEN = {
    "qkv shuffled": lambda network: shuffle(network, "attn.qkv.weight"),
    "blocks reversed": reverse_blocks,
    "positions shuffled": shuffle_positions,
    "positions gone": lambda network: network.encoder.body.pos_embed.data.zero_(),
    "random decoder": forget("decoder"),
    "random encoder": forget("encoder"),
    "not a number": fill(float("nan")),
    "infinite": fill(float("inf")),
    "nothing": fill(0.0),
}


@pytest.mark.parametrize("change", BROKEN)
def test_trained_but_scrambled_networks_fail(shipped, change):
    torch.manual_seed(0)
    network = copy.deepcopy(shipped.student)
    BROKEN[change](network)
    assert not behaves_trained(network).passed


def test_the_result_is_repeatable_and_leaves_the_network_alone(shipped):
    before = {key: value.clone() for key, value in shipped.student.state_dict().items()}
    state = torch.get_rng_state()
    assert behaves_trained(shipped.student) == behaves_trained(shipped.student)
    assert torch.equal(state, torch.get_rng_state())
    assert not shipped.student.training
    for key, value in shipped.student.state_dict().items():
        assert torch.equal(value, before[key])
