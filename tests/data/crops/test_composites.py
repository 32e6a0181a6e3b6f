"""Composites of drawn scenes: every object has one colour, so pixels tell where they came from."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from malcli.data.crops.composites import Composites
from malcli.data.formats.open import open_boxes
from malcli.data.images.find import ImageFolder
from malcli.errors import DataFormatError
from malcli.geometry.rle import decode_rle, rle_box
from malcli.records import BEHIND, PASTED

H, W = 120, 160
GROUND = 40
RED, GREEN = (250, 0, 0), (0, 250, 0)
DISC = (30, 20, 60, 60)  # xywh
TALL = (80, 30, 40, 80)


def ellipse(xywh):
    x, y, w, h = xywh
    rows, columns = np.mgrid[:H, :W] + 0.5
    return ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1


def uncompressed(mask):
    runs, value, count = [], 0, 0
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            runs.append(count)
            value, count = pixel, 0
        count += 1
    return {"size": [H, W], "counts": [*runs, count]}


def write(folder, changes=(), drop=()):
    """Two images with an object each, and the labels of the objects."""
    records, images = [], []
    for number, (colour, box) in enumerate([(RED, DISC), (GREEN, TALL)]):
        pixels = np.full((H, W, 3), GROUND, np.uint8)
        mask = ellipse(box)
        pixels[mask] = colour
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": H, "width": W})
        records.append(
            {
                "id": 10 + number,
                "image_id": number,
                "category_id": 1,
                "bbox": list(box),
                "segmentation": uncompressed(mask),
                "malcli_score": 0.8,
            }
        )
    for place, change in changes:
        records[place] |= change
    for place, key in drop:
        del records[place][key]
    header = {"images": images, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "masks.json").write_text(json.dumps(header | {"annotations": records}))
    boxes = [{k: v for k, v in one.items() if k != "segmentation"} for one in records]
    (folder / "boxes.json").write_text(json.dumps(header | {"annotations": boxes}))


def composites(folder, share=1.0):
    boxes = open_boxes(folder / "boxes.json", None, None, with_masks=False)
    masks = open_boxes(folder / "masks.json")
    return Composites(boxes, masks, ImageFolder(folder, 2, 2), share, 10**9)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write(folder)
    image = np.asarray(Image.open(folder / "0.png"))
    return composites(folder), image


def drawn(made, seed):
    """The red disc's box with the green object pasted, or itself."""
    paster, image = made
    return paster.draw(np.random.default_rng(seed), 0, image, np.array([30.0, 20.0, 90.0, 80.0]))


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_pasted_pixels_are_the_objects_and_the_others_stay(made, seed):
    before = made[1].copy()
    found = drawn(made, seed)
    assert np.array_equal(made[1], before)
    if found is None:
        return
    untouched = found.pasted == 0
    assert np.array_equal(found.image[untouched], before[untouched])
    # Inside the pasted object only its own colour is left, at its soft border a mixture.
    whole = found.pasted == 255
    assert (np.abs(found.image[whole].astype(int) - GREEN).max(axis=1, initial=0) <= 60).all()
    assert np.median(found.image[whole][:, 1]) > 240
    assert (found.pasted > 127).sum() >= 60


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_the_box_is_that_of_what_is_to_be_found(made, seed):
    found = drawn(made, seed)
    if found is None:
        return
    seen = found.pasted > 127.5
    if found.kind == PASTED:
        rows, columns = np.nonzero(seen)
        wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.box.tolist() == wanted
        return
    assert found.kind == BEHIND
    left = ellipse(DISC) & ~seen
    assert left.sum() >= 0.35 * ellipse(DISC).sum()
    rows, columns = np.nonzero(left)
    tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(found.box - tight).max() <= 1.5


def test_both_kinds_come_and_the_same_chance_gives_the_same(made):
    kinds = [found.kind for seed in range(40) if (found := drawn(made, seed))]
    assert len(kinds) > 25
    assert {BEHIND, PASTED} == set(kinds)
    one, again = drawn(made, 3), drawn(made, 3)
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.pasted, again.pasted)


def test_the_share_says_how_many_samples_are_composites(tmp_path):
    write(tmp_path)
    image = np.asarray(Image.open(tmp_path / "0.png"))
    box = np.array([30.0, 20.0, 90.0, 80.0])
    for share in (0.0, 0.4):
        paster = composites(tmp_path, share)
        found = [paster.draw(np.random.default_rng(seed), 0, image, box) for seed in range(200)]
        count = sum(one is not None for one in found)
        assert 0.5 * share * 200 <= count <= 1.2 * share * 200


def test_only_the_surer_masks_are_cut_out_but_all_tell_what_is_left(tmp_path):
    write(tmp_path, changes=[(0, {"malcli_score": 0.2})])
    paster = composites(tmp_path)
    assert paster.donors.tolist() == [1]
    image = np.asarray(Image.open(tmp_path / "0.png"))
    box = np.array([30.0, 20.0, 90.0, 80.0])
    found = [paster.draw(np.random.default_rng(seed), 0, image, box) for seed in range(30)]
    assert BEHIND in {one.kind for one in found if one}
    # The second box could only get itself.
    other = np.asarray(Image.open(tmp_path / "1.png"))
    box = np.array([80.0, 30.0, 120.0, 110.0])
    assert all(paster.draw(np.random.default_rng(s), 1, other, box) is None for s in range(20))


def test_a_box_without_mask_gets_objects_in_front_as_targets_only(tmp_path):
    write(tmp_path, drop=[(0, "segmentation")])
    paster = composites(tmp_path)
    image = np.asarray(Image.open(tmp_path / "0.png"))
    box = np.array([30.0, 20.0, 90.0, 80.0])
    found = [paster.draw(np.random.default_rng(seed), 0, image, box) for seed in range(30)]
    assert {one.kind for one in found if one} == {PASTED}


def test_polygons_are_masks_too(tmp_path):
    square = [[30, 20, 90, 20, 90, 80, 30, 80]]
    write(tmp_path, changes=[(0, {"segmentation": square})])
    assert rle_box(composites(tmp_path).masks[0]) == (30, 20, 60, 60)
    assert decode_rle(composites(tmp_path).masks[0]).sum() == 3600


def test_an_object_whose_image_cannot_be_read_is_not_pasted(tmp_path):
    write(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    paster = composites(tmp_path)
    image = np.asarray(Image.open(tmp_path / "0.png"))
    box = np.array([30.0, 20.0, 90.0, 80.0])
    assert all(paster.draw(np.random.default_rng(s), 0, image, box) is None for s in range(20))


@pytest.mark.parametrize(
    ("drop", "changes", "said"),
    [
        ([(0, "segmentation"), (1, "segmentation")], [], "no mask to paste"),
        ([(1, "segmentation")], [(0, {"segmentation": [[0, 0, 9, 0, 9, 9]]})], "30 pixels"),
        ([], [(0, {"segmentation": {"size": [1, 1], "counts": [9]}}), (1, {"segmentation": 3})],
         "no mask to paste"),
    ],
)  # fmt: skip
def test_masks_that_cannot_be_pasted_are_refused(tmp_path, drop, changes, said):
    write(tmp_path, changes, drop)
    with pytest.raises(DataFormatError, match=said):
        composites(tmp_path)


def test_crowds_and_boxes_of_unknown_images_are_not_cut_out(tmp_path):
    write(tmp_path, changes=[(0, {"iscrowd": 1})])
    assert composites(tmp_path).donors.tolist() == [1]
    write(tmp_path, changes=[(1, {"image_id": 99})])
    assert composites(tmp_path).donors.tolist() == [0]


def test_ids_of_text_and_of_numbers_are_the_same_ids(tmp_path):
    write(tmp_path)
    boxes = json.loads((tmp_path / "boxes.json").read_text())
    boxes["annotations"].append(boxes["annotations"][0] | {"id": "a7"})
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    assert composites(tmp_path).mask_of.tolist() == [0, 1, -1]


def test_masks_of_other_boxes_are_refused(tmp_path):
    write(tmp_path)
    text = (tmp_path / "boxes.json").read_text().replace('"id": 10', '"id": 90')
    (tmp_path / "boxes.json").write_text(text.replace('"id": 11', '"id": 91'))
    with pytest.raises(DataFormatError, match="none of its masks has the id"):
        composites(tmp_path)


def test_a_side_that_nothing_covers_keeps_the_given_box_s_side(made):
    paster, image = made
    given_box, whole = np.array([29.4, 19.4, 90.6, 80.6]), np.array([30, 20, 90, 80])
    kept = 0
    for seed in range(60):
        found = paster.draw(np.random.default_rng(seed), 0, image, given_box)
        if found and found.kind == BEHIND:
            rows, columns = np.nonzero(ellipse(DISC) & (found.pasted <= 127.5))
            tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            same = tight == whole
            assert found.box[same].tolist() == given_box[same].tolist()
            kept += same.sum()
    assert kept > 10


def test_pasted_objects_are_mirrored_in_about_half_of_the_cases(tmp_path):
    write(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "1.png")).copy()
    right = ellipse(TALL) & (np.arange(W) >= TALL[0] + TALL[2] / 2)
    pixels[right] = (0, 0, 250)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    made = composites(tmp_path), np.asarray(Image.open(tmp_path / "0.png"))
    turned = []
    for seed in range(40):
        if found := drawn(made, seed):
            green, blue = (np.nonzero(found.image[..., band] > 200)[1] for band in (1, 2))
            if len(green) and len(blue):
                turned.append(green.mean() > blue.mean())
    assert len(turned) > 20
    assert 0.2 < np.mean(turned) < 0.8
