import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from malcli.data.formats.registry import (
    FORMATS,
    KINDS,
    NAMES,
    Lazy,
    folder_of_data,
    format_of_output,
    reader_of,
    writer_of,
)
from malcli.errors import ConfigError

HEAVY = ("numpy", "pyarrow", "torch", "cv2", "PIL")


@pytest.mark.parametrize("pick", [reader_of, writer_of])
def test_a_format_without_code_says_what_there_is(pick):
    with pytest.raises(ConfigError, match=r"coco, .*lvis, objects365, openimages, parquet, .*yolo"):
        pick("a format of the future")


@pytest.mark.parametrize("name", NAMES)
def test_every_format_s_code_is_there(name):
    places = [value.place for value in vars(FORMATS[name]).values() if isinstance(value, Lazy)]
    assert len(places) >= 3
    for place in places:
        module, _, function = place.rpartition(".")
        assert callable(getattr(import_module(f"malcli.data.formats.{module}"), function))


def test_the_table_loads_nothing_heavy():
    lines = "import sys, malcli.config.convert, malcli.config.label"
    ask = f"print(sorted(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", f"{lines}; {ask}"], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_output_s_suffix_names_its_format(tmp_path):
    assert format_of_output(tmp_path / "a.JSON") == "coco"
    assert format_of_output(tmp_path / "a.parquet") == "parquet"
    assert format_of_output(tmp_path / "a.csv") == "openimages"
    assert format_of_output(tmp_path / "a.yml") == "yolo"
    assert format_of_output(tmp_path / "a.txt", "coco") == "coco"
    with pytest.raises(ConfigError, match=r"use \.json, \.parquet, \.csv or \.yaml, or --to"):
        format_of_output(tmp_path / "a.txt")


def test_what_a_folder_s_hash_follows_is_what_formats_are_made_of():
    assert {".json", ".csv", ".txt", ".yaml", ".yml", ".parquet"} <= set(KINDS)
    assert folder_of_data(Path("a/data.yaml")) == folder_of_data(Path("a/x.yml")) == Path("a")
    assert folder_of_data(Path("a/b.json")) == Path("a/b.json")
