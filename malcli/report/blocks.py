"""The parts that malcli's HTML pages are made of: the page itself, tables, galleries, lists.

Pages open offline, in light and dark. Every text from outside is escaped here; the one script of a
page is ours, and the page forbids all others.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape

from malcli.report.plots import Example

GENERATOR = '<meta name="generator" content="malcli">'
STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --dim: #5d5d66; --page: #ffffff;
  --card: #f3f3f6; --line: #d8d8de; --malcli: #c96a00; --human: #0071ba; --other: #8a8a94;
  --second: #b0409a; }
@media (prefers-color-scheme: dark) { :root { --text: #ececf0; --dim: #a8a8b2; --page: #16161a;
  --card: #222228; --line: #3a3a42; --malcli: #ff9a33; --human: #4db2ff; --other: #85858f;
  --second: #f08ad8; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 80rem; margin: 0 auto; padding: clamp(.9rem, 3vw, 1.8rem); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; font-weight: 600; }
.lead { font-size: 1.15rem; max-width: 60rem; } .dim, small { color: var(--dim); }
.scroll { overflow-x: auto; background: linear-gradient(to left, var(--page) 1rem, transparent)
  right / 2rem 100% no-repeat local, linear-gradient(to left, var(--line), transparent)
  right / .9rem 100% no-repeat scroll; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .92rem; }
a { color: var(--human); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal;
  font-size: .92rem; }
th, td { padding: .3rem .42rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0;
  background: var(--page); }
td small { display: block; font-size: .78rem; }
tr.main td { font-weight: 600; } tr.main small { font-weight: 400; }
.gallery { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: .4rem;
  content-visibility: auto; contain-intrinsic-size: auto 17rem; }
figure img { display: block; width: 100%; height: 13rem; object-fit: contain; }
.three, .wide { grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.three img { height: auto; aspect-ratio: 5 / 2; }
.wide img { height: auto; }
figcaption { font-size: .85rem; margin-top: .4rem; }
.zoom { display: block; cursor: zoom-in; border-radius: .2rem; }
.back { display: none; }
figure:has(:target) { grid-column: 1 / -1; }
figure:has(:target) img { height: auto; max-height: 80vh; }
figure:has(:target) .back { display: inline; }
:focus-visible { outline: 3px solid var(--human); outline-offset: 2px; }
dialog { border: 0; padding: 1rem; max-width: 96vw; max-height: 96vh; border-radius: .5rem;
  background: var(--card); color: var(--text); text-align: center; }
dialog::backdrop { background: #000c; }
dialog img { display: block; width: 92vw; height: 76vh; object-fit: contain; }
button { font: inherit; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: .3rem; padding: .1rem .6rem; cursor: pointer; }
th button { border: 0; padding: .1rem 0; font-weight: inherit; text-decoration: underline dotted; }
th button:disabled { color: inherit; text-decoration: none; cursor: auto; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
.bars { width: 100%; font-size: .9rem; }
.bars td, .bars th { padding: .15rem .6rem; border: 0; }
.bars td:first-child { max-width: 18rem; white-space: normal; }
.bars .bar { width: 70%; padding: .15rem 0; }
.bars i { display: block; height: .8rem; background: var(--malcli); border-radius: .15rem; }
.charts { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); }
.square { max-width: 20rem; }
.charts > :first-child { grid-column: 1 / -1; max-width: 48rem; }
.human { color: var(--human); } .malcli { color: var(--malcli); } .second { color: var(--second); }
svg { display: block; width: 100%; overflow: visible; }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
@media (max-width: 40rem) { .charts > :first-child svg text { font-size: 18px; } }
"""
# Without it everything is there to read; with it pictures open in a layer and tables sort.
SCRIPT = """
(() => {
  const links = [...document.querySelectorAll("a.zoom")];
  const box = document.createElement("dialog");
  const image = document.createElement("img");
  const text = document.createElement("p");
  const close = document.createElement("button");
  close.textContent = "Close";
  close.autofocus = true;
  box.append(image, text, close);
  document.body.append(box);
  let at = 0;
  const show = (place) => {
    at = (place + links.length) % links.length;
    const from = links[at].querySelector("img");
    image.src = from.src;
    image.alt = text.textContent = from.alt;
    if (!box.open) box.showModal();
  };
  links.forEach((link, place) => link.addEventListener("click", (event) => {
    event.preventDefault();
    show(place);
  }));
  box.addEventListener("click", () => box.close());
  box.addEventListener("close", () => links[at].focus());
  box.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(at + 1);
    if (event.key === "ArrowLeft") show(at - 1);
  });
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  document.querySelectorAll("th button").forEach((button) => {
    button.disabled = false;
    const head = button.parentElement, heads = [...head.parentElement.children];
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    button.addEventListener("click", () => {
      const numeric = body.rows[0].cells[column].dataset.value !== undefined;
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      body.append(...[...body.rows].sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        return sign * (numeric ? x - y : x.localeCompare(y));
      }));
    });
  });
})();
"""
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
)


def page_of(title: str, parts: Sequence[str]) -> str:
    """Return a whole page; the parts are HTML."""
    body = "\n".join(part for part in parts if part)
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>{GENERATOR}"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script>\n</body></html>\n"
    )


def section(title: str, content: str) -> str:
    """Return HTML under a heading; nothing if there is no content."""
    return f"<h2 id='to-{_slug(title)}'>{escape(title)}</h2>\n{content}" if content else ""


def jumps(parts: Sequence[str]) -> str:
    """Return links to the sections among a page's parts."""
    found = re.findall(r"<h2 id='([^']+)'>(.*?)</h2>", "\n".join(parts))
    links = "".join(f"<a href='#{name}'>{title}</a>" for name, title in found)
    return f"<nav aria-label='Sections'>{links}</nav>" if links else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; a cell's second line is shown small; the first row is the main one."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = ""
    for place, row in enumerate(rows):
        cells = ""
        for text in row:
            value, _, small = text.partition("\n")
            cells += f"<td>{escape(value)}{f'<small>{escape(small)}</small>' if small else ''}</td>"
        body += f"<tr class='main'>{cells}</tr>" if place == 0 else f"<tr>{cells}</tr>"
    # With a tab stop, arrow keys scroll what is wider than the screen in every browser.
    return f"<div class='scroll' tabindex='0'><table><tr>{head}</tr>{body}</table></div>"


def gallery(title: str, items: Sequence[Example], kind: str = "") -> str:
    """Return pictures with their captions; each opens large by click or Enter.

    Args:
        title: Of their section, or any name that no other gallery of the page has.
        items: The pictures.
        kind: `three` for pictures of three panels, `wide` for ones of any height; "": two panels.
    """
    name = _slug(title)
    figures = []
    for place, item in enumerate(items):
        data = base64.b64encode(item.picture).decode("ascii")
        caption = "<br>".join(escape(line) for line in item.caption)
        alt = escape(", ".join(item.caption))
        figures.append(
            f"<figure><a class='zoom' id='{name}-{place}' href='#{name}-{place}'>"
            f"<img loading='lazy' decoding='async' alt='{alt}' "
            f"src='data:image/jpeg;base64,{data}'></a>"
            f"<figcaption>{caption} <a class='back' href='#{name}'>smaller</a></figcaption>"
            "</figure>"
        )
    classes = f"gallery {kind}".rstrip()
    return f"<div class='{classes}' id='{name}'>{''.join(figures)}</div>" if items else ""


def problem_list(problems: Mapping[str, Sequence[str]]) -> str:
    """Return kinds of problems with their examples; nothing if there are none."""
    items = ""
    for kind, examples in problems.items():
        lines = "".join(f"<li>{escape(example)}</li>" for example in examples)
        items += f"<li>{escape(kind)}<ul class='dim'>{lines}</ul></li>"
    return f"<ul>{items}</ul>" if items else ""


def _slug(title: str) -> str:
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
