"""The import layers, read from the source with `ast`: nothing is imported here."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "malcli"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}

# Downwards only; names on one line are strangers to each other.
LINES = (
    ("cli", "api"),
    ("engine",),
    ("report",),
    ("data", "model", "losses", "metrics"),
    ("geometry",),
    ("config", "records", "files"),
    ("settings",),
    ("errors",),
)
LEVEL = {name: level for level, line in enumerate(LINES) for name in line}

# Inside a package, who may import whom ...
COMMANDS = ("convert", "demo", "doctor", "eval", "fit", "label", "retention")
FORMATS = ("coco", "lvis", "objects365", "openimages", "parquet", "yolo")
SIBLINGS = {f"cli.{name}": "options output" for name in COMMANDS} | {
    "cli.main": " ".join(COMMANDS) + " output",
    "data.formats": " ".join(FORMATS) + " index cache openimages_masks openimages_write yolo_write",
    "data.images": "jpeg",
    "data.lvis": "coco",
    "data.objects365": "coco",
    "data.coco": "typed",
    "data.composites": "images",
    "data.index": "grouping",
    "data.openimages": "images openimages_csv openimages_masks sizes",
    "data.openimages_masks": "images openimages_csv",
    "data.parquet": "parquet_rows",
    "data.openimages_write": "folders images",
    "data.yolo": "images sizes",
    "data.yolo_write": "folders images yolo",
    "data.sizes": "cache images",
    "data.rois": "images",
    "data.training": "images rois augment composites",
    "geometry.areas": "crops",
    "geometry.boxes": "released",
    "geometry.overlaps": "rle",
    "geometry.polygons": "rle",
    "metrics.ap": "matching",
    "metrics.clustering": "miou",
    "metrics.confidence": "score_weights",
    "metrics.miou": "matching shapes",
    "model.attention": "encoders",
    "model.decoders": "query",
    "model.encoders": "surgery",
    "model.labeler": "encoders decoders",
    "model.pretrained": "encoders",
    "model.checkpoint": "labeler locate released selftest torchfile",
    "model.selftest": "labeler",
    "model.released": "labeler encoders decoders",
    "losses.mil": "dice",
    "losses.crf": "dice",
    "engine.convert": "changes convert_weights",
    "engine.fit": "adaptive evaluate failures launch networks runs survey thresholds trainer",
    "engine.trainer": "batches objective pictures runs schedule",
    "engine.batches": "doctor objective",
    "engine.pictures": "objective",
    "engine.label": "batch_size begin crew estimate exclusive inference jobs parts review survey",
    "engine.batch_size": "inference jobs launch survey",
    "engine.crew": "parts survey",
    "engine.estimate": "survey",
    "engine.exclusive": "parts",
    "engine.begin": "adaptive jobs launch parts survey thresholds",
    "engine.thresholds": "inference jobs parts survey",
    "engine.inference": "adaptive jobs launch parts predictor survey",
    "engine.predictor": "adaptive launch",
    "engine.launch": "crew doctor",
    "engine.jobs": "adaptive parts runs",
    "engine.compare": "instances scores",
    "engine.gallery": "compare instances scores",
    "engine.evaluate": "compare gallery instances label scores survey",
    "engine.measure": "attention clustering evaluate",
    "engine.clustering": "encoding instances survey",
    "engine.attention": "encoding survey",
    "engine.encoding": "launch survey",
    "engine.survey": "adaptive",
    "engine.demo": "fit label evaluate",
    "engine.retention": "instances phase2 study",
    "engine.phase2": "failures launch student_results students study",
    "engine.students": "batches runs student_steps",
    "engine.student_results": "students",
    "engine.study": "instances jobs",
    "data.student_images": "images",
    "model.student": "torchfile transformers_models transformers_student",
    "model.transformers_models": "transformers_student",
    "report.students": "tables",
    "report.encoders": "tables",
    "report.charts": "tables",
    "report.html": "blocks charts plots tables",
    "report.blocks": "plots",
}
# ... and what everyone in the package may.
SHARED = {
    "config.shared",
    "data.checks",
    "data.columns",
    "data.index",
    "data.spool",
    "data.stream",
    "engine.signals",
    "metrics.pairing",
}

TORCH_ALLOWED = re.compile(
    r"data\.(rois|augment|training)|model\..*|losses\..*"
    r"|engine\.(attention|batch_size|batches|demo|begin|doctor|encoding|failures|fit|inference|label|launch"
    r"|objective|phase2|pictures|predictor|runs|schedule|student_results|student_steps|students|thresholds"
    r"|trainer)"
)


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


def test_every_module_belongs_to_a_layer():
    assert {name.partition(".")[0] for name in MODULES} <= set(LEVEL)
    assert len(MODULES) > 20


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_lower_layers_and_named_siblings(name):
    package = name.partition(".")[0]
    siblings = {f"{package}.{leaf}" for leaf in SIBLINGS.get(name, "").split()}
    for other in own_imports(MODULES[name]):
        theirs = other.partition(".")[0]
        if theirs == package and "." in name:
            assert other in SHARED | siblings, f"{name} imports its sibling {other}"
        else:
            assert LEVEL[package] < LEVEL[theirs], f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    waiting = {name: own_imports(path) for name, path in MODULES.items()}
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting


@pytest.mark.parametrize("name", MODULES)
def test_torch_and_its_friends_stay_in_their_modules(name):
    heavy = roots(MODULES[name]) & {"torch", "torchvision", "timm", "accelerate", "transformers"}
    if not TORCH_ALLOWED.fullmatch(name):
        assert not heavy
    if not name.startswith("engine."):
        assert "accelerate" not in heavy


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
