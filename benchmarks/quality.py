"""Mask quality of a recipe: fit on boxes of some photographs, measure on human masks of others.

    python benchmarks/quality.py --gt instances_train.json --images images \
        --recipe recipes/coco_dev_deit_tiny_cpu.toml --weights deit_tiny_patch16_224.pth \
        --crops 4000 --set colour_weight=0 --set crop_size=192

One photograph in `--folds` is held out (`--fold` says which ones); the others' boxes alone are
trained on. `--set` changes the recipe, so two calls compare two settings. `--crops` ends training
early, with the schedule of that length. Prints mean IoU by box size with the 95 % interval over
photographs, boundary IoU and mask AP. `--folds 1` trains on all and measures on `--val`.

`--then recipes/coco_dev_deit_tiny_cpu_paste.toml` trains on from there by another recipe, with the
masks that the first labeler made of the same boxes to paste; `--crops` and `--set` then change that
one alone.
"""

import argparse
import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from malcli import evaluate, fit, label


def split(gt: dict[str, Any], folds: int, fold: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the boxes to train on, without masks, and the annotations to measure on."""
    images = sorted(gt["images"], key=lambda image: image["id"])
    held = {image["id"] for place, image in enumerate(images) if place % folds == fold}
    sides = []
    for chosen in (False, True):
        side = dict(gt)
        side["images"] = [image for image in images if (image["id"] in held) is chosen]
        side["annotations"] = [
            one for one in gt["annotations"] if (one["image_id"] in held) is chosen
        ]
        sides.append(side)
    boxes = [
        {key: value for key, value in one.items() if key not in ("segmentation", "area")}
        for one in sides[0]["annotations"]
    ]
    return {**sides[0], "annotations": boxes}, sides[1]


def settings_of(recipe: Path, options: argparse.Namespace, boxes: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe; the last one with `--set` and as many epochs as make `--crops`."""
    values = tomllib.loads(recipe.read_text(encoding="utf-8"))
    del values["command"]
    values.pop("num_processes", None)  # this process alone, with all cores
    values["pictures_every"] = 0
    if recipe != (options.then or options.recipe):
        return values
    for pair in options.set:
        key, _, text = pair.partition("=")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    if options.crops:
        usable = [
            one
            for one in boxes["annotations"]
            if not one.get("iscrowd")
            and one["bbox"][2] * one["bbox"][3] > values.get("min_box_area", 2048)
        ]
        values["epochs"] = max(1, round(options.crops / len(usable)))
        values["warmup_epochs"] = 0.06 * values["epochs"]
    return values


def show(name: str, scores: dict[str, Any]) -> None:
    """Print a row."""
    miou, (low, high) = scores["miou"], scores["intervals"]["miou"]["all"]
    sizes = "  ".join(f"{size} {miou[size]:.4f}" for size in ("all", "small", "medium", "large"))
    print(
        f"{name}: mIoU {sizes}  interval {low:.4f}-{high:.4f}  "
        f"boundary IoU {scores['boundary_iou']['all']:.4f}  AP {scores['ap']['AP']:.4f}"
    )


def main() -> None:
    """Fit and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gt", type=Path, required=True, help="human masks; their boxes train")
    parser.add_argument("--val", type=Path, help="measure here, with --folds 1")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--then", type=Path, help="a second recipe, from the first one's labeler")
    parser.add_argument("--weights", required=True, help="of the encoder")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--crops", type=int, help="crops to train on (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    gt = json.loads(options.gt.read_text(encoding="utf-8"))
    boxes, held = split(gt, options.folds, options.fold if options.folds > 1 else -1)
    with tempfile.TemporaryDirectory() as folder:
        data, measured = Path(folder) / "boxes.json", Path(folder) / "held.json"
        data.write_text(json.dumps(boxes), encoding="utf-8")
        measured.write_text(json.dumps(held), encoding="utf-8")
        run = Path(folder) / "run"
        common = {"data": data, "images": options.images, "seed": options.seed}
        first = settings_of(options.recipe, options, boxes)
        done = fit(weights=options.weights, out=run, **common, **first)
        if options.then:
            masks = Path(folder) / "masks.json"
            label(boxes=data, images=options.images, checkpoint=run, out=masks)
            weights, run = run / "checkpoint.safetensors", Path(folder) / "then"
            second = settings_of(options.then, options, boxes)
            done = fit(weights=str(weights), paste=masks, out=run, **common, **second)
        scores = evaluate(
            gt=options.val if options.folds == 1 else measured,
            images=options.images,
            checkpoint=run,
        ).to_json()
        seconds = sum(done.seconds.values())
        print(f"{done.steps} steps, {seconds:.0f} s, {' '.join(options.set) or 'as the recipe'}")
        show("held out" if options.folds > 1 else "val", scores)


if __name__ == "__main__":
    main()
