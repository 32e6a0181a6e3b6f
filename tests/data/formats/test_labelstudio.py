import json

import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from malcli.config.convert import ConvertConfig
from malcli.data.formats.open import open_boxes, recognise
from malcli.engine.convert.command import convert
from malcli.errors import DataFormatError
from malcli.records import records_of, to_records
from malcli.version import __version__

SIZE = {"original_width": 160, "original_height": 120}


@pytest.fixture
def write(tmp_path):
    def write(*tasks):
        file = tmp_path / "export.json"
        file.write_text(json.dumps(tasks))
        return file

    return write


def rectangle(x=12, y=15, width=33, height=60, label="ball", **more):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
    result = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    result["value"] = value | {"rectanglelabels": [label]} | more.pop("value", {})
    return result | {"image_rotation": 0} | SIZE | more


def polygon(*points, label="ball", **more):
    value = {"points": list(map(list, points)), "closed": True, "polygonlabels": [label]}
    result = {"from_name": "polygon", "to_name": "image", "type": "polygonlabels"}
    return result | {"image_rotation": 0, "value": value} | SIZE | more


def task(*results, url="/data/upload/1/90fbb0c7-a.jpg", **more):
    return {"id": 1, "data": {"image": url}, "annotations": [{"id": 1, "result": results}]} | more


def as_tasks(src, dst):
    return convert(ConvertConfig(src=src, dst=dst, to="labelstudio"))


def test_percent_become_pixels_of_the_original_size(write):
    file = write(task(rectangle(id="x1"), rectangle(0, 0, 100, 100, label="a")), task(url="b.jpg"))
    assert recognise(file) == "labelstudio"
    table = open_boxes(file)
    own = {"from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    assert records_of(table) == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [19.2, 18, 52.8, 72],
         "labelstudio": {"id": "x1"} | own},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 160, 120], "labelstudio": own},
    ]  # fmt: skip
    assert to_records(table.images) == [
        {"id": 1, "file_name": "90fbb0c7-a.jpg", "height": 120, "width": 160,
         "data": {"image": "/data/upload/1/90fbb0c7-a.jpg"}, "labelstudio": {"id": 1}},
        {"id": 2, "file_name": "b.jpg", "data": {"image": "b.jpg"}, "labelstudio": {"id": 1}},
    ]  # fmt: skip


def test_the_min_form_says_the_same(write):
    labels = [rectangle()["value"] | SIZE, rectangle(0, 0, 50, 50, label="a")["value"] | SIZE]
    file = write({"image": "/data/upload/1/a.jpg", "id": 7, "label": labels, "annotator": 1})
    assert recognise(file) == "labelstudio"
    table = open_boxes(file)
    assert [each["bbox"] for each in records_of(table)] == [[19.2, 18, 52.8, 72], [0, 0, 80, 60]]
    image = to_records(table.images)[0]
    assert image["file_name"] == "a.jpg"
    assert image["data"] == {"image": "/data/upload/1/a.jpg"}
    assert image["labelstudio"] == {"id": 7, "annotator": 1}
    assert table.header["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "ball"}]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/upload/1/90fbb0c7-a.jpg", "a.jpg"),
        ("/data/upload/90fbb0c7-new%20b.jpg", "new b.jpg"),
        ("/data/local-files/?d=sub%2Fc.jpg", "sub/c.jpg"),
        ("/data/local-files/?d=disk/sub/a.jpg", "a.jpg"),
        ("s3://bucket/x/a.jpg", "a.jpg"),
        ("https://host/x/a.jpg?token=1", "a.jpg"),
        ("https://host/x/gone.jpg?token=1", "gone.jpg"),
        ("../outside.jpg", "outside.jpg"),
        ("data:image/png;base64,AAAA", ""),
    ],
)
def test_a_url_leads_to_the_photograph_in_the_folder(write, tmp_path, url, name):
    for place in ("a.jpg", "new b.jpg", "sub/c.jpg"):
        (tmp_path / "images" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 120)).save(tmp_path / "images" / place)
    Image.new("RGB", (160, 120)).save(tmp_path / "outside.jpg")
    table = open_boxes(write(task(rectangle(), url=url)))
    assert table.images["file_name"].to_pylist() == [name]
    assert table.path == tmp_path / "images"


def test_what_is_no_upright_box_is_counted_by_name_and_keeps_its_place(write):
    brush = {"format": "rle", "rle": [0, 1], "brushlabels": ["ball"]}
    ellipse = {"x": 5, "y": 5, "radiusX": 2, "radiusY": 2, "rotation": 0, "ellipselabels": ["a"]}
    point = {"x": 5, "y": 5, "width": 0.5, "keypointlabels": ["a"]}
    results = [
        rectangle(value={"rotation": 40}),
        rectangle(image_rotation=90),
        {"type": "brushlabels", "value": brush} | SIZE,
        {"type": "ellipselabels", "value": ellipse} | SIZE,
        {"type": "keypointlabels", "value": point} | SIZE,
        polygon((1, 2), (3, 4)),
        rectangle(),
    ]
    table = open_boxes(write(task(*results)))
    assert table.boxes["status"].to_pylist() == ["skipped:bad-box"] * 6 + ["ok"]
    assert table.problems.counts["rotated-bbox"] == 2
    said = "a rectanglelabels of '90fbb0c7-a.jpg' is rotated by"
    assert table.problems.examples["rotated-bbox"] == [f"{said} 40", f"{said} 90"]
    assert table.problems.counts["no-box"] == 4
    assert records_of(table)[2]["labelstudio"]["value"] == brush


def test_labels_of_their_own_and_answers_join_their_region(write):
    plain = rectangle(id="r", type="rectangle")
    del plain["value"]["rectanglelabels"]
    labels = rectangle(id="r", type="labels")
    labels["value"] = {"labels": ["ball"]} | plain["value"]
    answer = {"id": "r", "type": "choices", "from_name": "q", "value": {"choices": ["yes"]}}
    whole = {"id": "t", "type": "choices", "from_name": "all", "value": {"choices": ["no"]}}
    table = open_boxes(write(task(plain, labels, answer, whole)))
    (record,) = records_of(table)
    assert table.header["categories"] == [{"id": 1, "name": "ball"}]
    assert record["category_id"] == 1
    assert record["labelstudio"]["results"] == [answer]
    assert to_records(table.images)[0]["labelstudio"] == {"id": 1, "results": [whole]}


def test_cancelled_annotations_are_left_and_predictions_stand_in(write):
    cancelled = {"was_cancelled": True, "result": [rectangle()]}
    good = {"result": [rectangle(label="a")]}
    old, new = {"result": [rectangle(label="old")]}, {"result": [rectangle(score=0.25)]}
    table = open_boxes(
        write(
            task(annotations=[cancelled, good], predictions=[new]),
            task(annotations=[cancelled], predictions=[old, new]),
            task(annotations=[good, good]),
        )
    )
    assert [each["image_id"] for each in records_of(table)] == [1, 2, 3, 3]
    assert records_of(table)[1]["score"] == 0.25
    assert table.header["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "ball"}]
    assert table.problems.counts["cancelled"] == 2
    assert table.problems.counts["several-annotations"] == 1


def test_a_size_that_no_result_says_is_the_photograph_s(write, tmp_path):
    Image.new("RGB", (160, 120)).save(tmp_path / "a.jpg")
    result = rectangle()
    del result["original_width"], result["original_height"]
    table = open_boxes(write(task(result, url="a.jpg"), task(url="a.jpg")))
    assert records_of(table)[0]["bbox"] == [19.2, 18, 52.8, 72]
    assert table.images["width"].to_pylist() == [160, 160]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "is no list"),
        ("[1]", "[0]: is no task"),
        ('[{"data": {}, "annotations": 5}]', "[0], key 'annotations'"),
        ('[{"data": {}, "annotations": [{"result": [1]}]}]', "[0], key 'annotations'"),
        ('[{"data": {}', "ends too early"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataFormatError, match=r"x\.json: |x\.json, ") as caught:
        open_boxes(tmp_path / "x.json", "labelstudio")
    assert said in str(caught.value)


def test_other_lists_are_not_taken(tmp_path):
    (tmp_path / "x.json").write_text('[{"image_id": 1, "bbox": [1, 1, 2, 2], "score": 1}]')
    assert recognise(tmp_path / "x.json") == "coco"


def test_what_is_written_comes_back_with_its_ids(write, tmp_path):
    brush = {"format": "rle", "rle": [0, 1], "brushlabels": ["ball"]}
    texts = {"meta": {"text": ["blurred"]}}
    file = write(
        task(
            rectangle(id="r1", **texts),
            polygon((10, 10), (20, 10), (20, 30.5), label="a", id="p1"),
            polygon(id="b", type="brushlabels") | {"value": brush},
            rectangle(value={"rectanglelabels": ["a", "ball"]}),
        )
    )
    result = as_tasks(file, tmp_path / "tasks.json")
    assert (result.left_out, result.lost) == (0, {"other keys of images": 1})
    assert recognise(tmp_path / "tasks.json") == "labelstudio"
    old, new = open_boxes(file), open_boxes(tmp_path / "tasks.json")
    assert records_of(new) == records_of(old)
    assert records_of(old)[3]["labelstudio"]["labels"] == ["a", "ball"]
    assert new.header == old.header
    image = to_records(old.images)[0]
    assert to_records(new.images)[0] == {key: image[key] for key in image if key != "labelstudio"}


def test_masks_are_predictions_that_label_studio_imports(tmp_path):
    mask = {"size": [120, 160], "counts": coco_mask.frPyObjects(
        [[1, 1, 9, 1, 9, 9, 1, 9], [20, 20, 29, 20, 29, 29]], 120, 160)}  # fmt: skip
    rle = coco_mask.merge(mask["counts"])
    rle["counts"] = rle["counts"].decode()
    ids = {"image_id": 4, "category_id": 2}
    records = [
        {"id": 70, **ids, "bbox": [1, 1, 28, 28], "segmentation": rle,
         "malcli_score": 0.5, "malcli_status": "ok"},
        {"id": 5, **ids, "bbox": [16, 12, 32, 24], "iscrowd": 1, "malcli_score": 0.25},
    ]  # fmt: skip
    images = [{"id": 4, "file_name": "sub/a b.jpg", "height": 120, "width": 160},
              {"id": 5, "file_name": "b.jpg", "height": 120, "width": 160}]  # fmt: skip
    value = {"images": images, "categories": [{"id": 2, "name": "cat"}], "annotations": records}
    (tmp_path / "masks.json").write_text(json.dumps(value))
    as_tasks(tmp_path / "masks.json", tmp_path / "tasks.json")
    first, second = json.loads((tmp_path / "tasks.json").read_text())
    assert first["data"]["image"] == "/data/local-files/?d=sub/a%20b.jpg"
    assert second["predictions"] == []
    (prediction,) = first["predictions"]
    assert prediction["model_version"] == f"malcli-{__version__}"
    assert prediction["score"] == 0.375
    results = prediction["result"]
    assert [each["type"] for each in results] == ["polygonlabels"] * 2 + ["rectanglelabels"]
    assert len({each["id"] for each in results}) == 3
    assert results[2]["value"] == {
        "x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cat"],
    }  # fmt: skip
    for result in results[:2]:
        assert result["value"]["polygonlabels"] == ["cat"]
        assert result["score"] == 0.5
        assert result["original_width"] == 160
        assert all(0 <= side <= 100 for point in result["value"]["points"] for side in point)
    for each in results:  # accepting a prediction gives regions new ids, and leaves their text
        each["id"] = f"new{results.index(each)}"
        each.pop("score")
    edited = {"data": first["data"], "annotations": [{"result": results}], "predictions": []}
    (tmp_path / "edited.json").write_text(json.dumps([edited, second]))
    back = open_boxes(tmp_path / "edited.json")
    assert back.images["file_name"].to_pylist() == ["sub/a b.jpg", "b.jpg"]
    one, two = records_of(back)
    assert (one["id"], one["malcli_score"], one["malcli_status"]) == (70, 0.5, "ok")
    again = coco_mask.merge(coco_mask.frPyObjects(one["segmentation"], 120, 160))
    assert (coco_mask.decode(again) == coco_mask.decode(rle)).all()
    assert (two["id"], two["bbox"], two["iscrowd"]) == (5, [16, 12, 32, 24], 1)


def test_a_box_that_got_a_mask_is_written_as_polygons_of_their_own(write, tmp_path):
    convert(ConvertConfig(src=write(task(rectangle(id="r"))), dst=tmp_path / "masks.json"))
    value = json.loads((tmp_path / "masks.json").read_text())
    parts = [[20, 20, 30, 20, 30, 30], [40, 40, 50, 40, 50, 50]]
    value["annotations"][0]["segmentation"] = parts
    (tmp_path / "masks.json").write_text(json.dumps(value))
    as_tasks(tmp_path / "masks.json", tmp_path / "tasks.json")
    results = json.loads((tmp_path / "tasks.json").read_text())[0]["predictions"][0]["result"]
    assert [(each["type"], each["from_name"]) for each in results] == [
        ("polygonlabels", "polygon")
    ] * 2
    assert [each["id"] for each in results] == ["malcli-1-1/2", "malcli-1-2/2"]
    (record,) = records_of(open_boxes(tmp_path / "tasks.json"))
    assert (record["id"], record["segmentation"]) == (1, parts)


def test_polygons_of_one_region_keep_ids_of_their_own(write, tmp_path):
    triangle = polygon((10, 10), (20, 10), (20, 30), id="p")
    convert(ConvertConfig(src=write(task(triangle)), dst=tmp_path / "masks.json"))
    value = json.loads((tmp_path / "masks.json").read_text())
    value["annotations"][0]["segmentation"].append([1, 1, 5, 1, 5, 5])
    (tmp_path / "masks.json").write_text(json.dumps(value))
    as_tasks(tmp_path / "masks.json", tmp_path / "tasks.json")
    (record,) = records_of(open_boxes(tmp_path / "tasks.json"))
    assert len(record["segmentation"]) == 2
