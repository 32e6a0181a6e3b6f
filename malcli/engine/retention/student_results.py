"""What a student of phase 2 finds in images, as a COCO results list.

Knows nothing of training or of human masks.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from malcli.config.retention import RetentionConfig
from malcli.data.crops.student_images import Sample, StudentImages
from malcli.engine.machine.signals import StopFlag
from malcli.engine.retention.student_trainer import batches, interrupted, pixels_of
from malcli.files import replacing
from malcli.geometry.rle import encode_crop
from malcli.report.progress import Progress

MASK_LEVEL = 0.5  # of the mask's probability


def predict(
    student: nn.Module,
    images: StudentImages,
    accelerator: Accelerator,
    config: RetentionConfig,
    categories: Sequence[int],
    ids: Sequence[int | str],
    target: Path,
    stop: StopFlag,
) -> None:
    """Write a student's detections on all images as a COCO results list.

    Processes share the images and leave their parts beside the target; the first one joins them.
    Images are predicted one by one, so the batch size changes nothing.

    Args:
        student: Trained.
        images: Without targets.
        accelerator: Device, precision and processes.
        config: The study's settings.
        categories: Category id of each label, from label 1 on.
        ids: Id of each image.
        target: The results file.
        stop: Looked at between images.

    Raises:
        Interrupted: A signal came.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    student = student.to(accelerator.device).eval()
    rows = range(rank, len(images), world)
    order = [[(0, row)] for row in rows]
    with (
        replacing(_part(target, rank)) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        Progress(len(rows), "images", f"predict {target.stem}") as progress,
    ):
        for (sample,) in batches(images, order, accelerator, config):
            if stop.signum:
                raise interrupted(config, f"predicting {target.stem}", stop.signum)
            found = _detections(student, sample, accelerator, categories, ids[sample.image])
            file.write(json.dumps(found) + "\n")
            progress.advance(1)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _join(target, world)
    accelerator.wait_for_everyone()


@torch.inference_mode()
def _detections(
    student: nn.Module,
    sample: Sample,
    accelerator: Accelerator,
    categories: Sequence[int],
    image_id: int | str,
) -> list[dict[str, Any]]:
    """Return an image's detections as COCO results; none if it could not be read."""
    if not sample.readable:
        return []
    with accelerator.autocast():
        found = student([pixels_of(sample, accelerator.device)])[0]
    boxes = found["boxes"].double().cpu().numpy()
    scores = found["scores"].double().cpu().tolist()
    labels = found["labels"].cpu().tolist()
    masks = _masks(found) if "masks" in found else None
    records: list[dict[str, Any]] = []
    for n, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        record = {
            "image_id": image_id,
            "category_id": categories[labels[n] - 1],
            "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
            "score": scores[n],
        }
        if masks is not None:
            record["segmentation"] = encode_crop(masks[n], 0, 0, masks[n].shape)
        records.append(record)
    return records


def _masks(found: dict[str, torch.Tensor]) -> NDArray[Any]:
    masks: NDArray[Any] = (found["masks"][:, 0] >= MASK_LEVEL).cpu().numpy()
    return masks


def _part(target: Path, rank: int) -> Path:
    return target.with_name(f".{target.stem}.part-{rank}")


def _join(target: Path, world: int) -> None:
    """Join the processes' lists in the order of the images."""
    parts = [_part(target, rank) for rank in range(world)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open(encoding="utf-8")) for path in parts]
        temporary = stack.enter_context(replacing(target))
        out = stack.enter_context(temporary.open("w", encoding="utf-8"))
        out.write("[")
        first = True
        while any(lines := [file.readline() for file in files]):
            for record in (one for line in lines if line for one in json.loads(line)):
                out.write(("\n" if first else ",\n") + json.dumps(record, separators=(",", ":")))
                first = False
        out.write("]\n")
    for path in parts:
        path.unlink()
