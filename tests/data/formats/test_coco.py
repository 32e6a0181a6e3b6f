import copy
import errno
import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malcli.data.formats import coco
from malcli.data.formats.coco import read_coco, read_results, write_coco
from malcli.errors import DataFormatError, MalcliError, RunError
from malcli.records import records_of


def image(number, **more):
    return {"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 60, **more}


def box(number, image_id=1, **more):
    record = {"id": number, "image_id": image_id, "category_id": 1, "bbox": [1.5, 2, 10, 10]}
    return record | more


def data(annotations, images=None, **more):
    categories = [{"id": 1, "name": "cat"}]
    return {
        "images": images or [image(1)],
        "annotations": annotations,
        "categories": categories,
    } | more


@pytest.fixture
def read(tmp_path):
    def read(value):
        path = tmp_path / "a.json"
        text = value if isinstance(value, str) else json.dumps(value)
        path.write_text(text, encoding="utf-8")
        return read_coco(path)

    return read


def statuses(table):
    return table.boxes["status"].to_pylist()


def test_a_table_has_boxes_images_and_header(read):
    value = data([box(5), box(3, 2)], [image(1), image(2)], info={"year": 2026}, odd=[1])
    table = read(value)
    assert table.xywh().tolist() == [[1.5, 2, 10, 10]] * 2
    assert table.boxes["image"].to_pylist() == [0, 1]
    assert table.images["file_name"].to_pylist() == ["1.jpg", "2.jpg"]
    assert table.header == {"info": {"year": 2026}, "odd": [1], "categories": value["categories"]}
    assert statuses(table) == ["ok", "ok"]
    assert table.problems.counts == {}


def test_annotations_may_stand_before_images(read):
    value = data([box(5, 2)], [image(1), image(2)])
    table = read({key: value[key] for key in ("annotations", "categories", "images")})
    assert table.boxes["image"].to_pylist() == [1]
    assert statuses(table) == ["ok"]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "bbox",
    [
        None,
        "foo",
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, "three", 4],
        ["1", "2", "3"],
        [[1, 2, 3, 4], [1, 2, 3, 4]],
        [1, 2, True, 4],
        [1, 2, None, 4],
        {"x": 1},
        [NAN, 2, 3, 4],
        [1, 2, INF, 4],
        [1, 2, 0, 4],
        [1, 2, 3, -4],
        [60, 2, 3, 4],
        [1, 40.0, 3, 4],
        [-3, 2, 3, 4],
        [1, -9, 3, 4],
        [1, 2, 10**400, 4],
    ],
)
def test_a_bad_box_is_skipped_counted_and_kept(read, bbox):
    table = read(data([box(1), box(2, bbox=bbox)]))
    assert statuses(table) == ["ok", "skipped:bad-box"]
    assert table.problems.counts == {"bad-box": 1}
    (example,) = table.problems.examples["bad-box"]
    assert example.startswith("annotation 2: bbox ")
    assert example.endswith(f"inside its image '{image(1)['file_name']}'")
    assert json.dumps(records_of(table)[1]["bbox"]) == json.dumps(
        [float(x) for x in bbox] if table.boxes["bbox"][1].is_valid else bbox
    )


def test_an_absent_box_is_skipped_and_stays_absent(read):
    annotation = box(1)
    del annotation["bbox"]
    table = read(data([annotation]))
    assert statuses(table) == ["skipped:bad-box"]
    assert records_of(table) == [annotation]
    name = image(1)["file_name"]
    assert table.problems.examples["bad-box"] == [f"annotation 1: no bbox (image '{name}')"]


@pytest.mark.parametrize("bbox", [[-5, -5, 6, 6], [59.9, 39.9, 100, 100], [0, 0, 1e-3, 1e-3]])
def test_a_box_partly_outside_is_ok(read, bbox):
    assert statuses(read(data([box(1, bbox=bbox)]))) == ["ok"]


@pytest.mark.parametrize("image_id", [2, "2", "01", "+1", "1.0", None, 1.5, True, 2**70, [1]])
def test_an_unknown_image_id_is_no_image(read, image_id):
    table = read(data([box(1, image_id)]))
    assert statuses(table) == ["skipped:no-image"]
    assert table.problems.counts == {"no-image": 1}
    assert table.orphans().tolist() == [0]
    assert records_of(table) == [box(1, image_id)]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"file_name": None}, "no-image"),
        ({"file_name": ""}, "no-image"),
        ({"file_name": 7}, "no-image"),
        ({"file_name": "\ud800.jpg"}, "no-image"),
        ({"height": 0}, "bad-image"),
        ({"width": -4}, "bad-image"),
        ({"width": "60"}, "bad-image"),
        ({"height": 40.5}, "bad-image"),
        ({"height": 2**40}, "bad-image"),
    ],
)
def test_an_unusable_image_record_skips_its_boxes(read, more, status):
    table = read(data([box(1)], [image(1, **more)]))
    assert statuses(table) == [f"skipped:{status}"]
    assert table.problems.counts == {status: 1}


@pytest.mark.parametrize("crowd", [1, True, 1.0])
def test_crowd_is_skipped_but_no_problem(read, crowd):
    table = read(data([box(1, iscrowd=crowd), box(2, iscrowd=0, bbox=[3, 3, 4, 4])]))
    assert statuses(table) == ["skipped:crowd", "ok"]
    assert table.problems.counts == {}


def test_what_makes_a_crowd_box_unusable_comes_first(read):
    table = read(data([box(1, iscrowd=1, bbox=[]), box(2, 9, iscrowd=1, bbox=[])]))
    assert statuses(table) == ["skipped:bad-box", "skipped:no-image"]


@pytest.mark.parametrize(("width", "counts"), [(5, {"equal-box": 24}), (0, {"bad-box": 25})])
def test_all_doubtful_boxes_are_counted_though_ten_are_named(read, width, counts):
    problems = read(data([box(n, bbox=[1, 1, width, 5]) for n in range(25)])).problems
    assert problems.counts == counts
    assert [len(examples) for examples in problems.examples.values()] == [10]


def test_equal_boxes_and_unknown_categories_are_reported_and_ok(read):
    boxes = [box(1), box(2), box(3, category_id=9), box(4, 2), box(5, bbox=[1, 1, 1, 1])]
    table = read(data(boxes, [image(1), image(2)]))
    assert statuses(table) == ["ok"] * 5
    assert table.problems.counts == {"equal-box": 2, "unknown-category": 1}
    assert "annotation 2" in table.problems.examples["equal-box"][0]
    assert "category_id 9" in table.problems.examples["unknown-category"][0]


def test_ten_examples_are_kept_over_many_batches(read, monkeypatch):
    monkeypatch.setattr(coco, "ROWS", 4)
    table = read(data([box(n, bbox=None) for n in range(30)]))
    assert table.problems.counts == {"bad-box": 30}
    assert [line.split(":")[0] for line in table.problems.examples["bad-box"]] == [
        f"annotation {n}" for n in range(10)
    ]


def test_identical_image_records_are_reported(read):
    table = read(data([box(1)], [image(1, x={"a": 1}), image(2), image(1, x={"a": 1})]))
    assert table.problems.counts == {"repeated-image": 1}
    assert table.boxes["image"].to_pylist() == [0]


def test_an_image_without_id_is_reported(read):
    lost = image(1)
    del lost["id"]
    table = read(data([box(1)], [lost, image(1)]))
    assert table.problems.counts == {"image-without-id": 1}
    assert table.boxes["image"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([box(1)], "is a list"),
        (3, "single value"),
        ({"images": []}, "no list 'annotations'"),
        ({"annotations": []}, "no list 'images'"),
        ({"images": {}, "annotations": []}, "'images' is not a list"),
        ({"images": [], "annotations": None}, "'annotations' is not a list"),
        ({"images": [], "annotations": [1]}, r"annotations\[0\]"),
        ({"images": ["x"], "annotations": []}, r"images\[0\]"),
        (data([box(1), {"image_id": 1}]), r"annotations\[1\], key 'id': no id"),
        (data([box(None)]), "None is no id"),
        (data([box(True)]), "True is no id"),
        (data([box(1.5)]), "1.5 is no id"),
        (data([box(1), box(2), box(1)]), "two annotations have this id"),
        (data([box("a"), box("b"), box("a")]), "id 'a'"),
        (data([], [image(1), image(1, width=61)]), r"images\[1\]: another image has the id 1"),
        ('{"images": [], "images": [], "annotations": []}', "twice"),
        ('{"images": [], "annotations": []} x', "after the end"),
        ('{"images": [], "annotations": [{"id": 1}', "ends too early"),
        (data([box(1, x=json.loads("[" * 300 + "]" * 300))]), "nested too deeply"),
        (data([], deep=json.loads("[" * 300 + "]" * 300)), "nested too deeply"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_in_one_line(read, value, said):
    with pytest.raises(DataFormatError, match=said) as caught:
        read(value)
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_of_any_kind_find_their_images(read):
    big = 2**80
    annotations = [box("x", "im"), box(7, 1), box(big, big), box("y", "lost"), box(8, "1x")]
    table = read(data(annotations, [image("im"), image(1), image(big), image("1x")]))
    assert table.boxes["image"].to_pylist() == [0, 1, 2, -1, 3]
    assert table.boxes["id"].to_pylist() == ["x", "7", str(big), "y", "8"]
    assert records_of(table) == annotations


SOME_ID = st.sampled_from(["a", "b", "", "1", "2", "c" * 20, 1, 2, 3, 2**70])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(
    ids=st.lists(SOME_ID, max_size=6, unique_by=str),
    image_ids=st.lists(SOME_ID, min_size=6, max_size=6),
    images=st.lists(SOME_ID, min_size=1, max_size=6, unique_by=str),
)
def test_ids_of_images_are_equal_as_text_and_others_become_it_where_one_is(
    read, ids, image_ids, images
):
    """Against a plain lookup by text; annotations keep their ids as they were."""
    annotations = [box(one, other) for one, other in zip(ids, image_ids, strict=False)]
    table = read(data(annotations, [image(each) for each in images]))

    def are_text(given):
        return any(isinstance(each, str) or each >= 2**63 for each in given)

    rows = {str(each): row for row, each in enumerate(images)}
    wanted = [rows.get(str(each), -1) for each in image_ids[: len(ids)]]
    assert table.boxes["image"].to_pylist() == wanted
    assert table.boxes["id"].to_pylist() == ([str(i) for i in ids] if are_text(ids) else ids)
    assert records_of(table) == annotations


KEYS = st.sampled_from(
    ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "score", "ignore"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
)
ANY = SCALARS | st.lists(SCALARS, max_size=5) | st.dictionaries(st.text(max_size=3), SCALARS)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None
)
@given(
    records=st.lists(st.dictionaries(KEYS | st.text(max_size=2), ANY, max_size=8), max_size=5),
    images=st.lists(
        st.dictionaries(KEYS | st.sampled_from(["file_name", "width"]), ANY), max_size=4
    ),
)
def test_records_come_back_as_they_were(read, records, images):
    for number, record in enumerate(records):
        record["id"] = number
    for number, record in enumerate(images):
        record["id"] = f"i{number}"
    value = {"annotations": records, "images": images, "x": images}
    table = read(value)
    assert records_of(table) == records
    out = table.path.with_name("b.json")
    assert write_coco(out, table, [records_of(table)]) == len(records)
    assert json.loads(out.read_text()) == value


def test_mutated_files_raise_nothing_but_our_errors(tmp_path):
    value = data([box(n, 1 + n % 2, segmentation=[[1, 2, 3, 4, 5.5, 6]]) for n in range(6)])
    value["images"].append(image(2, license=None))
    text = json.dumps(value).encode()
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b'"',
        b"null",
        b"NaN",
        b"-",
        b"1e999",
        b"\\ud800",
        b"\xff",
    ]
    rng = random.Random(1)
    path = tmp_path / "a.json"
    good, lines = 0, set()
    for _ in range(200):
        raw = bytearray(text)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randint(0, 6)] = rng.choice(pieces)
        path.write_bytes(raw[: rng.choice([len(raw), rng.randrange(len(raw)) + 1])])
        try:
            good += len(read_coco(path).boxes) > 0
        except MalcliError as error:
            lines.update(str(error).splitlines()[1:])
    assert lines == set()
    assert 0 < good < 200


def test_mutated_records_raise_nothing_but_our_errors(tmp_path):
    odd = [None, True, -1, 0.5, 1e400, 2**100, "", "\ud800", "\0", [], [[]], {}, {"id": 1}]
    rng = random.Random(2)
    path = tmp_path / "a.json"
    base = data([box(n) for n in range(4)])
    for _ in range(200):
        value = copy.deepcopy(base)
        for _ in range(rng.randint(1, 3)):
            target = rng.choice([*value["images"], *value["annotations"], *value["categories"]])
            target[rng.choice([*target, "new", "iscrowd", "segmentation"])] = rng.choice(odd)
        path.write_text(json.dumps(value))
        try:
            table = read_coco(path)
        except DataFormatError:
            continue
        assert (
            json.dumps(records_of(table), sort_keys=True)
            == json.dumps(json.loads(path.read_text())["annotations"], sort_keys=True)
            or records_of(table) == value["annotations"]
        )


def test_a_failed_write_leaves_the_target_and_no_temporary(read, tmp_path):
    table = read(data([box(1)]))
    out = tmp_path / "out.json"
    out.write_text("old")

    def batches():
        yield [box(1)]
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="no space left"):
        write_coco(out, table, batches())
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "out.json"]


def test_output_is_compact_and_repeatable(read, tmp_path):
    table = read(data([box(1), box(2, bbox=[3, 3, 2, 2])]))
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_coco(first, table, [records_of(table)])
    write_coco(second, table, [[record] for record in records_of(table)])
    assert first.read_bytes() == second.read_bytes()
    assert b", " not in first.read_bytes()


RESULT = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [1, 2, 3, 4]}


def test_results_are_read_as_they_are(tmp_path):
    path = tmp_path / "r.json"
    records = [RESULT, {**RESULT, "score": 1, "segmentation": {"size": [1, 1], "counts": "1"}}]
    path.write_text(json.dumps(records))
    assert read_results(path) == records


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "not a list of detections"),
        ([RESULT, 3], r"\[1\]: is not an object"),
        ([{**RESULT, "score": math.nan}], "not a finite number"),
        ([{**RESULT, "score": "1"}], "not a finite number"),
        ([{**RESULT, "image_id": None}], "no id"),
        ([{"image_id": 1, "score": 1, "bbox": []}], "'category_id': missing"),
        ([{"image_id": 1, "category_id": 1, "score": 1}], "neither segmentation nor bbox"),
    ],
)
def test_a_file_that_is_no_results_list_is_refused(tmp_path, value, said):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataFormatError, match=said):
        read_results(path)


def test_a_file_of_videos_is_told_from_one_without_images(tmp_path):
    path = tmp_path / "youtube-vis.json"
    path.write_text(json.dumps({"videos": [{"id": 1, "file_names": []}], "annotations": []}))
    with pytest.raises(DataFormatError, match="but videos; save frames as images"):
        read_coco(path)


@pytest.mark.parametrize(
    "bbox", [["10", "2.5", "5e0", " 4 "], [[10, 2.5, 5, 4]], [["10", 2.5, 5, 4.0]]]
)
def test_numbers_as_text_and_a_list_of_one_box_are_read_and_kept(read, bbox):
    table = read(data([box(1), {**box(2, bbox=bbox), "category_id": "1"}]))
    assert table.boxes["bbox"][1].as_py() == [10, 2.5, 5, 4]
    assert table.boxes["category_id"].to_pylist() == [1, 1]
    assert table.problems.counts == {}
    assert records_of(table)[1] == {**box(2, bbox=bbox), "category_id": "1"}


@pytest.mark.parametrize(
    ("image_id", "given"), [(1, "1"), ("1", 1), (-7, "-7"), (2**40, str(2**40))]
)
def test_an_image_id_of_another_type_is_joined_and_said_once(read, image_id, given):
    table = read(data([box(1, given), box(2, given, bbox=[1, 2, 3, 5])], [image(image_id)]))
    assert statuses(table) == ["ok", "ok"]
    assert table.problems.counts == {"id-of-other-type": 2}
    (said,) = filter(None, table.problems.examples["id-of-other-type"])
    assert said == f"image_id {given!r} and the image's id are text and number, joined"
    assert [one["image_id"] for one in records_of(table)] == [given] * 2


@pytest.mark.parametrize(
    ("extra", "count"),
    [
        ({"attributes": {"rotation": 40.0}}, 1),
        ({"rotation": -12}, 1),
        ({"attributes": {"rotation": 359.5, "occluded": False}}, 1),
        ({"attributes": {"rotation": 0.0}}, 0),
        ({"rotation": 360}, 0),
        ({"rotation": "left"}, 0),
        ({"other": {"rotation": 5}}, 0),
    ],
)
def test_rotated_boxes_are_counted_and_labelled(read, extra, count):
    table = read(data([box(1), {**box(2, bbox=[1, 2, 5, 5]), **extra}]))
    assert table.problems.counts.get("rotated-bbox", 0) == count
    assert statuses(table) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("boxes", "kind"),
    [
        ([[10, 5, 40, 30], [30, 10, 50, 20], [20, 15, 60, 40]], "corners-as-bbox"),
        ([[1, 1, 58, 39], [30, 20, 59, 39], [2, 2, 9, 9], [5, 5, 55, 38]], "corners-as-bbox"),
        ([[10, 5, 20, 20], [30, 10, 20, 20], [5, 5, 10, 10]], None),  # all inside
        ([[10, 5, 60, 30], [30, 10, 20, 20], [20, 15, 60, 40]], None),  # w < x: no corner
        ([[10, 5, 60, 30]], None),  # one says nothing
        ([[0.1, 0.2, 0.5, 0.25]], "relative-bbox"),
        ([[0, 0, 1, 1], [0.5, 0.5, 0.25, 0.5]], "relative-bbox"),
        ([[0, 0, 1, 1]], None),  # a pixel
        ([[0.1, 0.2, 0.5, 0.25], [3, 4, 5, 6]], None),
    ],
)
def test_boxes_that_look_like_corners_or_shares_are_said(read, boxes, kind):
    """In an image of 60 x 40."""
    table = read(data([box(n, bbox=bbox) for n, bbox in enumerate(boxes, 1)]))
    assert [*table.problems.counts] == ([kind] if kind else [])
    assert set(statuses(table)) == {"ok"}


def test_a_panoptic_file_is_named(read):
    record = {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 5, "category_id": 1}]}
    with pytest.raises(DataFormatError, match=r"panoptic.*instances_"):
        read(data([record]))
