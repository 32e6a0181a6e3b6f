import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.config.convert import ConvertConfig
from malcli.data.formats.open import open_boxes, recognise
from malcli.engine.convert.command import convert
from malcli.errors import DataFormatError
from malcli.records import records_of, to_records

META = "<version>1.1</version><meta><task><name>t &amp; u</name></task></meta>"


@pytest.fixture
def write(tmp_path):
    def write(*images, root="annotations", before=META):
        file = tmp_path / "annotations.xml"
        body = f"<{root}>{before}{''.join(images)}</{root}>"
        file.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{body}', encoding="utf-8")
        return file

    return write


def image(*shapes, name="a.jpg", number=0, size='width="160" height="120"'):
    return f'<image id="{number}" name="{name}" {size}>{"".join(shapes)}</image>'


def box(label="ball", more='occluded="0"', corners=(19, 18, 72, 90), inside=""):
    xtl, ytl, xbr, ybr = corners
    sides = f'xtl="{xtl}" ytl="{ytl}" xbr="{xbr}" ybr="{ybr}"'
    return f'<box label="{label}" {sides} {more}>{inside}</box>'


def attribute(name, text):
    return f'<attribute name="{name}">{text}</attribute>'


def as_cvat(src, dst):
    return convert(ConvertConfig(src=src, dst=dst, to="cvat"))


def test_boxes_are_read_with_their_attributes_in_order(write):
    inside = attribute("colour", "red") + attribute("truncated", "false")
    file = write(
        image(box("b", 'occluded="1" z_order="2" source="manual"', inside=inside), box("a")),
        image(name="sub/é b.jpg", number=7),
        image(box("a", corners=(0.25, 0, 160, 120)), name="c.jpg", number=8),
    )
    assert recognise(file) == recognise(file.parent) == "cvat"
    table = open_boxes(file)
    assert records_of(table) == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [19, 18, 53, 72], "occluded": 1,
         "z_order": 2, "source": "manual", "attributes": {"colour": "red", "truncated": "false"}},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [19, 18, 53, 72]},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [0.25, 0, 159.75, 120]},
    ]  # fmt: skip
    assert [(each["file_name"], each["cvat_id"]) for each in to_records(table.images)] == [
        ("a.jpg", "0"), ("sub/é b.jpg", "7"), ("c.jpg", "8"),
    ]  # fmt: skip
    assert table.header["meta"] == {"task": {"name": "t & u"}}
    assert records_of(open_boxes(file.parent)) == records_of(table)


def test_what_is_no_upright_box_is_counted_by_name_and_keeps_its_place(write):
    shapes = [
        box(more='rotation="40.0"'),
        '<ellipse label="ball" cx="5" cy="5" rx="2" ry="3"/>',
        '<points label="ball" points="1,2;3,4"/>',
        '<polyline label="ball" points="1,2;3,4;5,9"/>',
        '<skeleton label="man"><points label="1" points="3,4"/></skeleton>',
        '<polygon label="ball" points="1,2;3,4"/>',
        '<mask label="ball" rle="1, 2" left="3" top="4" width="3" height="3"/>',
        '<mask label="ball" rle="0, 9" left="159" top="4" width="3" height="3"/>',
        box(corners=(1, "x", 3, 4)),
        box(corners=(1, 2, "1e300", 4)),
        box(more='rotation="0.0"'),
    ]
    table = open_boxes(write(image(*shapes, '<tag label="night"/>')))
    assert table.boxes["status"].to_pylist() == ["skipped:bad-box"] * 10 + ["ok"]
    assert table.problems.counts["rotated-bbox"] == 1
    assert table.problems.examples["rotated-bbox"] == ["<box> of 'a.jpg' is rotated by '40.0'"]
    assert table.problems.counts["no-box"] == 9
    assert table.problems.examples["no-box"][0] == "<ellipse> of 'a.jpg' is no box"
    records = records_of(table)
    assert records[0]["cvat_shape"]["rotation"] == "40.0"
    assert records[4]["cvat_shape"]["points"] == [{"@label": "1", "@points": "3,4"}]
    assert to_records(table.images)[0]["tags"] == [{"@label": "night"}]


def test_polygons_of_a_group_are_one_mask(write):
    part = '<polygon label="{}" points="{}" group_id="{}"/>'
    table = open_boxes(
        write(
            image(
                part.format("a", "1.00,2.00;5.50,2.00;5.00,9.00", 3),
                part.format("b", "1,2;5,2;5,9", 3),
                part.format("a", "20,20;30,20;30,30", 3),
                part.format("a", "20,20;30,20;30,30", 0),
            )
        )
    )
    records = records_of(table)
    assert [each["bbox"] for each in records] == [[1, 2, 29, 28], [1, 2, 4, 7], [20, 20, 10, 10]]
    assert records[0]["segmentation"] == [[1, 2, 5.5, 2, 5, 9], [20, 20, 30, 20, 30, 30]]
    assert records[0]["group_id"] == 3


def test_a_mask_s_runs_go_along_the_rows_of_its_window(write):
    shape = '<mask label="a" rle="1, 2, 3, 2" left="3" top="4" width="4" height="2"/>'
    record = records_of(open_boxes(write(image(shape))))[0]
    expected = np.zeros((120, 160), dtype=np.uint8)
    expected[4, 4:6] = expected[5, 5:7] = 1
    assert (coco_mask.decode(record["segmentation"]) == expected).all()
    assert record["bbox"] == [3, 4, 4, 2]


def test_a_mask_of_an_image_of_no_usable_size_is_no_mask(write):
    shape = '<mask label="a" rle="0, 1" left="3" top="4" width="1" height="1"/>'
    table = open_boxes(write(image(shape, size='width="999999999" height="999999999"')))
    assert table.problems.counts["no-box"] == 1


def test_images_lie_in_their_folder_beside_the_file(write, tmp_path):
    write(image(box()))
    (tmp_path / "images").mkdir()
    assert open_boxes(tmp_path).path == tmp_path / "images"


def test_a_size_that_is_not_stated_is_the_photograph_s(write, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    table = open_boxes(write(image(box(), size="")))
    assert (table.images["width"][0].as_py(), table.images["height"][0].as_py()) == (40, 30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<annotations><track id="0" label="a"/></annotations>', "CVAT for images 1.1"),
        ("<annotations>\n<image></annotations>", "line 2: not well-formed"),
        ("<annotations><image>", "not well-formed"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotations>&e;</annotations>', "DTD"),
        ("<other/>", "holds <other>, not <annotations>"),
        ("<annotations>" + "<a>" * 200 + "</a>" * 200 + "</annotations>", "nested too deeply"),
        ('<?xml version="1.0" encoding="xyz"?><annotations/>', "encoding 'xyz'"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, said):
    file = tmp_path / "x.xml"
    file.write_text(text)
    with pytest.raises(DataFormatError, match=r"x\.xml: ") as caught:
        open_boxes(file, "cvat")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_file_is_read_in_any_encoding(tmp_path):
    images = "".join(image(box("猫"), name=f"{n}.jpg", number=n) for n in range(2500))
    text = f'<?xml version="1.0" encoding="gb18030"?><annotations>{images}</annotations>'
    (tmp_path / "x.xml").write_text(text, encoding="gb18030")
    table = open_boxes(tmp_path / "x.xml")
    assert table.header["categories"] == [{"id": 1, "name": "猫"}]
    assert table.boxes["image_id"].to_pylist() == list(range(1, 2501))


def test_what_is_written_comes_back(write, tmp_path):
    mask = '<mask label="ball" rle="1, 2, 3, 3" left="3" top="4" width="3" height="3"/>'
    shapes = [
        box(inside=attribute("colour", "r&amp;d")),
        box(more='rotation="40.0" occluded="1"'),
        '<polygon label="box" points="1.25,2;5.5,2;5,9" group_id="9" z_order="3"/>',
        '<polygon label="box" points="20,20;30,20;30,30" group_id="9"/>',
        mask,
        '<skeleton label="man"><points label="1" points="3,4"/></skeleton>',
    ]
    night = '<tag label="night" source="manual"></tag>'
    file = write(image(night, *shapes), image(name="b.jpg", number=5, size=""))
    result = as_cvat(file, tmp_path / "back.xml")
    assert (result.left_out, result.lost) == (0, {})
    old, new = open_boxes(file), open_boxes(tmp_path / "back.xml")
    assert to_records(new.images) == to_records(old.images)
    assert new.header == old.header
    before, after = records_of(old), records_of(new)
    masks = [coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(each, 120, 160)))
             for each in [after[3].pop("segmentation")]]  # fmt: skip
    assert (masks[0] == coco_mask.decode(before[3].pop("segmentation"))).all()
    assert after == before


def test_ids_scores_and_parts_of_masks_travel(tmp_path):
    corners = [[1, 1, 9, 1, 9, 9, 1, 9], [20, 20, 29, 20, 29, 29]]
    status = {"malcli_score": 0.5, "malcli_status": "ok"}
    records = [
        {"id": 70, "image_id": 4, "category_id": 2, "bbox": [1, 1, 28, 28],
         "segmentation": corners} | status,
        {"id": 5, "image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        {"id": 6, "image_id": 4, "category_id": 9, "bbox": [1, 2, 3, 4]},
    ]  # fmt: skip
    value = {"images": [{"id": 4, "file_name": "a.jpg", "height": 120, "width": 160,
                         "x y": "1", "license": 3, "url": "u", "id2": "&"}],
             "categories": [{"id": 2, "name": 'a "b" <c>'}], "annotations": records}  # fmt: skip
    (tmp_path / "masks.json").write_text(json.dumps(value))
    result = as_cvat(tmp_path / "masks.json", tmp_path / "x.xml")
    assert result.lost == {
        "annotations of an unknown category": 1,
        "other keys of images": 2,
        "ids of images, which get others": 1,
        "ids of categories, which get others": 1,
    }
    root = ElementTree.parse(tmp_path / "x.xml").getroot()
    assert [each.get("group_id") for each in root.iter("polygon")] == ["70", "70"]
    assert [each.get("occluded") for each in root.iter("box")] == ["0"]
    assert root.find("image").attrib == {
        "id": "0", "name": "a.jpg", "width": "160", "height": "120", "url": "u", "id2": "&",
    }  # fmt: skip
    label = root.find("meta/task/labels/label")
    assert label.findtext("name") == 'a "b" <c>'
    assert label.findtext("attributes/attribute/name") == "malcli_id"
    ids = {"image_id": 1, "category_id": 1}
    assert records_of(open_boxes(tmp_path / "x.xml")) == [records[0] | ids, records[1] | ids]


@pytest.mark.parametrize("ids", [["5", "a b", "007"], [' "q"', '"q"', "é"]])
def test_ids_that_are_text_stay_text(tmp_path, ids):
    records = [{"id": each, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]} for each in ids]
    value = {"images": [{"id": 1, "file_name": "a.jpg", "height": 120, "width": 160}],
             "categories": [{"id": 1, "name": "a"}], "annotations": records}  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(value))
    as_cvat(tmp_path / "x.json", tmp_path / "x.xml")
    assert [each["id"] for each in records_of(open_boxes(tmp_path / "x.xml"))] == ids
