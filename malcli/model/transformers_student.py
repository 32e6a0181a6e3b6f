"""Students of phase 2 that transformers builds: Mask2Former and RF-DETR-Seg.

Each takes and gives what torchvision's detectors do, so that training, prediction and results are
those of Mask R-CNN. Knows nothing of data or training, nor where the networks come from.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert, clip_boxes_to_image, masks_to_boxes

DETECTIONS = 100  # an image; AP counts no more

Detections = list[dict[str, Tensor]]


class TransformersStudent(nn.Module):
    """What both kinds share: resizing, padding, and the two faces of `forward`.

    Args:
        network: Of transformers.
        transform: Resizes, normalises and batches images and targets.
    """

    has_boxes = False  # whether it can learn boxes alone

    def __init__(self, network: nn.Module, transform: GeneralizedRCNNTransform) -> None:
        """Keep the parts."""
        super().__init__()
        self.network = network
        self.transform = transform

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | Detections:
        """Return the loss when training, detections otherwise.

        Args:
            images: (3, H, W) each, in [0, 1].
            targets: `boxes` (N, 4) xyxy pixels, `labels` (N,) from 1, `masks` (N, H, W) 0/1.

        Returns:
            {"loss_hungarian"}: the network's own weighted sum; or, an image, `boxes` (N, 4) xyxy
            pixels, `labels` (N,) from 1, `scores` (N,) and, if it has masks, `masks` (N, 1, H, W)
            in [0, 1], surest first.
        """
        sizes_hw = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        batch, resized = self.transform(images, targets)
        pixels = batch.tensors
        inside = torch.zeros(
            (len(images), *pixels.shape[2:]), dtype=torch.long, device=pixels.device
        )
        for row, (height, width) in enumerate(batch.image_sizes):
            inside[row, :height, :width] = 1
        if targets is not None:
            return {"loss_hungarian": self._loss(pixels, inside, resized, batch.image_sizes)}
        found = self.network(pixel_values=pixels, pixel_mask=inside)
        hw = (int(pixels.shape[2]), int(pixels.shape[3]))
        return [
            self._found(found, row, hw, batch.image_sizes[row], size_hw)
            for row, size_hw in enumerate(sizes_hw)
        ]

    def _loss(
        self,
        pixels: Tensor,
        inside: Tensor,
        targets: list[dict[str, Tensor]],
        sizes_hw: list[tuple[int, int]],
    ) -> Tensor:
        raise NotImplementedError

    def _found(
        self,
        found: Any,  # noqa: ANN401
        row: int,
        padded_hw: tuple[int, int],
        inner_hw: tuple[int, int],
        size_hw: tuple[int, int],
    ) -> dict[str, Tensor]:
        raise NotImplementedError


class Mask2FormerStudent(TransformersStudent):
    """Mask2Former: learns masks and classes; its boxes are those of its masks.

    Source: Cheng et al., Masked-attention Mask Transformer, CVPR 2022, Sec. 3 and 4.
    """

    def _loss(
        self,
        pixels: Tensor,
        inside: Tensor,
        targets: list[dict[str, Tensor]],
        sizes_hw: list[tuple[int, int]],
    ) -> Tensor:
        height, width = pixels.shape[2:]
        masks = [
            nn.functional.pad(one["masks"], (0, width - w, 0, height - h)).to(pixels.dtype)
            for one, (h, w) in zip(targets, sizes_hw, strict=True)
        ]
        labels = [one["labels"] - 1 for one in targets]
        out = self.network(
            pixel_values=pixels, pixel_mask=inside, mask_labels=masks, class_labels=labels
        )
        # transformers gives the weighted sum as one number in a vector.
        return cast(Tensor, out.loss).sum()

    def _found(
        self,
        found: Any,  # noqa: ANN401
        row: int,
        padded_hw: tuple[int, int],
        inner_hw: tuple[int, int],
        size_hw: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Score = probability of the class times the mean probability inside the mask."""
        classes = found.class_queries_logits[row].float().softmax(dim=-1)[:, :-1]
        score, query, label = _surest(classes)
        logits = _resized(found.masks_queries_logits[row].float()[query], padded_hw)
        prob = _resized(logits[:, : inner_hw[0], : inner_hw[1]], size_hw).sigmoid()
        mask = prob >= 0.5
        pixels = mask.sum(dim=(1, 2))
        score = score * (prob * mask).sum(dim=(1, 2)) / pixels.clamp(min=1)
        kept = torch.argsort(score, descending=True, stable=True)
        kept = kept[pixels[kept] > 0]
        boxes = masks_to_boxes(mask[kept])
        boxes[:, 2:] += 1  # the last pixel is inside
        return {
            "boxes": boxes,
            "labels": label[kept] + 1,
            "scores": score[kept],
            "masks": prob[kept, None],
        }


class RfDetrStudent(TransformersStudent):
    """RF-DETR-Seg: learns boxes, classes and masks from squares of its own side.

    Source: RF-DETR, https://github.com/roboflow/rf-detr, through transformers.
    """

    has_boxes = True
    masks = True

    def drop_masks(self) -> None:
        """Keep the detector alone: it then has no mask branch and no loss on masks."""
        self.network = cast(nn.Module, self.network.model)
        self.masks = False

    def _loss(
        self,
        pixels: Tensor,
        inside: Tensor,
        targets: list[dict[str, Tensor]],
        sizes_hw: list[tuple[int, int]],
    ) -> Tensor:
        height, width = pixels.shape[2:]
        scale = torch.tensor([width, height, width, height], device=pixels.device)
        labels = []
        for one in targets:
            boxes = box_convert(one["boxes"], "xyxy", "cxcywh") / scale
            label = {"class_labels": one["labels"] - 1, "boxes": boxes.to(pixels.dtype)}
            labels.append(label | ({"masks": one["masks"]} if self.masks else {}))
        out = self.network(pixel_values=pixels, pixel_mask=inside, labels=labels)
        # A batch without any instance has a loss of no elements.
        return cast(Tensor, out.loss).sum()

    def _found(
        self,
        found: Any,  # noqa: ANN401
        row: int,
        padded_hw: tuple[int, int],
        inner_hw: tuple[int, int],
        size_hw: tuple[int, int],
    ) -> dict[str, Tensor]:
        """The square is the whole image, so boxes are relative to the image."""
        score, query, label = _surest(found.logits[row].float().sigmoid())
        height, width = size_hw
        scale = torch.tensor([width, height, width, height], device=score.device)
        boxes = box_convert(found.pred_boxes[row].float()[query], "cxcywh", "xyxy") * scale
        result = {
            "boxes": clip_boxes_to_image(boxes, size_hw),
            "labels": label + 1,
            "scores": score,
        }
        if self.masks:
            logits = found.pred_masks[row].float()[query]
            result["masks"] = _resized(logits, size_hw).sigmoid()[:, None]
        return result


def _surest(prob_QK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return score, query and 0-based class of the surest pairs of the two."""
    classes = prob_QK.shape[1]
    score, place = prob_QK.flatten().topk(min(DETECTIONS, prob_QK.numel()))
    return score, place // classes, place % classes


def _resized(maps_NHW: Tensor, hw: tuple[int, int]) -> Tensor:
    """Return maps of another size, bilinear."""
    return nn.functional.interpolate(
        maps_NHW[:, None], size=hw, mode="bilinear", align_corners=False
    )[:, 0]
