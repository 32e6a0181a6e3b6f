"""Crops in, probabilities out: the labeler's networks on one device, as `label` uses them.

Shape suffixes: B crops, C channels, S crop pixels, G score grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from malcli.data.rois import Roi
from malcli.data.training import rectangle_mask
from malcli.engine.launch import DTYPES
from malcli.geometry.boxes import roi_frame
from malcli.losses.crf import mean_field
from malcli.model.checkpoint import Checkpoint
from malcli.model.labeler import MaskLabeler

SMALLEST_PROB = 1e-4  # stands for lower thresholds where a logit is needed


@dataclass(frozen=True)
class LabelRule:
    """How a mask is made; see the settings of the same names.

    Attributes:
        threshold: By size class; a pixel is in the mask where its probability is above.
    """

    network: str
    tta: str
    refine: str
    threshold: tuple[float, float, float]
    crop_size: int
    margin: float
    min_score: float
    max_pixels: int


class Predictor:
    """Crops in, probabilities out, on one device.

    Args:
        checkpoint: Its networks move to the device.
        rule: How a mask is made.
        device: Where to.
        precision: `fp32`, `fp16` or `bf16`: the number format of the weights.
    """

    def __init__(
        self, checkpoint: Checkpoint, rule: LabelRule, device: torch.device, precision: str
    ) -> None:
        """Move and cast the networks that the rule needs."""
        self.rule = rule
        self.device = device
        self.dtype = DTYPES[precision]
        chosen = {
            "student": [checkpoint.student],
            "teacher": [checkpoint.teacher],
            "mean": [checkpoint.student, checkpoint.teacher],
        }[rule.network]
        self.networks = [_placed(network, rule.crop_size, device, self.dtype) for network in chosen]
        self.crf = {
            "zeta": float(checkpoint.settings.get("crf_zeta", 0.1)),
            "omega": float(checkpoint.settings.get("crf_omega", 1.0)),
            "iterations": int(checkpoint.settings.get("crf_iterations", 100)),
        }

    @torch.inference_mode()
    def __call__(self, crops_BSS3: NDArray[np.uint8], rois: Sequence[Roi]) -> list[Tensor]:
        """Return (B, G, G) float32 probabilities and, with refinement, (B, S, S) masks of 0 and 1.

        They are on the device and may not be finished yet; the mean of networks and of the flipped
        view is taken over logits (mal_spec 8.1).
        """
        crops_BCSS = torch.from_numpy(crops_BSS3).to(self.device).permute(0, 3, 1, 2)
        size_B = torch.tensor([roi.size for roi in rois], device=self.device)
        image_BCSS = self.networks[0].normalise(crops_BCSS)
        logits = [network(image_BCSS.to(self.dtype), size_B) for network in self.networks]
        if self.rule.tta == "flip":
            flipped = image_BCSS.flip(-1).to(self.dtype)
            logits += [network(flipped, size_B).flip(-1) for network in self.networks]
        logits_BGG = torch.stack(logits).mean(dim=0)
        maps = [logits_BGG.sigmoid()]
        if self.rule.refine == "crf":
            maps.append(self._refined(image_BCSS, logits_BGG, rois))
        return maps

    def _refined(self, image_BCSS: Tensor, logits_BGG: Tensor, rois: Sequence[Roi]) -> Tensor:
        """Return mean-field masks at the crop's resolution, (B, S, S) of 0 and 1.

        The mean field decides at 0.5, so the logits are moved to put the threshold there.
        """
        threshold_B = logits_BGG.new_tensor([self.rule.threshold[roi.size] for roi in rois])
        moved_BGG = logits_BGG - threshold_B.clamp(min=SMALLEST_PROB).logit()[:, None, None]
        side = self.rule.crop_size
        full_BSS = F.interpolate(moved_BGG[:, None], (side, side), mode="bilinear")[:, 0]
        frames = [roi_frame(roi.window.astype(np.float64), roi.roi) for roi in rois]
        frame_B4 = torch.tensor(np.stack(frames), dtype=torch.float32, device=self.device)
        box_BSS = rectangle_mask(frame_B4, side)
        return mean_field(
            image_BCSS,
            full_BSS.sigmoid(),
            box_BSS,
            zeta=self.crf["zeta"],
            omega=self.crf["omega"],
            iterations=int(self.crf["iterations"]),
        )


def _placed(
    network: MaskLabeler, crop_size: int, device: torch.device, dtype: torch.dtype
) -> MaskLabeler:
    """Return the network on the device, its weights cast; normalisation stays in float32."""
    if crop_size != network.crop_size:
        network.set_crop_size(crop_size)
    network.to(device)
    mean, std = network.get_buffer("mean_C11"), network.get_buffer("std_C11")
    network.to(dtype)
    network.register_buffer("mean_C11", mean, persistent=False)
    network.register_buffer("std_C11", std, persistent=False)
    return network.eval()
