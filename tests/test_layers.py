"""The import layers, read from the source with `ast`: nothing is imported here."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "malcli"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}

# Rooms, from the top down: one imports only from lines below its own, and names on one line are
# strangers. What is in a room may import each other, but never in a circle.
FLOORS = (
    "cli api",
    "engine.demo",
    "engine.retention",
    "engine.fit",
    "engine.eval",
    "engine.label engine.convert",
    "engine.inputs",
    "engine.machine",
    "report",
    "data.crops data.formats data.scenes model losses metrics",
    "data.images",
    "data.boxtable",
    "geometry",
    "report.progress",
    "config records files checksums identity",
    "data.formats.registry settings",
    "errors messages version",
)
FLOOR = {room: number for number, line in enumerate(FLOORS) for room in line.split()}
# Tensors live here; everything else is numpy, so that `convert`, `eval` of files and `--help` start
# without torch, which takes seconds to load.
TORCH_ROOMS = {
    "data.crops", "model", "losses", "engine.label", "engine.fit", "engine.eval",
    "engine.retention", "engine.machine", "engine.demo",
}  # fmt: skip
HEAVY = {"torch", "torchvision", "timm", "accelerate", "transformers"}
START_WITHOUT_TORCH = ("cli.main", "engine.convert.command", "engine.eval.command",
                       "engine.label.command", "api")  # fmt: skip


def room(name: str) -> str:
    """Return the room of a module: the longest of its prefixes that has a floor."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in FLOOR), "")


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path: Path) -> set[str]:
    """Return the malcli modules that a file imports, as keys of MODULES."""
    own = {name.removeprefix("malcli.") for name in imported(path) if name.startswith("malcli.")}
    found = {name for name in own if name in MODULES}
    found |= {name.rpartition(".")[0] for name in own if name.rpartition(".")[0] in MODULES}
    return found


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_every_module_has_a_room():
    assert [name for name in MODULES if not room(name)] == []
    assert {room(name) for name in MODULES} == set(FLOOR)


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_from_their_own_room_and_from_lower_floors(name):
    here = room(name)
    for other in own_imports(MODULES[name]):
        there = room(other)
        assert here == there or FLOOR[here] < FLOOR[there], f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    waiting = {name: own_imports(path) for name, path in MODULES.items()}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting


@pytest.mark.parametrize("name", MODULES)
def test_tensors_live_in_their_rooms(name):
    heavy = roots(MODULES[name]) & HEAVY
    assert not heavy or room(name) in TORCH_ROOMS
    assert "accelerate" not in heavy or name.startswith("engine.")


def test_commands_start_without_torch():
    lines = [f"import malcli.{name}" for name in START_WITHOUT_TORCH]
    lines += ["import sys", f"print(sorted({HEAVY} & sys.modules.keys()))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_runs_code_from_a_file(name):
    text = MODULES[name].read_text("utf-8")
    assert not roots(MODULES[name]) & {
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
    }
    assert not re.search(r"weights_only\s*=\s*(?!True\b)", text)
    assert not re.search(r"allow_pickle\s*=\s*(?!False\b)", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__")


def test_the_packages_import_nothing_by_themselves():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            assert not imported(path), path


def test_no_module_is_named_after_nothing():
    assert not {name.rpartition(".")[2] for name in MODULES} & {
        "utils",
        "helpers",
        "common",
        "misc",
    }
