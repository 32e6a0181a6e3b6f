"""`malcli demo`: the whole pipeline on drawn scenes, for people who have no data at hand.

Knows nothing of how the steps work: it calls what the commands call.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malcli.config.demo import DemoConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.label import LabelConfig
from malcli.data.scenes import Scenes, draw_scenes
from malcli.errors import OutputError
from malcli.report.progress import log

if TYPE_CHECKING:
    from malcli.engine.eval.result import EvalResult

# A labeler small enough for two CPU cores; random weights, so that no network is needed.
DEMO_FIT: dict[str, Any] = {
    "encoder": "timm/test_vit.r160_in1k",
    "weights": "none",
    "crop_size": 96,
    "channels": 32,
    "min_box_area": 0.0,
    "batch_size": 16,
    "epochs": 12,
    "lr": 1e-4,
    "warmup_epochs": 1.0,
    "teacher_momentum": 0.98,
    "crf_weight": 1.0,
    "crf_zeta": 0.3,
    "crf_iterations": 20,
    "mil_ramp": 0,
    "crf_ramp": 60,
    "threshold": "0.5",
    "workers": 0,
    "pictures_every": 0,
}
TRAIN_SCENES = 160
VAL_SCENES = 40
SIZE_HW = (240, 320)
MARKER = ".malcli-demo"
OWN = ("data", "run", "masks.json", "masks.json.parts", "report.html")


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured and where it lies.

    Attributes:
        evaluation: The scores of the masks of the drawn validation scenes.
        out: The folder.
        report: The HTML page.
        seconds: Time that it all took.
    """

    evaluation: "EvalResult"
    out: Path
    report: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the keys of eval, and `report`."""
        return {**self.evaluation.to_json(), "report": str(self.report)}


def demo(config: DemoConfig) -> DemoResult:
    """Draw scenes, fit a small labeler on their boxes alone, label, score and report.

    Args:
        config: Folder, seed and device. The folder then holds `data/`, `run/`, `masks.json` and
            `report.html`.

    Raises:
        OutputError: The folder is not empty and no demo made it.
    """
    start = time.monotonic()
    out = prepare_folder(config.out)
    with one_thread():
        evaluation = walk(out, {"seed": config.seed, "device": config.device})
    return DemoResult(evaluation, out, out / "report.html", time.monotonic() - start)


def walk(out: Path, machine: dict[str, Any]) -> "EvalResult":
    """Draw, fit, label and score in a prepared folder.

    Args:
        out: The folder.
        machine: Settings that all steps share.
    """
    from malcli.engine.eval.masks import evaluate
    from malcli.engine.fit.command import fit
    from malcli.engine.label.command import label

    run, masks, report = out / "run", out / "masks.json", out / "report.html"
    log("demo 1/4: drawing scenes with exact masks")
    train, val = draw_data(out / "data", machine["seed"])
    log("demo 2/4: fitting a small labeler on the boxes alone")
    fit(FitConfig(data=train.boxes, images=train.images, out=run, **machine, **DEMO_FIT))
    log("demo 3/4: labelling boxes that it has not seen")
    boxes = LabelConfig(boxes=val.boxes, images=val.images, checkpoint=run, out=masks, **machine)
    label(replace(boxes, refine="colour"))  # drawn colours tell more than those of photographs
    log("demo 4/4: scoring against the exact masks")
    return evaluate(
        EvalConfig(gt=val.instances, images=val.images, pred=masks, report=report, **machine)
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, and give it its threads back.

    The demo's network is tiny: a second thread gains little, and where other programs share the
    cores, waiting for it made the fit 40 times slower (measured on two busy cores).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def draw_data(folder: Path, seed: int) -> tuple[Scenes, Scenes]:
    """Return the drawn train and validation scenes; both lie in one folder."""
    train = draw_scenes(folder, TRAIN_SCENES, 2 * seed, SIZE_HW, split="train")
    val = draw_scenes(folder, VAL_SCENES, 2 * seed + 1, SIZE_HW, split="val")
    return train, val


def prepare_folder(out: Path) -> Path:
    """Return the folder, empty of what an earlier demo left and with the demo's mark.

    Only what a demo makes is removed; other files in the folder stay.

    Raises:
        OutputError: It is a file, or not empty and not a demo's.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; give a folder with --out")
    marker = out / MARKER
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise OutputError(f"{out}: not empty and not made by malcli demo; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by malcli demo, which replaces its own files here.\n", "utf-8")
    for name in OWN:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return out
