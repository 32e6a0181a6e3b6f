"""Settings of `malcli demo`."""

from dataclasses import dataclass
from pathlib import Path

from malcli.config.shared import OUTPUT, RUN
from malcli.settings import result, setting


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of `malcli demo`."""

    out: Path = setting(
        Path("malcli-demo"),
        "Folder for data, run, masks and report; replaced if a demo made it.",
        panel=OUTPUT,
        short="o",
        identity="private",
    )
    seed: int = result(0, "Random seed of the scenes and of the fit.", panel=RUN, low=0)
    device: str = setting(
        "auto", "Device.", panel=RUN, choices=("auto", "cpu", "cuda"), identity="free"
    )
