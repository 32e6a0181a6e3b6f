"""What the colours of a crop say of each pixel: object or background, judged by the crop itself.

A mask, however rough, splits a crop's pixels in two sets of colours. A pixel whose colour is common
among the object's and rare among the background's is likely the object's own. The encoder knows
what objects look like in general, these colours how this one looks, and the borders of colours are
finer than the encoder's patches.

Shape suffixes: B crops, C channels, h w a map's grid, N its cells, M samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EVIDENCE_SIDE = 96  # finer maps are judged at this side; their evidence is resized
SAMPLE_SIDE = 16  # so many by so many cells stand for all colours of the crop
RAREST = 1e-4  # density that every colour has in both sets: bounds the evidence at ln(1e4)
PAIRS_AT_ONCE = 2**22  # cells times samples; more at once only costs memory


@torch.no_grad()
def colour_evidence(
    image_BChw: Tensor, prob_Bhw: Tensor, inside_Bhw: Tensor | None = None, bandwidth: float = 0.2
) -> Tensor:
    """Return the logarithm of how much likelier each cell's colour is in the object, (B, h, w).

    Both densities are sums of Gaussian kernels over samples of the crop, weighted by their
    probabilities of object and of background; each weighs 1 in all.

    Args:
        image_BChw: (B, C, h, w) float32 normalised pixels.
        prob_Bhw: (B, h, w) probability of the object, 0 outside the box.
        inside_Bhw: (B, h, w) 1 where the cell lies in the image; others are no samples.
        bandwidth: Of the kernel, in units of normalised pixels, > 0.

    Source: malcli; kernel densities as GrabCut's colour models (Rother et al., 2004), without their
    mixtures; the colour term of a fully connected CRF (arXiv 1210.5644), without positions.
    """
    side = prob_Bhw.shape[-1]
    judged = min(side, EVIDENCE_SIDE)
    sampled = min(judged, SAMPLE_SIDE)
    if inside_Bhw is None:
        inside_Bhw = torch.ones_like(prob_Bhw)
    image_BChw = image_BChw.float()
    colour_BNC = _resize(image_BChw, judged, "area").flatten(2).transpose(1, 2)
    sample_BMC = _resize(image_BChw, sampled, "nearest-exact").flatten(2).transpose(1, 2)
    shares = torch.stack([prob_Bhw * inside_Bhw, (1 - prob_Bhw) * inside_Bhw], dim=1).float()
    share_BM2 = _resize(shares, sampled, "area").flatten(2).transpose(1, 2)
    share_BM2 = share_BM2 / share_BM2.sum(dim=1, keepdim=True).clamp_min(1e-6)
    step = max(1, PAIRS_AT_ONCE // (colour_BNC.shape[1] * sample_BMC.shape[1]))
    density_BN2 = torch.cat(
        [
            _density(colour_BNC[k : k + step], sample_BMC[k : k + step], bandwidth)
            @ share_BM2[k : k + step]
            for k in range(0, len(colour_BNC), step)
        ]
    )
    log_B2hw = (density_BN2 + RAREST).log().transpose(1, 2).view(-1, 2, judged, judged)
    return _resize((log_B2hw[:, 0] - log_B2hw[:, 1])[:, None], side, "bilinear")[:, 0]


def _density(colour_BNC: Tensor, sample_BMC: Tensor, bandwidth: float) -> Tensor:
    """Return the kernel between cells and samples, (B, N, M) in (0, 1]."""
    distance_BNM = torch.cdist(colour_BNC, sample_BMC)
    return distance_BNM.square_().mul_(-0.5 / bandwidth**2).exp_()


@torch.no_grad()
def with_colour(
    unary_Bhw: Tensor,
    image_BChw: Tensor,
    box_Bhw: Tensor,
    inside_Bhw: Tensor | None = None,
    *,
    weight: float = 1.0,
    bandwidth: float = 0.2,
) -> Tensor:
    """Return probabilities (B, h, w) whose log-odds have the colours' evidence added.

    Args:
        unary_Bhw: (B, h, w) probabilities.
        image_BChw: (B, C, h, w) normalised pixels on the same grid.
        box_Bhw: (B, h, w) box in [0, 1]; what lies outside is background for certain.
        inside_Bhw: As in `colour_evidence`.
        weight: Of the evidence; 0 changes nothing.
        bandwidth: As in `colour_evidence`.
    """
    if not weight:
        return unary_Bhw
    evidence_Bhw = colour_evidence(image_BChw, unary_Bhw * box_Bhw, inside_Bhw, bandwidth)
    return (torch.logit(unary_Bhw.float(), eps=1e-3) + weight * evidence_Bhw).sigmoid()


def _resize(values_BChw: Tensor, side: int, mode: str) -> Tensor:
    """Return the map resized to side x side; a no-op at its own side."""
    if values_BChw.shape[-1] == side:
        return values_BChw
    return F.interpolate(values_BChw, (side, side), mode=mode)
