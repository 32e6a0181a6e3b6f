"""Mutated files of every kind: each is done with, or refused in one line. More by `make fuzz`."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
SPEC = importlib.util.spec_from_file_location("fuzz", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)

FAILED_ONCE = [452]  # seeds that `make fuzz` found, kept when what they found was mended


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A small file of every kind; read only."""
    folder = tmp_path_factory.mktemp("samples")
    fuzz.draw_samples(folder)
    return folder


@pytest.mark.parametrize("kind", range(len(fuzz.KINDS)), ids=fuzz.KINDS)
def test_mutated_files_are_done_with_or_refused_in_one_line(kind, samples, tmp_path):
    seen = set()
    for seed in range(kind, 12 * len(fuzz.KINDS), len(fuzz.KINDS)):
        said = fuzz.run_seed(seed, samples, tmp_path / str(seed))
        assert said in ("done", "refused"), f"seed {seed}: {said}"
        seen.add(said)
    assert "refused" in seen


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_what_failed_once_does_not_fail_again(seed, samples, tmp_path):
    assert fuzz.run_seed(seed, samples, tmp_path / "x") in ("done", "refused")
