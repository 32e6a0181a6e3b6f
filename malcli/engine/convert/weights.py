"""Turns a checkpoint of the released code or of TAO into malcli's own."""

import dataclasses
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from malcli.config.convert import ConvertConfig
from malcli.errors import CheckpointError, ConfigError, OutputError
from malcli.files import hash_file, refuse_special
from malcli.model.checkpoint import check_file, load_checkpoint, save_checkpoint
from malcli.model.locate import settings_of
from malcli.model.selftest import SelfTest, behaves_trained
from malcli.report.progress import log
from malcli.report.shown import Shown
from malcli.settings import flag_of, names_of_mode

SUFFIX = ".safetensors"
OF_ANNOTATIONS = names_of_mode(ConvertConfig, "annotations")


@dataclass(frozen=True)
class WeightsResult(Shown):
    """What was found in a checkpoint, and where it went.

    Attributes:
        src: What was read.
        dst: What was written.
        source: The program that wrote src.
        architecture: What builds its networks.
        parameters: Numbers in one network.
        self_test: Whether the student behaves like a trained labeler.
        unchanged: Whether dst was there already, made of this very file.
    """

    src: Path
    dst: Path
    source: str
    architecture: dict[str, Any]
    parameters: int
    self_test: SelfTest
    unchanged: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values; paths as text."""
        return asdict(self) | {"src": str(self.src), "dst": str(self.dst)}


def convert_weights(config: ConvertConfig) -> WeightsResult:
    """Convert a checkpoint.

    Raises:
        CheckpointError: The source is no labeler of the released code or of TAO.
        ConfigError: Settings that only annotations have, or another suffix.
        OutputError: The target is the source, a folder, or something else.
        RunError: The disk is full.
    """
    _refuse_settings(config)
    check_file(config.src)
    _refuse_target(config)
    if settings_of(config.src) is not None:
        raise CheckpointError(f"{config.src}: is malcli's own checkpoint already; use it as it is")
    unchanged = not config.overwrite and _is_made_of(config.dst, hash_file(config.src))
    checkpoint = load_checkpoint(config.dst if unchanged else config.src)
    for note in checkpoint.notes:
        log(f"convert: {note}")
    if not unchanged:
        settings = checkpoint.settings | {"source_sha256": checkpoint.sha256}
        save_checkpoint(dataclasses.replace(checkpoint, settings=settings), config.dst)
    parameters = sum(parameter.numel() for parameter in checkpoint.student.parameters())
    return WeightsResult(
        src=config.src,
        dst=config.dst,
        source=str(checkpoint.settings.get("source")),
        architecture=checkpoint.architecture.to_plain(),
        parameters=parameters,
        self_test=checkpoint.self_test or behaves_trained(checkpoint.student),
        unchanged=unchanged,
    )


def _refuse_settings(config: ConvertConfig) -> None:
    """Refuse what makes no sense for weights."""
    if config.dst.suffix.lower() != SUFFIX:
        raise ConfigError(f"{config.dst}: weights are written as {SUFFIX}; name the output so")
    given = [
        item.name
        for item in dataclasses.fields(config)
        if item.name in OF_ANNOTATIONS and getattr(config, item.name) != item.default
    ]
    if given:
        raise ConfigError(
            f"{flag_of(given[0])}: {config.src} holds weights; this is for annotations"
        )


def _refuse_target(config: ConvertConfig) -> None:
    """Refuse a target that is a folder, or the source by any name."""
    refuse_special(config.dst)
    if config.dst.is_dir():
        raise OutputError(f"{config.dst}: is a folder; name a file")
    if config.dst.exists() and config.dst.samefile(config.src):
        raise OutputError(f"{config.dst}: is also the input; choose another output")


def _is_made_of(dst: Path, source_sha256: str) -> bool:
    """Return whether the target is there already, made of this source.

    Raises:
        OutputError: It is there and something else.
    """
    if not dst.exists():
        return False
    if (settings_of(dst) or {}).get("source_sha256") != source_sha256:
        raise OutputError(
            f"{dst}: exists with other content; choose another output, or --overwrite"
        )
    return True
