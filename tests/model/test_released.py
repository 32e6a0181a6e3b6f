"""Released checkpoints against a network written here from the specification alone."""

import argparse
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from malcli.errors import CheckpointError
from malcli.geometry.boxes import size_class
from malcli.model.checkpoint import load_checkpoint, load_labeler_weights, read_tensors
from malcli.model.labeler import Architecture, build_labeler
from malcli.model.released import architecture_of, is_released, malcli_tensors

STEM, PATCH = "convolutional", "patch"
LAYOUTS = {"nvlabs.ckpt": STEM, "tao5.pth": STEM, "tao6.pth": PATCH}
# Small, a hole, medium, a hole, large.
AREAS = np.array([400.0, 1024.0, 1025.0, 9216.0, 20000.0])


def draw_network(prefix, width, depth, channels, stem, seed):
    """A random state under the released names (mal.md 10), alive enough to tell mistakes."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape, fan=None):
        scale = (1.5 / fan) ** 0.5 if fan else 0.3
        return torch.randn(shape, generator=generator) * scale

    state = OrderedDict()

    def linear(name, after, before):
        state[f"{name}.weight"] = values(after, before, fan=before)
        state[f"{name}.bias"] = values(after)

    def norm(name, size):
        state[f"{name}.weight"] = 1 + values(size)
        state[f"{name}.bias"] = values(size)

    state["backbone.cls_token"] = values(1, 1, width)
    state["backbone.pos_embed"] = values(1, 197, width)
    proj = "backbone.patch_embed.proj"
    if stem == PATCH:
        state[f"{proj}.weight"] = values(width, 3, 16, 16, fan=768)
        state[f"{proj}.bias"] = values(width)
        linear("backbone.head", 1000, width)
    else:
        before = 3
        for stage, after in enumerate((width // 8, width // 4, width // 2, width)):
            state[f"{proj}.{stage}.0.weight"] = values(after, before, 3, 3, fan=9 * before)
            norm(f"{proj}.{stage}.1", after)
            before = after
        state[f"{proj}.3.3.weight"] = values(width, width, 1, 1, fan=width)
        state[f"{proj}.3.3.bias"] = values(width)
    for index in range(depth):
        block = f"backbone.blocks.{index}"
        norm(f"{block}.norm1", width)
        linear(f"{block}.attn.qkv", 3 * width, width)
        linear(f"{block}.attn.proj", width, width)
        norm(f"{block}.norm2", width)
        linear(f"{block}.mlp.fc1", 4 * width, width)
        linear(f"{block}.mlp.fc2", width, 4 * width)
    norm("backbone.norm", width)
    linear("roi_head.mlp1", channels, width)
    linear("roi_head.mlp2", channels, channels)
    for index, before in enumerate((width, channels, channels, channels)):
        name = f"mask_head.convs.{index}.conv"
        state[f"{name}.weight"] = values(channels, before, 3, 3, fan=9 * before)
        state[f"{name}.bias"] = values(channels)
    return OrderedDict((f"{prefix}.{name}", value) for name, value in state.items())


def draw_state(layout, width=64, depth=2, channels=16):
    stem = LAYOUTS[layout]
    return draw_network("student", width, depth, channels, stem, 1) | draw_network(
        "teacher", width, depth, channels, stem, 2
    )


def save_released(path, state, **more):
    """What Lightning writes beside the weights."""
    content = {
        "epoch": 9,
        "global_step": 12345,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_path": Path("a") / "b", "mode": "min"}},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}}],
        "lr_schedulers": [],
        "hparams": argparse.Namespace(lr=1e-6, out=Path("c")),
        "numbers": (np.float64(0.5), np.arange(3)),
    }
    torch.save(content | more, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each layout, with its state; read only."""
    folder = tmp_path_factory.mktemp("released")
    made = {}
    for layout, widths in zip(LAYOUTS, ((64, 2), (128, 3), (64, 2)), strict=True):
        state = draw_state(layout, *widths)
        more = {"tao_model": "mal"} if layout == "tao6.pth" else {}
        made[layout] = save_released(folder / layout, state, **more), state
    return made


@pytest.fixture(scope="module")
def loaded(files):
    """The same files as malcli loads them; read only."""
    return {layout: load_checkpoint(path) for layout, (path, _) in files.items()}


# The reference: mal.md 2 and 3.


def cubic(distance, a):
    distance = abs(distance)
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def resampling_matrix(law, old, new):
    """Each new position's weights over the old ones, by loops."""
    if new == old:
        return torch.eye(old, dtype=torch.float64)
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        if law == STEM:  # the released rule: no antialiasing, A = -0.75, clamped borders
            source = (i + 0.5) * old / (new + 0.1) - 0.5
            for tap in range(math.floor(source) - 1, math.floor(source) + 3):
                matrix[i, min(max(tap, 0), old - 1)] += cubic(source - tap, -0.75)
        else:  # antialiased: A = -0.5, weights outside left out, the rest scaled to 1
            source = (i + 0.5) * old / new - 0.5
            for tap in range(old):
                matrix[i, tap] = cubic(source - tap, -0.5)
            matrix[i] /= matrix[i].sum()
    return matrix


def reference_logits(state, prefix, depth, image, area):
    """The logits of one crop (3, S, S) and one box area, (S / 4, S / 4)."""
    get = {key.removeprefix(f"{prefix}."): value for key, value in state.items()}
    stem = STEM if "backbone.patch_embed.proj.0.0.weight" in get else PATCH
    n = image.shape[-1] // 16
    width = get["backbone.cls_token"].shape[-1]

    def norm(x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        normal = (x - mean) / torch.sqrt(var + 1e-6)
        return normal * get[f"{name}.weight"] + get[f"{name}.bias"]

    def linear(x, name):
        return x @ get[f"{name}.weight"].T + get[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    proj = "backbone.patch_embed.proj"
    x = image[None]
    if stem == PATCH:
        x = F.conv2d(x, get[f"{proj}.weight"], get[f"{proj}.bias"], stride=16)
    else:
        for stage in range(4):
            x = F.conv2d(x, get[f"{proj}.{stage}.0.weight"], stride=2, padding=1)
            flat = x.flatten()
            x = (x - flat.mean()) / torch.sqrt(flat.var(unbiased=False) + 1e-6)
            x = x * get[f"{proj}.{stage}.1.weight"].view(1, -1, 1, 1)
            x = gelu(x + get[f"{proj}.{stage}.1.bias"].view(1, -1, 1, 1))
        x = F.conv2d(x, get[f"{proj}.3.3.weight"], get[f"{proj}.3.3.bias"])
    tokens = x[0].flatten(1).T

    grid = get["backbone.pos_embed"][0, 1:].view(14, 14, width).double()
    matrix = resampling_matrix(stem, 14, n)
    position = torch.einsum("ya,xb,abc->yxc", matrix, matrix, grid).float().reshape(n * n, width)
    first = get["backbone.cls_token"][0] + get["backbone.pos_embed"][0, :1]
    t = torch.cat([first, tokens + position])
    for index in range(depth):
        block = f"backbone.blocks.{index}"
        q, k, v = linear(norm(t, f"{block}.norm1"), f"{block}.attn.qkv").split(width, dim=1)
        heads = []
        for head in range(width // 64):
            part = slice(64 * head, 64 * head + 64)
            attention = (q[:, part] @ k[:, part].T / 8).softmax(dim=1)
            heads.append(attention @ v[:, part])
        t = t + linear(torch.cat(heads, dim=1), f"{block}.attn.proj")
        hidden = gelu(linear(norm(t, f"{block}.norm2"), f"{block}.mlp.fc1"))
        t = t + linear(hidden, f"{block}.mlp.fc2")
    t = norm(t, "backbone.norm")
    s = t[1:].T.reshape(1, width, n, n)

    key = linear(F.relu(linear(s.mean(dim=(2, 3)), "roi_head.mlp1")), "roi_head.mlp2")[0]
    if 0 < area < 1024:
        side = n // 2
    elif 1024 < area < 9216:
        side = n
    elif 9216 < area < 1e10:
        side = 2 * n
    else:
        return torch.zeros(4 * n, 4 * n)

    def bilinear(x, side):
        return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)

    value = bilinear(s, side)
    for index in range(4):
        if index == 3:
            value = bilinear(value, 2 * side)
        name = f"mask_head.convs.{index}.conv"
        value = F.relu(F.conv2d(value, get[f"{name}.weight"], get[f"{name}.bias"], padding=1))
    logits = (key.view(-1, 1, 1) * value[0]).sum(0)
    return bilinear(logits[None, None], 4 * n)[0, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_released_file_computes_what_the_specification_says(files, loaded, layout):
    state, checkpoint = files[layout][1], loaded[layout]
    depth = int(checkpoint.architecture.encoder.rpartition("x")[2])
    images = torch.randn(len(AREAS), 3, 512, 512, generator=torch.Generator().manual_seed(5))
    sizes = torch.from_numpy(size_class(AREAS, checkpoint.architecture.size_classes))
    for name in ("student", "teacher"):
        network = getattr(checkpoint, name)
        logits = network(images, sizes)
        for index, area in enumerate(AREAS):
            wanted = reference_logits(state, name, depth, images[index], area)
            assert logits[index].shape == wanted.shape == (128, 128)
            assert (logits[index] - wanted).abs().max() < 1e-4
            assert wanted.std() > 0.1 or area in (1024, 9216)
        assert not logits[1].any()
        assert not logits[3].any()


def test_the_two_laws_of_the_position_grid_differ_by_far():
    one, other = resampling_matrix(STEM, 14, 32), resampling_matrix(PATCH, 14, 32)
    assert (one - other).abs().max() > 0.05
    assert torch.allclose(one.sum(1), torch.ones(32, dtype=torch.float64))


def test_a_smaller_crop_gets_its_own_position_grid(files):
    """The grid of 224 pixels is the stored one: not resampled by either law."""
    for layout in ("nvlabs.ckpt", "tao6.pth"):
        path, state = files[layout]
        architecture = architecture_of(state, path)
        network = build_labeler(Architecture(**architecture.to_plain() | {"crop_size": 224}))
        load_labeler_weights(network, dict(state), path)
        image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(6))
        with torch.no_grad():
            logits = network.eval()(image, torch.tensor([1]))[0]
            depth = int(architecture.encoder.rpartition("x")[2])
            wanted = reference_logits(state, "student", depth, image[0], 5000)
        assert (logits - wanted).abs().max() < 1e-4 * max(1, wanted.abs().max())


@pytest.mark.parametrize(
    ("layout", "encoder", "stem", "position", "source"),
    [
        ("nvlabs.ckpt", "vit/64x2", STEM, "released", "NVlabs"),
        ("tao5.pth", "vit/128x3", STEM, "released", "TAO 5.0-6.0"),
        ("tao6.pth", "vit/64x2", PATCH, "antialiased", "TAO 6.25.7 or later"),
    ],
)
def test_the_architecture_is_read_from_shapes(loaded, layout, encoder, stem, position, source):
    checkpoint = loaded[layout]
    assert checkpoint.architecture == Architecture(
        encoder=encoder,
        decoder="attention",
        crop_size=512,
        channels=16,
        key_pool="mean",
        key_layers=2,
        upsample_before=4,
        size_scaling=True,
        stem=stem,
        position=position,
        size_classes="strict",
    )
    assert checkpoint.settings == {"preset": "released", "source": source}
    assert (checkpoint.threshold, checkpoint.quality) == ((0.1, 0.1, 0.1), {})
    assert len(checkpoint.sha256) == 64
    assert not checkpoint.self_test.passed  # random values
    assert checkpoint.notes[-1].endswith(checkpoint.self_test.sentence)
    assert not checkpoint.student.training
    assert not any(one.requires_grad for one in checkpoint.teacher.parameters())


def test_every_tensor_but_the_classifier_has_a_place(files):
    for path, state in files.values():
        named = malcli_tensors(state, path)
        own = {key: value for key, value in state.items() if "backbone.head." not in key}
        assert len(named) == len(own)
        assert {id(value) for value in named.values()} == {id(value) for value in own.values()}
        wanted = build_labeler(architecture_of(state, path)).state_dict()
        assert {key.partition(".")[2] for key in named} == set(wanted)


def test_a_base_model_has_the_stated_number_of_tensors():
    for stem, count in ((STEM, 174), (PATCH, 164)):  # mal.md 10.1, 10.3
        state = draw_network("student", 64, 12, 8, stem, 0)
        assert len(state) == count


def test_only_released_names_are_released(files):
    assert all(is_released(state) for _, state in files.values())
    for names in (
        ["student.encoder.body.cls_token", "teacher.decoder.key.0.weight"],
        ["cls_token", "blocks.0.norm1.weight"],
        ["backbone.cls_token"],
        ["students.backbone.cls_token"],
        [],
    ):
        assert not is_released(names)


@pytest.mark.parametrize("present", ["student", "teacher"])
def test_one_network_stands_for_both_and_it_is_said(files, tmp_path, present):
    _, state = files["nvlabs.ckpt"]
    own = {key: value for key, value in state.items() if key.startswith(present)}
    checkpoint = load_checkpoint(save_released(tmp_path / "one.ckpt", own))
    student, teacher = checkpoint.student.state_dict(), checkpoint.teacher.state_dict()
    assert all(torch.equal(student[key], teacher[key]) for key in student)
    bias = state[f"{present}.roi_head.mlp1.bias"]
    assert torch.equal(checkpoint.student.decoder.key[0].bias, bias)
    assert any(f"holds only the {present}" in note for note in checkpoint.notes)


def rename(state, old, new):
    for key in [key for key in state if old in key]:
        state[key.replace(old, new)] = state.pop(key)


def drop(state, part):
    for key in [key for key in state if part in key]:
        del state[key]


def resize(key, *shape):
    return lambda state: state.update({key: torch.zeros(shape)})


def add(key):
    return resize(key, 4)


STRANGE = {
    "fan backbone": (
        lambda s: rename(s, "backbone.blocks.0.attn.qkv", "backbone.blocks.0.attn.kv"),
        r"missing, first student.backbone.blocks.0.attn.qkv.weight; .* unexpected, first "
        r"student.backbone.blocks.0.attn.kv.weight",
    ),
    "five convolutions": (
        add("student.mask_head.convs.4.conv.weight"),
        r"1 unexpected, first student.mask_head.convs.4.conv.weight",
    ),
    "three convolutions": (
        lambda s: drop(s, "convs.3"),
        r"2 missing, first student.mask_head.convs.3.conv.weight",
    ),
    "other student and teacher": (
        resize("teacher.backbone.norm.weight", 32),
        r"1 of another shape, first teacher.backbone.norm.weight \[32\]",
    ),
    "patches of 14": (
        resize("student.backbone.patch_embed.proj.weight", 64, 3, 14, 14),
        r"patch_embed.proj.weight",
    ),
    "a block left out": (lambda s: drop(s, "blocks.0."), r"student.backbone.blocks.0.norm1.weight"),
    "a block too far": (
        add("student.backbone.blocks.999999999999.norm1.weight"),
        r"unexpected, first student.backbone.blocks.999999999999",
    ),
    "no class token": (
        lambda s: drop(s, "cls_token"),
        r"missing, first student.backbone.cls_token",
    ),
    "scalars": (
        lambda s: s.update(dict.fromkeys(s, torch.tensor(1.0))),
        "of another shape|missing",
    ),
    "no square": (
        lambda s: [resize(f"{one}.backbone.pos_embed", 1, 200, 64)(s) for one in NETWORKS],
        r"position grid has 199 cells, which is no square",
    ),
    "no grid": (
        lambda s: [resize(f"{one}.backbone.pos_embed", 1, 1, 64)(s) for one in NETWORKS],
        r"position grid has 0 cells",
    ),
    "only a head": (lambda s: drop(s, "backbone"), r"missing, first student.backbone.cls_token"),
}
NETWORKS = ("student", "teacher")


@pytest.mark.parametrize("change", STRANGE)
def test_another_layout_is_refused_with_its_first_names(files, tmp_path, change):
    apply, message = STRANGE[change]
    state = dict(files["nvlabs.ckpt"][1])
    apply(state)
    path = save_released(tmp_path / "odd.ckpt", state)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "malcli reads plain ViTs with heads of 64" in str(caught.value)


def test_heads_of_another_width_are_refused(tmp_path):
    state = draw_network("student", 96, 1, 8, STEM, 0)
    with pytest.raises(CheckpointError, match="96 wide, which is no number of heads of 64"):
        load_checkpoint(save_released(tmp_path / "odd.ckpt", state))


def test_a_fit_may_start_from_a_released_student(files):
    path, state = files["tao6.pth"]
    architecture = architecture_of(state, path)
    network = build_labeler(Architecture(**architecture.to_plain() | {"crop_size": 64}))
    load_labeler_weights(network, read_tensors(path), path)
    assert network.crop_size == 64
    weight = state["student.mask_head.convs.3.conv.weight"]
    assert torch.equal(network.decoder.value[3].weight, weight)
