"""How many crops a GPU takes at once: tried out by the first start of a job.

Knows nothing of boxes; a batch that still proves too large later is halved in `label`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from malcli.config.label import LabelConfig
from malcli.data.crops.label_crops import Roi
from malcli.engine.label.job import Manifest
from malcli.engine.label.pipeline import open_predictor
from malcli.engine.label.settings import batch_size_of
from malcli.engine.machine.processes import choose_device
from malcli.model.checkpoint import Checkpoint
from malcli.report.progress import log

LARGEST = 256  # crops; more would only wait for their images


def with_largest_batch(config: LabelConfig, manifest: Manifest, checkpoint: Checkpoint) -> Manifest:
    """Return the manifest with the largest batch that the GPU holds, if the user leaves it open.

    Args:
        config: For `batch_size` and the device; on a CPU the manifest's batch stays.
        manifest: What else the first start decided.
        checkpoint: Its networks move to the device.
    """
    if batch_size_of(config) or choose_device(config.device).type != "cuda":
        return manifest
    predictor = open_predictor(
        config,
        checkpoint,
        threshold=manifest.threshold,
        crop_size=manifest.crop_size,
        precision=manifest.precision,
    )
    side = predictor.rule.crop_size
    inside = np.array([0, 0, side, side])

    def predict(count: int) -> None:
        crops_BSS3 = np.zeros((count, side, side, 3), dtype=np.uint8)
        rois = [Roi(0, crops_BSS3[0], inside, inside, 2)] * count
        for values in predictor(crops_BSS3, rois):
            values[-1].cpu()  # the device works behind; memory may run out only there

    batch_size = largest_batch(predict)
    log(f"label: {batch_size} crops of {side} x {side} pixels fit at once")
    return dataclasses.replace(manifest, batch_size=batch_size)


def largest_batch(predict: Callable[[int], None], most: int = LARGEST) -> int:
    """Return the largest power of two, from `most` down, for which memory suffices; at least 1.

    Args:
        predict: Runs the network on that many crops.
        most: A power of two.
    """
    count = most
    while count > 1:
        try:
            predict(count)
            return count
        except torch.OutOfMemoryError:
            count //= 2
        torch.cuda.empty_cache()  # not in the handler, whose traceback holds the tensors
    return 1
