"""Masks as run lengths, against pycocotools on whole images and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from malcli.geometry import rle as rle_module
from malcli.geometry.rle import (
    RleError,
    area,
    check_rle,
    decode_rle,
    decode_windows,
    empty_rle,
    encode_crop,
    find_good,
    from_segmentation,
    paired_iou,
    rle_box,
    run_lengths,
)


@st.composite
def placed_masks(draw):
    """An image's size, a mask inside it and its place; every edge and corner is reached."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rows, columns = draw(st.integers(1, height)), draw(st.integers(1, width))
    y = draw(st.sampled_from([0, height - rows, (height - rows) // 2]))
    x = draw(st.sampled_from([0, width - columns, (width - columns) // 2]))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return (height, width), rng.random((rows, columns)) < density, x, y


def whole(image_hw, mask, x, y):
    image = np.zeros(image_hw, dtype=np.uint8)
    image[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return image


def of(image):
    encoded = coco_mask.encode(np.asfortranarray(image, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@settings(max_examples=300, deadline=None)
@given(placed_masks())
def test_encoding_a_crop_equals_encoding_the_whole_image(case):
    image_hw, mask, x, y = case
    assert encode_crop(mask, x, y, image_hw) == of(whole(image_hw, mask, x, y))


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 7), (7, 1), (480, 640), (3000, 4000)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_one_pixel_in_each_corner_is_encoded_as_in_the_whole_image(image_hw, corner):
    x, y = corner[1] * (image_hw[1] - 1), corner[0] * (image_hw[0] - 1)
    mask = np.ones((1, 1), dtype=bool)
    assert encode_crop(mask, x, y, image_hw) == of(whole(image_hw, mask, x, y))


def test_a_full_image_and_an_empty_one_are_encoded_as_by_pycocotools():
    full = np.ones((33, 47), dtype=np.uint8)
    assert encode_crop(full, 0, 0, (33, 47)) == of(full)
    assert encode_crop(0 * full, 0, 0, (33, 47)) == of(0 * full) == empty_rle((33, 47))


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (0, -1), (7, 0), (0, 5)])
def test_a_mask_that_leaves_the_image_is_refused(x, y):
    with pytest.raises(ValueError, match="leaves"):
        encode_crop(np.ones((4, 4), dtype=bool), x, y, (8, 10))


@settings(max_examples=100, deadline=None)
@given(placed_masks())
def test_decoding_inverts_encoding_and_windows_are_its_parts(case):
    image_hw, mask, x, y = case
    rle = encode_crop(mask, x, y, image_hw)
    check_rle(rle, image_hw)
    image = whole(image_hw, mask, x, y)
    assert np.array_equal(decode_rle(rle), image)
    windows = [(x, y, x + mask.shape[1], y + mask.shape[0]), (0, 0, image_hw[1], image_hw[0])]
    inside, everything = decode_windows([rle, rle], windows)
    assert np.array_equal(inside, mask)
    assert np.array_equal(everything, image)


@settings(max_examples=100, deadline=None)
@given(placed_masks())
def test_run_lengths_equal_a_walk_over_the_pixels(case):
    image_hw, mask, x, y = case
    lengths, value = [0], 0
    for pixel in whole(image_hw, mask, x, y).flatten(order="F"):
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    assert run_lengths(encode_crop(mask, x, y, image_hw)["counts"]).tolist() == lengths


@settings(max_examples=100, deadline=None)
@given(placed_masks())
def test_area_and_box_equal_counting_pixels(case):
    image_hw, mask, x, y = case
    rle = encode_crop(mask, x, y, image_hw)
    rows, columns = np.nonzero(whole(image_hw, mask, x, y))
    assert area(rle) == len(rows)
    if len(rows):
        left, top = columns.min(), rows.min()
        right, bottom = columns.max() + 1, rows.max() + 1
        assert rle_box(rle) == (left, top, right - left, bottom - top)
    else:
        assert rle_box(rle)[2:] == (0, 0)


@pytest.mark.parametrize(
    "counts",
    ["", "garbage!", "1", "\x00", "é", "zzz", "o", "P", "0" * 30, "ooooooooooooo0", "\ud800"],
)
def test_garbage_counts_are_refused_before_pycocotools_sees_them(counts, monkeypatch):
    def never(*args):
        raise AssertionError("pycocotools was called")

    monkeypatch.setattr(rle_module.coco_mask, "decode", never)
    with pytest.raises(RleError):
        decode_rle({"size": [8, 10], "counts": counts})


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="ascii"), max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_any_string_is_either_refused_or_decoded_to_its_own_encoding(counts, height, width):
    rle = {"size": [height, width], "counts": counts}
    try:
        image = decode_rle(rle)
    except RleError:
        return
    assert image.shape == (height, width)
    assert area(rle) == image.sum()


@pytest.mark.parametrize(
    "rle",
    [
        None,
        "text",
        {},
        {"size": [8, 10]},
        {"size": [10, 8], "counts": of(np.zeros((8, 10)))["counts"]},
        {"size": "8,10", "counts": "0"},
        {"size": [8, 10], "counts": [80]},
        {"size": [8, 10], "counts": None},
    ],
)
def test_what_is_no_compressed_mask_of_this_image_is_refused(rle):
    with pytest.raises(RleError):
        check_rle(rle, (8, 10))


def test_checking_many_finds_the_good_ones_and_only_those():
    good = encode_crop(np.ones((2, 3), dtype=bool), 4, 1, (8, 10))
    rles = [good] * 3000
    rles[7], rles[1500], rles[2999] = {"size": [8, 10], "counts": "x"}, None, empty_rle((8, 9))
    assert set(range(3000)) - find_good(rles, [(8, 10)] * 3000) == {7, 1500, 2999}
    assert find_good([], []) == set()


POLYGON = [2.0, 1.0, 8.0, 1.0, 8.0, 6.0, 2.0, 6.0]


def test_the_four_forms_of_one_mask_are_the_same_rle():
    merged = of(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([POLYGON], 8, 10))))
    lengths = run_lengths(merged["counts"]).tolist()
    forms = [
        [POLYGON],
        merged,
        {"size": [8, 10], "counts": merged["counts"].encode()},
        {"size": [8, 10], "counts": lengths},
    ]
    assert [from_segmentation(form, (8, 10)) for form in forms] == [merged] * 4
    assert area(merged) == 30


def test_the_parts_of_a_polygon_mask_are_united():
    left, right = [0, 0, 3, 0, 3, 3, 0, 3], [5, 4, 9, 4, 9, 8, 5, 8]
    image = decode_rle(from_segmentation([left, right], (8, 10)))
    assert image[:3, :3].all()
    assert image[4:, 5:9].all()
    assert image.sum() == 9 + 16


@pytest.mark.parametrize(
    "more",
    [
        [[]],
        [[5.5, 6.5]],
        [[5, 6, 7, 7.5]],  # two points
        [[5, 6, 7, 7, 8]],  # and a half
        [[], [0, 0], [9, 7, 1, 0]],
        [[0, 0, 3, 0, 3, 3, 0.5]],  # a last x without its y
    ],
)
def test_a_degenerate_part_takes_no_other_part_away(more):
    expected = coco_mask.merge(coco_mask.frPyObjects([POLYGON, *more], 8, 10))
    assert from_segmentation([POLYGON, *more], (8, 10)) == {
        "size": [8, 10],
        "counts": expected["counts"].decode(),
    }
    alone = from_segmentation([POLYGON], (8, 10))
    if len(more[-1]) < 6:
        assert from_segmentation([*more, POLYGON], (8, 10)) == alone


def test_a_flat_list_is_one_polygon():
    assert from_segmentation(POLYGON, (8, 10)) == from_segmentation([POLYGON], (8, 10))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2], [3, 4], [5, 6], [7, 8]],
        [1, 2, 3, 4],
        [POLYGON, 7],
        [POLYGON, [1, float("nan")]],
        [[0, 0, 5, 0, float("nan"), 5]],
        [[0, 0, 5, 0, float("inf"), 5]],
        [[0, 0, 1e12, 0, 5, 5]],
        [[0, 0, 10**400, 0, 5, 5]],
        [["0", "0", "5", "0", "5", "5"]],
        [[True, 0, 5, 0, 5, 5]],
        {"size": [8, 10], "counts": [10, 10]},
        {"size": [8, 10], "counts": [90, -10]},
        {"size": [8, 10], "counts": [79.5, 0.5]},
        {"size": [8, 10], "counts": []},
        {"size": [8, 10], "counts": 80},
        {"size": [9, 10], "counts": [80]},
        {"size": [8, 10], "counts": b"\xff\xfe"},
        7,
        "P2",
    ],
)
def test_a_damaged_segmentation_is_refused(value):
    with pytest.raises(RleError):
        from_segmentation(value, (8, 10))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(placed_masks(), st.integers(0, 2**32)), min_size=1, max_size=9))
def test_paired_iou_equals_counting_pixels(cases):
    first, second, expected = [], [], []
    for (image_hw, mask, x, y), seed in cases:
        a = whole(image_hw, mask, x, y).astype(bool)
        b = np.random.default_rng(seed).random(image_hw) < 0.4
        first.append(of(a))
        second.append(of(b))
        union = (a | b).sum()
        expected.append((a & b).sum() / union if union else 0.0)
    assert paired_iou(first, second) == pytest.approx(expected, abs=1e-12)
    assert paired_iou([], []).shape == (0,)


# Beyond 2^29 pixels lengths take seven digits, beyond 2^31 more than a signed 32-bit number.
LARGE = [(23_171, 23_171), (30_000, 60_000), (46_341, 46_341), (65_535, 65_537), (256, 2**24 - 1)]


@pytest.mark.parametrize("image_hw", LARGE)
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_polygon_of_a_large_image_has_the_pixels_that_it_has_in_a_small_one(image_hw, corner):
    polygon = np.array([[3, 2], [19, 5], [21, 17], [8, 22], [1, 11]])
    small = decode_rle(from_segmentation([polygon.ravel().tolist()], (25, 25)))
    y, x = (near * (side - 25) for near, side in zip(corner, image_hw, strict=True))
    rle = from_segmentation([(polygon + np.array([x, y])).ravel().tolist()], image_hw)
    check_rle(rle, image_hw)
    assert area(rle) == small.sum()
    assert (decode_windows([rle], [(x, y, x + 25, y + 25)])[0] == small).all()
    columns, rows = np.flatnonzero(small.any(axis=0)), np.flatnonzero(small.any(axis=1))
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert rle_box(rle) == (x + columns[0], y + rows[0], width, height)
    assert paired_iou([rle], [rle]).tolist() == [1.0]
    assert encode_crop(small, x, y, image_hw) == rle
    runs = run_lengths(rle["counts"]).tolist()
    assert from_segmentation({"size": list(image_hw), "counts": runs}, image_hw) == rle


@pytest.mark.parametrize(
    "image_hw", [(65_536, 65_536), (1, 2**24 + 1), (2**31 - 1, 1), (10**9, 10**5), (10**9, 10**9)]
)
@pytest.mark.parametrize("form", ["polygon", "compressed", "uncompressed"])
def test_an_image_larger_than_run_lengths_count_is_refused_in_every_form(image_hw, form):
    height, width = image_hw
    value = {
        "polygon": [[0, 0, width, 0, width, height, 0, height]],
        "compressed": {"size": [height, width], "counts": "PPYo0"},
        "uncompressed": {"size": [height, width], "counts": [height * width]},
    }[form]
    with pytest.raises(RleError, match=f"{height} x {width} pixels is larger"):
        from_segmentation(value, image_hw)
    assert find_good([value], [image_hw]) == set()


def test_two_parts_further_apart_than_pycocotools_can_say_are_refused():
    far, near = [59_000, 0, 59_009, 0, 59_009, 9, 59_000, 9], [0, 0, 9, 0, 9, 9, 0, 9]
    assert area(from_segmentation([far], (30_000, 60_000))) == 81
    with pytest.raises(RleError, match="shorter than the one before"):
        from_segmentation([near, far, near], (30_000, 60_000))
    runs = [7, 2**30, 4, 5]
    counts = [*runs, 2**31 - sum(runs)]
    with pytest.raises(RleError, match="shorter than the one before"):
        from_segmentation({"size": [2**15, 2**16], "counts": counts}, (2**15, 2**16))


def test_edges_that_would_fill_the_memory_are_refused_before_they_are_walked():
    zigzag = [0, 0, 400_000, 400_000] * 500
    with pytest.raises(RleError, match="edges of millions of pixels"):
        from_segmentation([zigzag], (40_000, 40_000))


@pytest.mark.parametrize(
    ("counts", "same"),
    [
        ([0] * 10 + [80], [80]),
        ([80, 0], [80]),
        ([10, 0, 70], [80]),
        ([5, 0, 3, 2, 70], [8, 2, 70]),
        ([5, 2, 0, 3, 70], [5, 5, 70]),
        ([0, 0, 0, 7, 73], [0, 7, 73]),
        ([0, 5, 0, 0, 0, 3, 72], [0, 8, 72]),
    ],
)
def test_empty_runs_change_no_mask(counts, same):
    wanted = from_segmentation({"size": [8, 10], "counts": same}, (8, 10))
    assert run_lengths(wanted["counts"]).tolist() == same
    assert from_segmentation({"size": [8, 10], "counts": counts}, (8, 10)) == wanted
    differences = [n - counts[i - 2] if i > 2 else n for i, n in enumerate(counts)]
    text = b"".join(map(rle_module._digits, differences)).decode()
    assert run_lengths(text).tolist() == counts
    compressed = {"size": [8, 10], "counts": text}
    assert find_good([compressed], [(8, 10)]) == set()
    assert from_segmentation(compressed, (8, 10)) == wanted
