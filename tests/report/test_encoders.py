"""What `eval --clustering` and `--attention` print."""

import io

from rich.console import Console

from malcli.report.encoders import attention_lines, clustering_table

SIZES = {"all": 0.7123, "small": None, "medium": 0.6, "large": 0.8}


def text_of(table):
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue()


def test_clustering_shows_score_chance_interval_and_what_was_left_out():
    result = {
        "clustering": SIZES,
        "chance": SIZES | {"all": 0.9},
        "intervals": {
            "clustering": {"all": [0.7, 0.8], "small": None, "medium": None, "large": None}
        },
        "counts": {"instances": 40, "used": 36, "without_both_sides": 3, "skipped": 1},
        "encoder": "[b]vit[/b]",
        "weights": "none",
        "crop_size": 64,
        "stride": 16,
        "margin": 0.4,
        "geometry": "exact",
    }
    text = text_of(clustering_table(result))
    for words in ("0.712", "0.900", "–", "0.700–0.800", "36 of 40 instances", "3 without tokens"):
        assert words in text
    assert "interval" not in text_of(clustering_table(result | {"intervals": None}))


def test_attention_says_where_the_page_is():
    drawn = {"ids": [7, 9], "encoder": "vit", "layers": [4, 8], "report": "a.html"}
    assert attention_lines({"attention": drawn}) == "boxes: 2, vit, layers 4, 8: a.html"
