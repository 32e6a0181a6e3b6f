"""What README and docs say: commands that exist, links that lead somewhere, a map of every file.

`python tests/test_readme.py` writes the map anew, from the first lines of the docstrings.
"""

import ast
import re
import shlex
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in (
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
)}  # fmt: skip
BLOCK = re.compile(r"^```\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
COMMANDS = sorted(
    {
        line.removeprefix("$ ").partition("  #")[0].strip()
        for page in PAGES.values()
        for block in BLOCK.findall(page)
        for line in block.splitlines()
        if line.removeprefix("$ ").startswith("malcli ")
    }
)
MAP = re.compile(r"(?<=^## Where is what\?\n).*?^```\n(.*?)^```", re.DOTALL | re.MULTILINE)


def file_map() -> str:
    """Return a line for every module: its name, and what its docstring says first."""
    files = sorted((ROOT / "malcli").rglob("*.py"), key=lambda path: (path.parent, path.name))
    lines = []
    for folder, group in groupby(files, key=lambda path: path.parent):
        said = {path.name: ast.get_docstring(ast.parse(path.read_text("utf-8"))) for path in group}
        lines.append(f"{folder.relative_to(ROOT).as_posix()}/")
        lines += [f"  {name:<22} {text.splitlines()[0]}" for name, text in said.items() if text]
    return "\n".join(lines) + "\n"


def test_the_readme_shows_the_three_commands_of_the_card():
    wanted = {
        "malcli fit   --data coco.json --encoder vit_mae_base",
        "malcli label --boxes objects365.json --out masks.json",
        "malcli eval  --gt val2017.json",
    }
    assert wanted <= set(COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_is_shown_parses(line):
    from typer.main import get_command

    from malcli.cli.main import app

    group = get_command(app)
    words = shlex.split(line)[1:]
    command = group.commands[words[0]]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert used <= flags, used - flags
    command.make_context(words[0], words[1:], resilient_parsing=False).close()


def test_the_map_names_every_file_with_its_own_first_line():
    assert MAP.search(README)[1] == file_map(), "python tests/test_readme.py writes it anew"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)\)", PAGES[page])
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / page.parent / link).exists()] == []


def test_sections_of_the_facts_that_the_code_cites_are_there():
    sections = set(re.findall(r"^## (\d+)\.|\*\*(\d+\.\d+)\*\*", PAGES[Path("docs/mal.md")], re.M))
    known = {one or other for one, other in sections}
    cited = set()
    for path in (ROOT / "malcli").rglob("*.py"):
        for listed in re.findall(r"\bmal\.md ([\d., -]+)", path.read_text("utf-8")):
            cited |= set(re.findall(r"\d+\.\d+|\d+", listed))
    assert cited
    assert cited <= known


if __name__ == "__main__":
    found = MAP.search(README)
    assert found, "README.md has no map"
    text = README[: found.start(1)] + file_map() + README[found.end(1) :]
    (ROOT / "README.md").write_text(text, encoding="utf-8")
