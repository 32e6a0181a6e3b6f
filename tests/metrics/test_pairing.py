"""Which prediction belongs to which human instance."""

import numpy as np
import pytest

from malcli.metrics.pairing import Instances, pair_instances

NAN = [np.nan] * 4


def side(*rows):
    """Columns of (id, image, category, box[, crowd]) rows."""
    rows = [(*row, False)[:5] for row in rows]
    ids, image, category, boxes, crowd = zip(*rows, strict=True) if rows else ((),) * 5
    return Instances(
        ids=list(ids),
        image=np.array(image, dtype=np.int64),
        category=np.array(category, dtype=np.int64),
        xywh=np.array(boxes, dtype=float).reshape(-1, 4),
        rles=[None] * len(rows),
        crowd=np.array(crowd, dtype=bool),
        score=np.ones(len(rows)),
        area=np.full(len(rows), np.nan),
    )


A, B, C = [0, 0, 10, 10], [30, 30, 10, 10], [60, 60, 8, 8]


def test_ids_pair_in_any_order():
    human = side((1, 0, 1, A), (2, 0, 1, B), (3, 1, 1, A))
    pairs = pair_instances(human, side((3, 1, 1, A), (2, 0, 1, B), (1, 0, 1, A)))
    assert pairs.human.tolist() == [0, 1, 2]
    assert pairs.predicted.tolist() == [2, 1, 0]


def test_counts_add_up_and_crowd_is_left_out_on_both_sides():
    human = side((1, 0, 1, A), (2, 0, 1, B), (3, 0, 1, C, True))
    pairs = pair_instances(human, side((1, 0, 1, A), (3, 0, 1, C), (9, 0, 1, [1, 2, 3, 4])))
    assert pairs.predicted.tolist() == [0, -1]
    assert pairs.counts == {
        "instances": 2,
        "paired": 1,
        "missing": 1,
        "unmatched": 1,
        "crowd": 1,
    }


def test_a_crowd_prediction_is_nobodys():
    pairs = pair_instances(side((1, 0, 1, A)), side((1, 0, 1, A, True)))
    assert pairs.predicted.tolist() == [-1]
    assert pairs.counts["unmatched"] == 0


def test_unknown_ids_pair_by_image_category_and_rounded_box():
    human = side((1, 0, 1, [0.4, 0.3, 10.2, 9.6]), (2, 0, 2, A), (3, 1, 1, A))
    predicted = side((70, 1, 1, A), (71, 0, 2, A), (72, 0, 1, A))
    assert pair_instances(human, predicted).predicted.tolist() == [2, 1, 0]


def test_ids_renumbered_inside_an_image_give_way_to_boxes():
    human = side((1, 0, 1, A), (2, 0, 1, B), (3, 0, 1, C))
    predicted = side((1, 0, 1, C), (2, 0, 1, A), (3, 0, 1, B))
    assert pair_instances(human, predicted).predicted.tolist() == [1, 2, 0]


def test_an_id_of_another_image_is_not_taken():
    pairs = pair_instances(side((1, 0, 1, A)), side((1, 1, 1, A)))
    assert pairs.predicted.tolist() == [-1]
    assert pairs.counts["unmatched"] == 1


def test_a_tightened_or_absent_box_still_pairs_by_id():
    human = side((1, 0, 1, A), (2, 0, 1, B))
    predicted = side((2, 0, 1, NAN), (1, 0, 1, [3, 3, 5, 5]))
    assert pair_instances(human, predicted).predicted.tolist() == [1, 0]


def test_equal_boxes_with_different_ids_pair_one_to_one():
    human = side((1, 0, 1, A), (2, 0, 1, A))
    assert pair_instances(human, side((2, 0, 1, A), (1, 0, 1, A))).predicted.tolist() == [1, 0]
    assert sorted(pair_instances(human, side((8, 0, 1, A), (9, 0, 1, A))).predicted) == [0, 1]


@pytest.mark.parametrize("predicted", [side(), side((5, 0, 7, NAN))])
def test_nothing_to_pair_with_is_all_missing(predicted):
    pairs = pair_instances(side((1, 0, 1, A)), predicted)
    assert pairs.predicted.tolist() == [-1]
    assert pairs.counts["missing"] == 1
    assert pair_instances(side(), predicted).counts["instances"] == 0


def test_strings_are_ids_too():
    assert pair_instances(side(("a", 0, 1, A)), side(("a", 0, 1, A))).predicted.tolist() == [0]
