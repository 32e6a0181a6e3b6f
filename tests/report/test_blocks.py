"""The parts of pages."""

import re

from malcli.report.blocks import gallery, jumps, page_of, problem_list, section, table
from malcli.report.plots import Example


def test_pictures_open_without_a_script_too_and_load_late():
    html = gallery("Most sure", [Example(b"a", ("<b>",)), Example(b"b", ("two", "id 2"))])
    assert "<a class='zoom' id='most-sure-1' href='#most-sure-1'>" in html
    assert html.count("loading='lazy'") == 2
    assert "alt='two, id 2'" in html
    assert "<b>" not in html
    assert "class='gallery three' id='x'" in gallery("x", [Example(b"a", ())], "three")


def test_what_is_empty_is_left_out():
    assert (gallery("x", []), section("x", ""), problem_list({})) == ("", "", "")


def test_a_cells_second_line_is_small_and_everything_is_escaped():
    html = table(["<i>"], [["1\n<2>"], ["3"]])
    assert "<tr class='main'><td>1<small>&lt;2&gt;</small></td></tr><tr><td>3</td></tr>" in html
    assert "<i>" not in html


def test_a_page_forbids_every_connection_and_other_scripts():
    page = page_of("<title>", ["part", ""])
    head = page[: page.index("<title>")]
    assert "default-src 'none'; img-src data:" in head
    assert page.count("<script>") == 1
    assert "<title>&lt;title&gt;</title>" in page


def test_every_jump_leads_to_a_section_under_its_title():
    parts = [section("Most <b> uncertain", "x"), section("Worst", gallery("Worst", [])), "<p>y</p>"]
    parts.append(section("Median", "z"))
    made = jumps(parts)
    assert re.findall(r"<a href='#([^']+)'>(.*?)</a>", made) == [
        ("to-most-b-uncertain", "Most &lt;b&gt; uncertain"),
        ("to-median", "Median"),
    ]
    assert all(f"id='{name}'" in "".join(parts) for name in re.findall(r"#([^']+)", made))
    assert jumps(["<p>nothing</p>"]) == ""
