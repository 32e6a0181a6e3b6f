"""`malcli eval` in its three forms: masks, an encoder's features, or its attention.

torch is loaded only where a network is needed.
"""

from typing import TYPE_CHECKING

from malcli.config.evaluate import EvalConfig
from malcli.errors import ConfigError
from malcli.settings import names_of_mode

if TYPE_CHECKING:
    from malcli.engine.eval.encoder.attention import AttentionResult
    from malcli.engine.eval.encoder.clustering import ClusteringResult
    from malcli.engine.eval.result import EvalResult

OF_MASKS = names_of_mode(EvalConfig, "masks")
OF_ENCODERS = names_of_mode(EvalConfig, "encoders")


def measure(config: EvalConfig) -> "EvalResult | ClusteringResult | AttentionResult":
    """Score masks, or with `clustering` or `attention` look into an encoder and do nothing else.

    Raises:
        MalcliError: Options that do not go together, or as `evaluate`, `measure_clustering` and
            `draw_attention`.
    """
    check_options(config)
    if config.clustering:
        from malcli.engine.eval.encoder.clustering import measure_clustering

        return measure_clustering(config)
    if config.attention:
        from malcli.engine.eval.encoder.attention import draw_attention

        return draw_attention(config)
    from malcli.engine.eval.masks import evaluate

    return evaluate(config)


def check_options(config: EvalConfig) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: Naming them.
    """
    if config.clustering and config.attention:
        raise ConfigError(
            "--clustering and --attention: give one of them; each is a run of its own"
        )
    given = [name for name in (*OF_MASKS, *OF_ENCODERS) if getattr(config, name) is not None]
    mode = "--clustering" if config.clustering else "--attention" if config.attention else None
    for name in given:
        if mode is None and name in OF_ENCODERS:
            raise ConfigError(f"--{name}: goes with --clustering or --attention")
        if mode and name in OF_MASKS:
            raise ConfigError(
                f"{mode} with --{name}: it looks at an encoder, not at masks; drop one"
            )
    if config.clustering and (config.report or config.ids):
        name = "--report" if config.report else "--ids"
        raise ConfigError(f"--clustering with {name}: goes with --attention; drop it")
    if config.encoder is not None and config.checkpoint is not None:
        raise ConfigError("--encoder with --checkpoint: each names an encoder; drop one")
    if config.encoder is not None and config.network is not None:
        raise ConfigError("--encoder with --network: student and teacher are a labeler's; drop one")
    if config.weights is not None and config.encoder is None:
        raise ConfigError("--weights without --encoder: name the encoder that they belong to")
