"""Every malcli command that the README shows has a name and flags that exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from malcli.cli.main import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
LINES = [line.removeprefix("$ ") for block in BLOCKS for line in block.splitlines()]
COMMANDS = sorted(
    {line.partition("  #")[0].strip() for line in LINES if line.startswith("malcli ")}
)


def test_the_readme_shows_the_three_commands_of_the_card():
    wanted = {
        "malcli fit   --data coco.json --encoder vit_mae_base",
        "malcli label --boxes objects365.json --out masks.json",
        "malcli eval  --gt val2017.json",
    }
    assert wanted <= set(COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_command_of_the_readme_parses(line):
    group = get_command(app)
    words = shlex.split(line)[1:]
    command = group.commands[words[0]]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert used <= flags, used - flags
    command.make_context(words[0], words[1:], resilient_parsing=False).close()
