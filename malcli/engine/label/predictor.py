"""Crops in, probabilities out: the labeler's networks on one device, as `label` uses them.

Shape suffixes: B crops, C channels, S crop pixels, G score grid.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from malcli.data.crops.box_mask import rectangle_mask
from malcli.data.crops.label_crops import Roi
from malcli.engine.label.crop_sizes import AUTO
from malcli.engine.machine.processes import DTYPES
from malcli.errors import ConfigError
from malcli.geometry.boxes import roi_frame
from malcli.geometry.released import box_lines
from malcli.losses.colour import with_colour
from malcli.losses.crf import mean_field
from malcli.model.checkpoint import Checkpoint
from malcli.model.labeler import MaskLabeler
from malcli.settings import PRESETS

BEYOND = 2  # cells: one neighbour, and one for what float32 makes of a box's edge
SMALLEST_PROB = 1e-4  # stands for lower thresholds where a logit is needed


@dataclass(frozen=True)
class LabelRule:
    """How a mask is made; see the settings of the same names.

    Attributes:
        threshold: By size class; a pixel is in the mask where its probability is above.
        crop_size: Side of the crops, pixels.
        smaller_crops: Sides below it that crops of small boxes have, ascending.
    """

    network: str
    tta: str
    refine: str
    threshold: tuple[float, float, float]
    crop_size: int
    margin: float
    min_score: float
    max_pixels: int
    geometry: str = "exact"
    smaller_crops: tuple[int, ...] = ()

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides that crops may have, ascending, pixels."""
        return (*self.smaller_crops, self.crop_size)

    @property
    def border(self) -> str:
        """What crops show outside the image; see `crop_roi`."""
        return "wrap" if self.geometry == "released" else "reflect"


class Predictor:
    """Crops in, probabilities out, on one device.

    Args:
        checkpoint: Its networks move to the device.
        rule: How a mask is made.
        device: Where to.
        precision: `fp32`, `fp16` or `bf16`: the number format of the weights.
        compiled: Let torch compile the networks at their first call.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rule: LabelRule,
        device: torch.device,
        precision: str,
        compiled: bool = False,
    ) -> None:
        """Move and cast the networks that the rule needs."""
        self.rule = rule
        self.device = device
        self.dtype = DTYPES[precision]
        self.size_classes = checkpoint.architecture.size_classes
        chosen = {
            "student": [checkpoint.student],
            "teacher": [checkpoint.teacher],
            "mean": [checkpoint.student, checkpoint.teacher],
        }[rule.network]
        self.networks = {
            side: [_placed(one, device, self.dtype) for one in networks]
            for side, networks in _by_side(chosen, rule).items()
        }
        if compiled:
            for network in {
                id(one): one for each in self.networks.values() for one in each
            }.values():
                network.compile()
        self.crf = {
            "zeta": float(checkpoint.settings.get("crf_zeta", 0.1)),
            "omega": float(checkpoint.settings.get("crf_omega", 1.0)),
            "iterations": int(checkpoint.settings.get("crf_iterations", 100)),
            "include_self": bool(checkpoint.settings.get("crf_self", True)),
            "epsilon": float(checkpoint.settings.get("crf_epsilon", _implied_epsilon(checkpoint))),
        }
        self.colour_bandwidth = float(checkpoint.settings.get("colour_bandwidth", 0.2))

    @torch.inference_mode()
    def __call__(self, crops_BSS3: NDArray[np.uint8], rois: Sequence[Roi]) -> list[Tensor]:
        """Return float32 probabilities and, with refinement, (B, S, S) masks of 0 and 1.

        S is the rule's crop size, or one of its smaller ones.
        The probabilities are (B, G, G), or (B, S, S) in the `released` geometry. They are on the
        device and may not be finished yet; the mean of networks and of the flipped view is taken
        over logits (mal.md 8.1).
        """
        crops_BCSS = torch.from_numpy(crops_BSS3).to(self.device).permute(0, 3, 1, 2)
        sizes = [roi.size if roi.network_size is None else roi.network_size for roi in rois]
        size_B = torch.tensor(sizes)
        side = crops_BCSS.shape[-1]
        networks = self.networks[side]
        image_BCSS = networks[0].normalise(crops_BCSS)
        logits = [network(image_BCSS.to(self.dtype), size_B) for network in networks]
        if self.rule.tta == "flip":
            flipped = image_BCSS.flip(-1).to(self.dtype)
            logits += [network(flipped, size_B).flip(-1) for network in networks]
        logits_BGG = torch.stack(logits).mean(dim=0)
        if self.rule.geometry == "released":
            maps = [_grown(logits_BGG, side).sigmoid() * self._box_mask(rois, side)]
        else:
            maps = [logits_BGG.sigmoid()]
        if self.rule.refine != "none":
            maps.append(self._refined(image_BCSS, logits_BGG, rois))
        return maps

    def _box_mask(self, rois: Sequence[Roi], side: int) -> Tensor:
        """Return what of each crop is its box, (B, S, S): 0 and 1, or shares of pixels if exact."""
        if self.rule.geometry == "released":
            lines = [
                box_lines(roi.window if roi.pixels is None else roi.pixels, roi.roi, side)
                for roi in rois
            ]
            lines_B2S = torch.from_numpy(np.stack(lines)).to(self.device, torch.float32)
            return lines_B2S[:, 0, :, None] * lines_B2S[:, 1, None, :]
        frames = [roi_frame(roi.window.astype(np.float64), roi.roi) for roi in rois]
        frame_B4 = torch.tensor(np.stack(frames), dtype=torch.float32, device=self.device)
        return rectangle_mask(frame_B4, side)

    def _refined(self, image_BCSS: Tensor, logits_BGG: Tensor, rois: Sequence[Roi]) -> Tensor:
        """Return mean-field masks at the crop's resolution, (B, S, S) of 0 and 1.

        The mean field decides at 0.5, so the logits are moved to put the threshold there.
        """
        side = image_BCSS.shape[-1]
        threshold_B = logits_BGG.new_tensor([self.rule.threshold[roi.size] for roi in rois])
        moved_BGG = logits_BGG - threshold_B.clamp(min=SMALLEST_PROB).logit()[:, None, None]
        unary_BSS, box_BSS = _grown(moved_BGG, side).sigmoid(), self._box_mask(rois, side)
        if self.rule.refine == "colour":
            unary_BSS = with_colour(unary_BSS, image_BCSS, box_BSS, bandwidth=self.colour_bandwidth)
        rows, columns = self._needed(rois, side)
        refined_BSS = torch.zeros((len(rois), side, side), device=self.device)
        refined_BSS[:, rows, columns] = mean_field(
            image_BCSS[..., rows, columns],
            unary_BSS[:, rows, columns],
            box_BSS[:, rows, columns],
            zeta=self.crf["zeta"],
            omega=self.crf["omega"],
            iterations=int(self.crf["iterations"]),
            include_self=bool(self.crf["include_self"]),
            epsilon=self.crf["epsilon"],
        )
        return refined_BSS

    def _needed(self, rois: Sequence[Roi], side: int) -> tuple[slice, slice]:
        """Return the rows and columns of crops that their boxes and their boxes' neighbours take.

        Beyond them the mean field has its lowest value from the start to the end.
        """
        if self.rule.geometry == "released":
            return slice(0, side), slice(0, side)
        frames = np.stack([roi_frame(roi.window.astype(np.float64), roi.roi) for roi in rois])
        low = np.floor(frames[:, :2].min(axis=0) * side).astype(int) - BEYOND
        high = np.ceil(frames[:, 2:].max(axis=0) * side).astype(int) + BEYOND
        x0, y0 = np.maximum(low, 0).tolist()
        x1, y1 = np.minimum(high, side).tolist()
        return slice(y0, y1), slice(x0, x1)


def _implied_epsilon(checkpoint: Checkpoint) -> float:
    """Return the mean field's epsilon for a checkpoint that does not tell: that of who made it."""
    preset = PRESETS.get(str(checkpoint.settings.get("preset")), {})
    return float(preset.get("fit", {}).get("crf_epsilon", 0.0))


def _grown(logits_BGG: Tensor, side: int) -> Tensor:
    """Return logits at the crop's resolution, (B, S, S); mal.md 8.2."""
    return F.interpolate(logits_BGG[:, None], (side, side), mode="bilinear")[:, 0]


def _by_side(networks: Sequence[MaskLabeler], rule: LabelRule) -> dict[int, Sequence[MaskLabeler]]:
    """Return the networks for each side of crops; they share all values that do not depend on it.

    Raises:
        ConfigError: The encoder does not take crops of such a side.
    """
    found = {side: [_resized(one, side) for one in networks] for side in rule.smaller_crops}
    for network in networks:
        if rule.crop_size != network.crop_size:
            network.set_crop_size(rule.crop_size)
    return {**found, rule.crop_size: networks}


def _resized(network: MaskLabeler, side: int) -> MaskLabeler:
    """Return the network for smaller crops: new where it depends on them, else the same tensors."""
    shared = {id(tensor): tensor for tensor in network.parameters()}
    twin = copy.deepcopy(network, shared)
    try:
        twin.set_crop_size(side)
    except ConfigError:
        raise ConfigError(
            f"--crop-size {AUTO}: --encoder {network.encoder.name} takes crops of "
            f"{network.crop_size} pixels alone; leave --crop-size out"
        ) from None
    return twin


def _placed(network: MaskLabeler, device: torch.device, dtype: torch.dtype) -> MaskLabeler:
    """Return the network on the device, its weights cast; normalisation stays in float32."""
    network.to(device)
    mean, std = network.get_buffer("mean_C11"), network.get_buffer("std_C11")
    network.to(dtype)
    network.register_buffer("mean_C11", mean, persistent=False)
    network.register_buffer("std_C11", std, persistent=False)
    return network.eval()
