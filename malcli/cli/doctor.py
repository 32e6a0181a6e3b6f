"""`malcli doctor`: what this machine can do."""

from typing import TYPE_CHECKING, Any

import typer

from malcli.cli.options import Common, add_command
from malcli.cli.output import run_engine, show

if TYPE_CHECKING:
    from malcli.engine.machine.doctor import DoctorResult


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "doctor", run, recipe=False)


def run(values: dict[str, Any], common: Common) -> None:
    """Report versions, devices, precision, free space and cached encoders."""
    from malcli.engine.machine.doctor import doctor

    show(run_engine(doctor, common.quiet), common.json, print_doctor)


def print_doctor(result: "DoctorResult") -> None:
    """Print what doctor found, one line a fact, problems last."""
    versions = [f"{name} {version or 'missing'}" for name, version in result.versions.items()]
    cached = [name for name, here in result.encoders.items() if here]
    print(f"versions   {', '.join(versions)}")
    print(f"system     {result.platform}, {result.cpu_cores} CPU cores")
    print(f"CUDA       {result.cuda or 'none'}, driver {result.driver or 'none'}")
    for device in result.devices:
        state = "usable" if device.usable else "NOT usable by this torch"
        free = "" if device.free_mb is None else f", {device.free_mb:,} MiB free"
        print(
            f"GPU        {device.name}, compute capability {device.capability}, "
            f"{device.memory_mb:,} MiB{free}, {state}"
        )
    if not result.devices:
        print("GPU        none: commands run on the CPU")
    print(f"precision  --precision auto takes {result.precision}")
    print(f"memory     {_mebibytes(result.memory_free_mb)} free")
    print(f"disk       {_mebibytes(result.disk_free_mb)} free in this folder")
    print(f"encoders   in the local cache: {', '.join(cached) or 'none'}")
    for problem in result.problems:
        print(f"problem    {problem}")
    if not result.problems:
        print("problem    none found")


def _mebibytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,} MiB"
