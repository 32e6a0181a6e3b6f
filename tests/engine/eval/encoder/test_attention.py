"""`eval --attention` on drawn scenes: which boxes, which layers, and the page."""

import json
import re
import shutil

import numpy as np
import pytest

from malcli.config.evaluate import EvalConfig
from malcli.engine.eval.encoder import attention
from malcli.engine.eval.encoder.attention import draw_attention
from malcli.errors import ConfigError, DataFormatError, OutputError
from malcli.geometry.rle import empty_rle

TINY = "timm/test_vit.r160_in1k"  # 6 layers


@pytest.fixture
def truth(scenes):
    """The drawn annotations, as a fresh copy."""
    return json.loads(scenes.instances.read_text())


@pytest.fixture
def drawn(scenes, tmp_path):
    """Draw a random encoder's attention on the scenes, or on changed annotations."""

    def run(gt=None, **options):
        path = scenes.instances
        if gt is not None:
            path = tmp_path / "gt.json"
            path.write_text(json.dumps(gt))
        plain = {"images": scenes.images, "crop_size": "64", "layers": "2,4,6", "encoder": TINY}
        plain |= {"weights": "none", "report": tmp_path / "page.html"}
        return draw_attention(EvalConfig(gt=path, device="cpu", **plain | options))

    return run


def pictures(page):
    return page.read_text().count("data:image/jpeg;base64,")


def test_eight_boxes_spread_over_the_file_on_one_offline_page(truth, drawn, tmp_path):
    truth["categories"][0]["name"] = "<script>alert(1)</script>"
    result = drawn(truth)
    ids = [record["id"] for record in truth["annotations"]]
    assert len(result.ids) == 8
    assert (result.ids[0], result.ids[-1]) == (ids[0], ids[-1])
    assert sorted(result.ids) == result.ids
    text = result.report.read_text()
    assert pictures(result.report) == 8
    assert "layers 2, 4, 6" in text
    assert "<script src" not in text
    assert not re.search(r"(src|href)=.https?://", text)
    assert result.to_json()["attention"] == {
        "report": str(tmp_path / "page.html"),
        "ids": result.ids,
        "layers": [2, 4, 6],
        "class_token": True,
        "encoder": TINY,
        "weights": "none",
        "network": None,
        "crop_size": 64,
        "stride": 16,
        "margin": 0.4,
        "geometry": "exact",
        "gt": str(tmp_path / "gt.json"),
        "problems": {},
    }


def test_the_page_is_attention_html_unless_named(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(drawn(report=None).report) == "attention.html"
    assert (tmp_path / "attention.html").is_file()


def test_chosen_ids_are_drawn_once_in_their_order(truth, drawn):
    ids = [record["id"] for record in truth["annotations"]]
    result = drawn(ids=f"{ids[3]}, {ids[0]},{ids[3]}", layers="5")
    assert (result.ids, result.layers) == ([ids[3], ids[0]], [5])
    assert pictures(result.report) == 2


def test_ids_that_are_text_are_found(truth, drawn):
    for record in truth["annotations"]:
        record["id"] = f"a{record['id']}"
    last = truth["annotations"][-1]["id"]
    assert drawn(truth, ids=last).ids == [last]
    with pytest.raises(ConfigError, match=rf"'b'; take such as {truth['annotations'][0]['id']}"):
        drawn(truth, ids="b")


def test_ids_that_cannot_be_drawn_name_others(truth, drawn):
    ids = [record["id"] for record in truth["annotations"]]
    with pytest.raises(
        ConfigError, match=rf"no annotation '{ids[-1] + 50}'; take such as {ids[-1]}"
    ):
        drawn(ids=str(ids[-1] + 50))
    for text in ("x", "-3", "9" * 30, "\ud800"):
        with pytest.raises(ConfigError, match=r"--ids: .*has no annotation"):
            drawn(ids=text)
    with pytest.raises(ConfigError, match="names no annotation"):
        drawn(ids=" , ")
    truth["annotations"][0]["iscrowd"] = 1
    with pytest.raises(ConfigError, match=rf"annotation {ids[0]} is skipped:crowd"):
        drawn(truth, ids=str(ids[0]))
    assert ids[0] not in drawn(truth).ids


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("4,8,12", "has 6 layers, not 12; take --layers 2,4,6"),
        ("0", "--layers '0': give a whole number above 0"),
        ("two", "--layers 'two'"),
        ("", "--layers ''"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_a_page_is_written(
    drawn, tmp_path, layers, words
):
    with pytest.raises(ConfigError, match=words):
        drawn(layers=layers)
    assert not (tmp_path / "page.html").exists()


def test_an_encoder_without_attention_is_refused_with_the_remedy(drawn):
    with pytest.raises(ConfigError, match="take a plain ViT"):
        drawn(encoder="timm/test_convnext.r160_in1k")


def test_the_patch_is_the_one_under_the_box_s_centre(truth, drawn, monkeypatch):
    """Off the crop's middle only where the RoI is rounded, so a fine grid is asked for."""
    asked = []
    real = attention.attention_maps

    def spy(encoder, image, layers, patch_B):
        asked.append(patch_B.item())
        return real(encoder, image, layers, patch_B)

    monkeypatch.setattr(attention, "attention_maps", spy)
    record = truth["annotations"][0]
    record["bbox"] = [10.0, 10.0, 40.0, 20.0]
    # Margin 1.0 on each side: the RoI is x -10..70, y 0..40; the centre (30, 20) is the middle.
    drawn({**truth, "annotations": [record]}, margin=2.0)
    assert asked == [2 * 4 + 2]
    # Half outside: the part inside is x 0..30, centre 15, in the RoI -15..45 again the middle.
    record["bbox"] = [-30.0, 10.0, 60.0, 20.0]
    drawn({**truth, "annotations": [record]}, margin=2.0)
    assert asked[1] == 2 * 4 + 2


def test_boxes_without_masks_will_do(truth, drawn):
    for record in truth["annotations"]:
        del record["segmentation"]
    truth["annotations"][0]["segmentation"] = empty_rle((72, 96))
    assert len(drawn(truth).ids) == 8


def test_bad_images_are_left_out_and_reported(truth, scenes, drawn, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(scenes.images, folder)
    lost = truth["images"][0]
    (folder / lost["file_name"]).write_bytes(b"no image")
    result = drawn(images=folder)
    gone = {one["id"] for one in truth["annotations"] if one["image_id"] == lost["id"]}
    assert not gone & set(result.ids)
    assert len(result.ids) + sum(result.problems.counts.values()) == 8
    assert lost["file_name"] in capsys.readouterr().err
    assert ">Problems</h2>" in result.report.read_text()
    with pytest.raises(DataFormatError, match="--strict"):
        drawn(images=folder, strict=True)
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataFormatError, match="no box can be drawn"):
        drawn(images=folder)


def test_the_page_replaces_only_pages(scenes, drawn, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("my notes")
    with pytest.raises(OutputError, match="no report of malcli"):
        drawn()
    assert page.read_text() == "my notes"
    with pytest.raises(OutputError, match="also an input"):
        drawn(report=scenes.instances)
    assert drawn(overwrite=True).report == page


def test_an_empty_file_has_nothing_to_draw(truth, drawn):
    with pytest.raises(DataFormatError, match="no box to draw"):
        drawn({**truth, "annotations": []})
    truth["annotations"] = truth["annotations"][:1]
    truth["annotations"][0]["bbox"] = [0, 0, -1, float(np.float32(3))]
    with pytest.raises(DataFormatError, match="no box to draw"):
        drawn(truth)
