"""The box-supervised objective of one batch (Sec. 3.3): views, networks, MIL, mean field, CRF.

Shape suffixes: B crops, C channels, H W crop pixels, h w score grid.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from malcli.config.fit import FitConfig
from malcli.data.crops.augment import flip_where, student_view
from malcli.data.crops.box_mask import profile_mask, rectangle_mask
from malcli.data.crops.training_crops import RoiBatch
from malcli.engine.machine.clock import Clock
from malcli.losses.colour import with_colour
from malcli.losses.composite import composite_loss
from malcli.losses.crf import crf_loss, mean_field
from malcli.losses.mil import mil_loss, outside_loss
from malcli.model.labeler import MaskLabeler


def batch_losses(
    config: FitConfig,
    batch: RoiBatch,
    student: MaskLabeler,
    teacher: MaskLabeler,
    model: nn.Module,
    autocast: Callable[[], AbstractContextManager[None]],
    clock: Clock,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the MIL, CRF, outside and paste losses of a batch: means over its crops, no weights.

    Args:
        config: The fit's settings.
        batch: Crops on the device; those that are not valid count 0.
        student: The task network, for its sizes and normalisation.
        teacher: Its moving average, in evaluation mode; it sees the view without jitter.
        model: The task network as prepared by Accelerate, which the gradient flows through.
        autocast: Mixed precision for the teacher; losses and mean field are float32.
        clock: Where the time goes.

    Source: Sec. 3.3, Eqs. 2-5; mal.md 5.
    """
    side = loss_side(config, student)
    with clock.wall("views"), torch.no_grad():
        clean_BCHW = flip_where(batch.crop_BCHW, batch.views_BN)
        jittered_BCHW = student.normalise(student_view(clean_BCHW, batch.views_BN))
        clean_BCHW = student.normalise(clean_BCHW)
        box_Bhw = flip_where(box_mask(batch, side), batch.views_BN)
        inside_Bhw = inside_image(batch, side) if config.border == "reflect" else None
    with clock.wall("student"):
        prob_Bhw = probabilities(model(jittered_BCHW, batch.size_B), side)
    with clock.wall("teacher"), torch.no_grad():
        with autocast():
            logits_Bhw = teacher(clean_BCHW, batch.size_B)
        teacher_Bhw = probabilities(logits_Bhw, side)
    with clock.wall("mean field"):
        refined_Bhw = refine(
            config,
            jittered_BCHW if config.crf_image == "jittered" else clean_BCHW,
            (prob_Bhw.detach() + teacher_Bhw) / 2,
            box_Bhw,
            inside_Bhw,
        )
    mil_B = mil_loss(prob_Bhw, box_Bhw, config.mil_form, inside_Bhw)
    crf_B = crf_loss(prob_Bhw, refined_Bhw, inside_Bhw)
    outside_B = torch.zeros_like(mil_B)
    if config.outside_weight:
        outside_B = outside_loss(prob_Bhw, box_Bhw, inside_Bhw)
    paste_B = torch.zeros_like(mil_B)
    if batch.pasted_BSS.shape[-1]:
        pasted_Bhw = pasted_share(batch, side)
        paste_B = composite_loss(prob_Bhw, pasted_Bhw, batch.kind_B, box_Bhw, inside_Bhw)
    losses = (mil_B, crf_B, outside_B, paste_B)
    mil, crf, outside, paste = ((loss_B * batch.valid_B).mean() for loss_B in losses)
    return mil, crf, outside, paste


def loss_side(config: FitConfig, labeler: MaskLabeler) -> int:
    """Return the side of the grid that the losses see: the decoder's own, or the crop's."""
    return config.crop_size if config.loss_size == "crop" else labeler.grid


def probabilities(logits_Bhw: Tensor, side: int) -> Tensor:
    """Return the sigmoid of logits resized bilinearly, (B, side, side) float32.

    Source: App. A.2, "We resize the mask prediction map to 512 x 512" (`--loss-size crop`).
    """
    return _resize(logits_Bhw[:, None], side)[:, 0].sigmoid()


def box_mask(batch: RoiBatch, side: int) -> Tensor:
    """Return the boxes on the grid of the losses, (B, side, side) in [0, 1], not flipped.

    The share of each cell that the box covers, or the released mask where the batch carries it.
    """
    if batch.profile_B2S.shape[-1]:
        return profile_mask(batch.profile_B2S, side)
    return rectangle_mask(batch.box_B4, side)


def _resize(values_BChw: Tensor, side: int) -> Tensor:
    """Return (B, C, side, side) float32 values, resized bilinearly without antialiasing."""
    values_BChw = values_BChw.float()
    if values_BChw.shape[-1] == side:
        return values_BChw
    return F.interpolate(values_BChw, (side, side), mode="bilinear", align_corners=False)


def refine(
    config: FitConfig,
    image_BCHW: Tensor,
    unary_Bhw: Tensor,
    box_Bhw: Tensor,
    inside_Bhw: Tensor | None = None,
) -> Tensor:
    """Return masks (B, h, w) refined by mean field with the fit's settings.

    Args:
        config: The fit's settings.
        image_BCHW: (B, 3, H, W) normalised crops.
        unary_Bhw: (B, h, w) probabilities.
        box_Bhw: (B, h, w) box in [0, 1].
        inside_Bhw: (B, h, w) 1 where the cell lies in the image; colours elsewhere do not count.
    """
    image_BChw = _resize(image_BCHW, unary_Bhw.shape[-1])
    unary_Bhw = with_colour(
        unary_Bhw,
        image_BChw,
        box_Bhw,
        inside_Bhw,
        weight=config.colour_weight,
        bandwidth=config.colour_bandwidth,
    )
    return mean_field(
        image_BChw,
        unary_Bhw,
        box_Bhw,
        zeta=config.crf_zeta,
        omega=config.crf_omega,
        iterations=config.crf_iterations,
        include_self=config.crf_self,
        epsilon=config.crf_epsilon,
    )


def pasted_share(batch: RoiBatch, side: int) -> Tensor:
    """Return the share of each grid cell that was pasted, (B, side, side) in [0, 1], flipped."""
    pasted_BSS = flip_where(batch.pasted_BSS, batch.views_BN).float() / 255
    return F.adaptive_avg_pool2d(pasted_BSS[:, None], side)[:, 0]


def inside_image(batch: RoiBatch, side: int) -> Tensor:
    """Return which grid cells lie in the image by at least half, (B, side, side) of 0 and 1."""
    share_Bhw = flip_where(rectangle_mask(batch.image_B4, side), batch.views_BN)
    return (share_Bhw >= 0.5).float()
