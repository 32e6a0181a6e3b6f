"""The commands as functions, for people who import malcli.

Every keyword is the long flag's name with `_` for `-` (`--from` is `from_`), plus `recipe`. The
function that needs torch loads it, not the import.
"""

from os import PathLike
from typing import TYPE_CHECKING, Any

from malcli.config.convert import ConvertConfig
from malcli.config.evaluate import EvalConfig
from malcli.config.fit import FitConfig
from malcli.config.retention import RetentionConfig
from malcli.settings import resolve

if TYPE_CHECKING:
    from malcli.engine.convert.command import ConvertResult
    from malcli.engine.convert.weights import WeightsResult
    from malcli.engine.eval.encoder.attention import AttentionResult
    from malcli.engine.eval.encoder.clustering import ClusteringResult
    from malcli.engine.eval.masks import EvalResult
    from malcli.engine.fit.command import FitResult
    from malcli.engine.label.command import LabelResult
    from malcli.engine.retention.command import RetentionResult


def fit(*, recipe: str | None = None, **options: Any) -> "FitResult":  # noqa: ANN401
    """Train a labeler from boxes: `malcli fit`.

    Args:
        recipe: A preset (`paper`, `released`) or a TOML file.
        options: Fields of `FitConfig`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    from malcli.engine.fit import command as engine

    return engine.fit(resolve(FitConfig, options, recipe, "fit").config)


def label(*, recipe: str | None = None, **options: Any) -> "LabelResult":  # noqa: ANN401
    """Make a mask for every box: `malcli label`.

    Args:
        recipe: A preset (`paper`, `released`) or a TOML file.
        options: Fields of `LabelConfig`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    from malcli.engine.label import command as engine
    from malcli.engine.label.settings import resolve_label

    return engine.label(resolve_label(options, recipe))


def evaluate(
    *,
    recipe: str | None = None,
    **options: Any,  # noqa: ANN401
) -> "EvalResult | ClusteringResult | AttentionResult":
    """Score masks against human ones: `malcli eval`.

    Args:
        recipe: A preset (`paper`, `released`) or a TOML file.
        options: Fields of `EvalConfig`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    from malcli.engine.eval import command as engine

    return engine.measure(resolve(EvalConfig, options, recipe, "eval").config)


def convert(
    src: str | PathLike[str],
    dst: str | PathLike[str],
    *,
    recipe: str | None = None,
    **options: Any,  # noqa: ANN401
) -> "ConvertResult | WeightsResult":
    """Turn one annotation format into another: `malcli convert`.

    Args:
        src: The file to read.
        dst: The file to write.
        recipe: A TOML file.
        options: Fields of `ConvertConfig`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    from malcli.engine.convert import command as engine

    values = {"src": str(src), "dst": str(dst), **options}
    return engine.convert(resolve(ConvertConfig, values, recipe, "convert").config)


def retention(*, recipe: str | None = None, **options: Any) -> "RetentionResult":  # noqa: ANN401
    """Train the same student on human masks and on malcli's: `malcli retention`.

    Args:
        recipe: A TOML file.
        options: Fields of `RetentionConfig`.

    Raises:
        MalcliError: An option, file or record is wrong, or the run failed.
    """
    from malcli.engine.retention import command as engine

    return engine.retention(resolve(RetentionConfig, options, recipe, "retention").config)
