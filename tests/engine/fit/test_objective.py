"""The batch's losses against the same written out sample by sample."""

import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from malcli.config.fit import FitConfig
from malcli.data.crops.box_mask import rectangle_mask
from malcli.data.crops.training_crops import RoiBatch
from malcli.engine.fit import objective
from malcli.engine.fit.objective import batch_losses, box_mask, loss_side, probabilities
from malcli.engine.machine.clock import Clock
from malcli.losses.colour import colour_evidence
from malcli.losses.crf import mean_field

SIDE, GRID = 32, 8


class Toy(nn.Module):
    """A labeler whose logits are fixed noise of the crop's brightness."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, GRID, GRID, generator=generator))
        self.grid = GRID

    def normalise(self, image_BCHW):
        return image_BCHW.float() / 255 - 0.5

    def forward(self, image_BCHW, size_B):
        pooled = F.adaptive_avg_pool2d(image_BCHW, GRID)
        return (pooled * self.weight).sum(dim=1) * 4


def config(**changes):
    return FitConfig(data=Path("x"), crop_size=SIDE, crf_iterations=5, **changes)


def batch_of(count=4, seed=0, profiles=False, pastes=False):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 0.3
    high = 0.6 + torch.rand(count, 2, generator=generator) * 0.3
    views = torch.zeros(count, 9)
    views[:, 2:5] = 1
    views[::2, 0] = 1  # every second one is flipped
    profile = torch.zeros(count, 2, 0, dtype=torch.uint8)
    if profiles:
        profile = torch.zeros(count, 2, SIDE, dtype=torch.uint8)
        profile[:, 0, 5:20] = 1
        profile[:, 1, 9:] = 1
    pasted = torch.zeros(count, 0, 0, dtype=torch.uint8)
    if pastes:
        pasted = torch.randint(0, 256, (count, SIDE, SIDE), generator=generator).byte()
    return RoiBatch(
        crop_BCHW=torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator).byte(),
        box_B4=torch.cat([low, high], dim=1),
        image_B4=torch.tensor([[-0.1, 0.0, 0.93, 1.0]]).repeat(count, 1),
        profile_B2S=profile,
        size_B=torch.ones(count, dtype=torch.int64),
        views_BN=views,
        valid_B=torch.ones(count),
        row_B=torch.arange(count),
        pasted_BSS=pasted,
        kind_B=torch.arange(count) % 3 if pastes else torch.zeros(count, dtype=torch.int64),
    )


def losses_of(settings, batch, student=None, teacher=None, autocast=contextlib.nullcontext):
    student, teacher = student or Toy(0), teacher or Toy(1)
    return batch_losses(settings, batch, student, teacher, student, autocast, Clock())


def dice(a, b):
    return 1 - 2 * (a * b).sum() / ((a**2).sum() + (b**2).sum() + 0.002)


def losses_literally(settings, batch, side):
    """MIL (rows + columns) and CRF, sample by sample, at a side, straight from mal.md 5."""
    student, teacher, mil, crf = Toy(0), Toy(1), [], []
    for i in range(len(batch.size_B)):
        crop = batch.crop_BCHW[i : i + 1]
        box = rectangle_mask(batch.box_B4[i : i + 1], side)
        inside = (rectangle_mask(batch.image_B4[i : i + 1], side) >= 0.5).float()
        if batch.views_BN[i, 0]:
            crop, box, inside = crop.flip(-1), box.flip(-1), inside.flip(-1)
        image = student.normalise(crop)
        probs = []
        for network in (student, teacher):
            logits = network(image, None)[:, None]
            resized = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
            probs.append(resized[:, 0].sigmoid())
        small = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
        start = (probs[0] + probs[1]) / 2
        if settings.colour_weight:
            evidence = colour_evidence(small, start * box, inside, settings.colour_bandwidth)
            odds = start.logit() + settings.colour_weight * evidence
            start = odds.sigmoid()
        refined = mean_field(
            small, start, box, zeta=settings.crf_zeta,
            omega=settings.crf_omega, iterations=5, include_self=settings.crf_self,
        )  # fmt: skip
        prob, box, refined = ((part * inside)[0] for part in (probs[0], box, refined))
        mil.append(dice(prob.amax(0), box.amax(0)) + dice(prob.amax(1), box.amax(1)))
        crf.append(dice(prob, refined))
    return torch.stack(mil).mean(), torch.stack(crf).mean()


@pytest.mark.parametrize("loss_size", ["grid", "crop"])
@pytest.mark.parametrize("crf_self", [True, False])
@pytest.mark.parametrize("colour_weight", [0.0, 0.7])
def test_losses_at_the_grid_or_at_the_crop_are_those_written_out(
    loss_size, crf_self, colour_weight
):
    settings = config(
        loss_size=loss_size, crf_self=crf_self, crf_zeta=0.5, colour_weight=colour_weight
    )
    side = {"grid": GRID, "crop": SIDE}[loss_size]
    assert loss_side(settings, Toy()) == side
    found = losses_of(settings, batch_of())
    wanted = losses_literally(settings, batch_of(), side)
    for one, other in zip(found, wanted, strict=False):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)


def test_the_crop_s_side_and_the_grid_give_different_losses():
    sizes = [losses_of(config(loss_size=size), batch_of())[0].item() for size in ("grid", "crop")]
    assert sizes[0] != pytest.approx(sizes[1], rel=1e-3)


def test_logits_are_resized_before_the_sigmoid():
    logits = torch.tensor([[[-8.0, 8.0], [-8.0, 8.0]]])
    found = probabilities(logits, 4)[0, 0]
    # align_corners=False: the two middle columns lie a quarter and three quarters of the way.
    assert found.tolist() == pytest.approx(torch.tensor([-8.0, -4, 4, 8]).sigmoid().tolist())


def test_the_box_mask_is_that_of_the_profiles_where_the_batch_has_them():
    batch = batch_of(profiles=True)
    mask = box_mask(batch, SIDE)
    assert torch.equal(mask[1], mask[0])
    wanted = torch.zeros(SIDE, SIDE)
    wanted[5:20, 9:] = 1
    assert torch.equal(mask[0], wanted)
    settings = config(border="wrap", box_mask="inclusive", loss_size="crop")
    seen = []
    original = objective.mil_loss
    try:
        objective.mil_loss = lambda prob, box, *rest: (
            seen.append((box, rest[-1])) or original(prob, box, *rest)
        )
        losses_of(settings, batch)
    finally:
        objective.mil_loss = original
    (box, inside) = seen[0]
    assert inside is None  # nothing is ignored where crops wrap
    assert torch.equal(box[0], wanted.flip(-1))  # flipped with its crop
    assert torch.equal(box[1], wanted)


def test_samples_that_could_not_be_read_count_nothing():
    batch = batch_of()
    batch.valid_B[1:] = 0
    alone = RoiBatch(*(getattr(batch, name)[:1] for name in RoiBatch.__dataclass_fields__))
    for whole, one in zip(losses_of(config(), batch), losses_of(config(), alone), strict=True):
        assert whole.item() == pytest.approx(one.item() / 4, rel=1e-6)


def test_losses_and_mean_field_run_in_float32_without_autocast(monkeypatch):
    seen = {}

    def watch(name):
        original = getattr(objective, name)

        def watched(*args, **kwargs):
            tensors = [part for part in args if isinstance(part, torch.Tensor)]
            seen[name] = torch.is_autocast_enabled("cpu"), {part.dtype for part in tensors}
            return original(*args, **kwargs)

        monkeypatch.setattr(objective, name, watched)

    for name in ("mean_field", "mil_loss", "crf_loss", "outside_loss", "composite_loss"):
        watch(name)

    class HalfToy(Toy):
        def forward(self, image_BCHW, size_B):
            with torch.autocast("cpu", torch.bfloat16):
                return (super().forward(image_BCHW, size_B)).bfloat16()

    losses = losses_of(
        config(outside_weight=1.0), batch_of(pastes=True), HalfToy(0), HalfToy(1),
        lambda: torch.autocast("cpu", torch.bfloat16),
    )  # fmt: skip
    assert len(seen) == 5
    for name, (autocast, dtypes) in seen.items():
        assert not autocast, name
        assert dtypes - {torch.int64} == {torch.float32}, name
    assert all(loss.dtype == torch.float32 for loss in losses)


@pytest.mark.skipif(torch.version.cuda is None, reason="fake CUDA tensors need a build with CUDA")
def test_on_a_gpu_no_value_is_read_back_and_nothing_waits():
    # Fake tensors have a device and no values: whoever asks for one raises.
    real = batch_of(profiles=True, pastes=True)
    with FakeTensorMode():
        shapes = [(value.shape, value.dtype) for value in vars(real).values()]
        batch = RoiBatch(
            *(torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in shapes)
        )
        student, teacher = Toy(), Toy()
        for network in (student, teacher):
            network.weight = nn.Parameter(torch.empty(3, GRID, GRID, device="cuda"))
        losses = losses_of(config(outside_weight=1.0), batch, student, teacher)
        assert {loss.device.type for loss in losses} == {"cuda"}
        with pytest.raises(DataDependentOutputException):
            losses[0].item()


def test_the_paste_loss_sees_what_was_pasted_flipped_with_its_crop():
    batch, student = batch_of(6, pastes=True), Toy(0)
    settings = config()
    prob = probabilities(student(student.normalise(flipped(batch)), batch.size_B), GRID)
    wanted = []
    for place in range(6):
        pasted = batch.pasted_BSS[place].float().view(GRID, 4, GRID, 4).mean(dim=(1, 3)) / 255
        box = rectangle_mask(batch.box_B4[place : place + 1], GRID)[0]
        inside = (rectangle_mask(batch.image_B4[place : place + 1], GRID)[0] >= 0.5).float()
        if place % 2 == 0:
            pasted, box, inside = pasted.flip(-1), box.flip(-1), inside.flip(-1)
        p, cells = prob[place], (box * inside).sum()
        if batch.kind_B[place] == 1:
            wanted.append((-(1 - p).log() * pasted * box * inside).sum() / cells)
        elif batch.kind_B[place] == 2:
            surprise = F.binary_cross_entropy(p, pasted, reduction="none") * inside
            wanted.append(surprise.sum() / cells)
        else:
            wanted.append(torch.zeros(()))
    found = losses_of(settings, batch, student)[3]
    torch.testing.assert_close(found, torch.stack(wanted).mean())


def flipped(batch):
    """The crops as the networks see them."""
    crops = batch.crop_BCHW.clone()
    crops[::2] = crops[::2].flip(-1)
    return crops
