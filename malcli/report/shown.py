"""Results as people see them: the table of the command, in a terminal, a program or a notebook.

rich is loaded only where something is shown.
"""

import io
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from malcli.messages import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PAGE_WIDTH = 120  # characters of a table that does not go to a terminal
LARGEST_PAGE = 32_000_000  # bytes of a report that a notebook takes in; it is saved with it


class Shown:
    """A result that prints as its command does; in notebooks it brings its `report` along."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as `--json` prints them."""
        raise NotImplementedError

    def table(self) -> "RenderableType | None":
        """Return what the command prints; None: each value on a line."""
        return None

    def __str__(self) -> str:
        """Return what the command prints."""
        table = self.table()
        if table is None:
            lines = flatten(self.to_json())
            return "\n".join(printable(f"{key:<28} {value}") for key, value in lines)
        text = io.StringIO()
        console_of(text, PAGE_WIDTH).print(table)
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        """Return the table for a notebook, and the report below it."""
        text = f'<pre style="line-height: 1.2; white-space: pre">{escape(str(self))}</pre>'
        return text + _inline(getattr(self, "report", None))


def _inline(report: Path | None) -> str:
    """Return a page in a frame; a link to it if it is very large; nothing if it is gone."""
    if report is None or not report.is_file():
        return ""
    if report.stat().st_size > LARGEST_PAGE:
        return f'<a href="{escape(str(report))}">{escape(str(report))}</a>'
    page = escape(report.read_text(encoding="utf-8"))
    return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def console_of(file: IO[str], width: int | None) -> "Console":
    """Return where tables are printed; brackets in names are no markup, and no name drives it.

    Args:
        file: Where to.
        width: Characters; None: the terminal's.
    """
    from rich.console import Console
    from rich.text import Text

    class Clean(Console):
        """A console that escapes what a name could do to the terminal."""

        def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401
            lines = text.split("\n")  # rows of a title; rich itself ends no line within a cell
            return super().render_str("\n".join(map(printable, lines)), **options)

    return Clean(file=file, width=width, markup=False, emoji=False, highlight=False)


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield `a.b` and the text of every value of a nested object."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from flatten(inner, f"{prefix}{key}.")
        else:
            text = f"{inner:.4g}" if isinstance(inner, float) else str(inner)
            yield prefix + key, "-" if inner is None else text
