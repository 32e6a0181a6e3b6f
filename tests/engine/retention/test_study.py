import json
from dataclasses import fields, replace

import pytest

from malcli.config.retention import RetentionConfig
from malcli.engine.retention.study import (
    job_of,
    open_study,
    prepare_study,
    read_training,
    read_validation,
)
from malcli.errors import DataFormatError, OutputError
from malcli.geometry.rle import area


def rewrite(source, target, change):
    data = json.loads(source.read_text("utf-8"))
    change(data["annotations"])
    target.write_text(json.dumps(data), "utf-8")
    return target


def test_what_either_side_lacks_is_left_out_of_both_and_counted(study_data, tmp_path):
    def human(annotations):
        annotations[0]["iscrowd"] = 1
        annotations[1]["bbox"] = [3.0, 3.0, 0.5, 20.0]
        annotations[2]["category_id"] = 99

    def made(annotations):
        annotations[1]["bbox"] = [3.0, 3.0, 0.5, 20.0]
        annotations[2]["category_id"] = 99
        del annotations[3]
        del annotations[3]["segmentation"]
        annotations[3]["malcli_status"] = "skipped:bad-image"
        annotations[4] |= {"segmentation": {"size": [64, 64], "counts": "PP4"}, "area": 0}
        annotations.reverse()

    config = study_data.config(
        tmp_path / "out",
        train=rewrite(study_data.human, tmp_path / "human.json", human),
        masks=rewrite(study_data.filled, tmp_path / "made.json", made),
    )
    side = read_training(config)
    total = len(json.loads(study_data.human.read_text("utf-8"))["annotations"])
    left = {"crowd": 1, "bad_box": 1, "unknown_category": 1, "missing": 1, "without_mask": 2}
    assert {key: side.counts[key] for key in left} == left
    assert side.counts["instances"] == total - 1
    assert side.counts["used"] == total - 6 == len(side.human.rles) == len(side.malcli.rles)


def test_both_students_share_boxes_and_labels_and_each_mask_is_its_own(study_data, tmp_path):
    def shuffled(annotations):
        annotations.reverse()

    masks = rewrite(study_data.filled, tmp_path / "masks.json", shuffled)
    side = read_training(study_data.config(tmp_path / "out", masks=masks))
    assert side.human.image is side.malcli.image
    assert side.human.xyxy is side.malcli.xyxy
    assert set(side.human.label.tolist()) == {1}
    assert list(side.categories) == [7]
    for xyxy, one, other in zip(side.human.xyxy, side.human.rles, side.malcli.rles, strict=True):
        x0, y0, x1, y1 = xyxy
        assert area(other) == (x1 - x0) * (y1 - y0) > area(one)


def test_a_box_that_leaves_the_image_is_clipped(study_data, tmp_path):
    def wide(annotations):
        for one in annotations:
            one["bbox"] = [-10.0, -5.0, 200.0, 100.0]

    config = study_data.config(
        tmp_path / "out",
        train=rewrite(study_data.human, tmp_path / "human.json", wide),
        masks=rewrite(study_data.filled, tmp_path / "filled.json", wide),
    )
    assert read_training(config).human.xyxy.tolist()[0] == [0, 0, 64, 64]


def test_images_that_are_not_there_are_left_out_of_both(study_data, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(study_data.images.iterdir())[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    side = read_training(study_data.config(tmp_path / "out", images=folder))
    assert side.counts["bad_image"] > 0
    assert side.counts["images"] == 5


def test_another_numbering_of_categories_in_val_is_refused(study_data, tmp_path):
    data = json.loads(study_data.human.read_text("utf-8"))
    data["categories"][0]["name"] = "other"
    val = tmp_path / "val.json"
    val.write_text(json.dumps(data), "utf-8")
    with pytest.raises(DataFormatError, match="category 7 is 'other' here and 'thing' in --train"):
        read_validation(study_data.config(tmp_path / "out", val=val), {7: "thing"})


def test_a_list_of_detections_is_no_file_of_masks(study_data, tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]", "utf-8")
    with pytest.raises(DataFormatError, match="list of detections"):
        read_training(study_data.config(tmp_path / "out", masks=path))


def test_the_job_is_what_changes_the_result_and_not_the_machine(study_data, tmp_path):
    config = study_data.config
    job = job_of(config(tmp_path / "out"))
    assert job == job_of(config(tmp_path / "other", num_processes=4, workers=2, device="auto"))
    assert job != job_of(config(tmp_path / "out", seed=1))
    assert job != job_of(config(tmp_path / "out", masks=study_data.human))


# Settings that change no student: where things are, what the machine does, what to do in --out.
FREE = {
    "images", "val_images", "out", "overwrite", "resume", "workers", "device", "num_processes",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FREE | {item.name for item in fields(RetentionConfig)}))
def test_every_setting_changes_the_study_or_is_free(study_data, tmp_path, another, name):
    config = study_data.config(tmp_path / "out")
    value = another(config, name)
    if name in ("train", "masks", "val"):
        value = tmp_path / "changed.json"
        value.write_bytes(getattr(config, name).read_bytes() + b"\n")
    assert (job_of(replace(config, **{name: value})) == job_of(config)) == (name in FREE)


@pytest.mark.parametrize("name", ["train", "masks", "val"])
def test_an_input_that_moved_is_the_same_study(study_data, tmp_path, name):
    config = study_data.config(tmp_path / "out")
    moved = tmp_path / "moved.json"
    moved.write_bytes(getattr(config, name).read_bytes())
    assert job_of(replace(config, **{name: moved})) == job_of(config)


def test_a_folder_of_something_else_is_never_replaced(study_data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("keep")
    config = study_data.config(tmp_path / "mine", overwrite=True)
    with pytest.raises(OutputError, match="not a study"):
        open_study(config, job_of(config))
    assert (tmp_path / "mine/thesis.txt").read_text() == "keep"


def test_a_folder_that_holds_an_input_is_refused(study_data):
    config = study_data.config(study_data.human.parent, overwrite=True)
    with pytest.raises(OutputError, match=r"holds the input .*human\.json"):
        open_study(config, job_of(config))


def test_overwriting_removes_the_other_study_once_all_is_known_to_be_good(study_data, tmp_path):
    out = tmp_path / "out"
    old = study_data.config(out, seed=1)
    prepare_study(old, job_of(old), {"precision": "fp32", "processes": 1}, main=True)
    (out / "human.json").write_text("[]")
    new = study_data.config(out, overwrite=True)
    assert open_study(new, job_of(new)) is None
    assert (out / "human.json").exists()
    prepare_study(new, job_of(new), {"precision": "fp32", "processes": 2}, main=True)
    assert not (out / "human.json").exists()
    assert json.loads((out / "job.json").read_text("utf-8"))["job"] == job_of(new)


def test_a_study_goes_on_with_what_its_first_start_decided(study_data, tmp_path):
    config = study_data.config(tmp_path / "out")
    prepare_study(config, job_of(config), {"precision": "fp32", "processes": 1}, main=True)
    with pytest.raises(OutputError, match="processes was 1, now 2"):
        prepare_study(config, job_of(config), {"precision": "fp32", "processes": 2}, main=True)


@pytest.mark.parametrize("content", ["{", "[]", "\x00", '{"job": 3}'])
def test_a_damaged_job_file_is_no_traceback(study_data, tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    config = study_data.config(tmp_path)
    with pytest.raises(OutputError):
        open_study(config, job_of(config))
