"""Logs become lists, or are refused by name."""

import numpy as np
import pytest

from rankwise.ranking import lists_of, query_of_groups


def test_rows_are_laid_by_position_and_lists_by_id_with_what_is_missing_masked():
    lists = lists_of([0, 1, 0, 1, 1], query=["b", "a", "b", "b", "a"], position=[3, 2, 1, 2, 1])
    assert lists.query.tolist() == ["a", "b"]
    assert lists.rows.tolist() == [[4, 1, 0], [2, 3, 0]]
    assert lists.mask.tolist() == [[True, True, False], [True, True, True]]
    assert lists.clicks.tolist() == [[1, 1, 0], [0, 1, 0]]
    assert lists.clicked.all()


def test_rows_in_order_need_no_positions_and_documents_are_rows_of_their_own():
    lists = lists_of([0, 1, 0, 0], query=[1, 1, 0, 0], document=[5, 6, 6, 5])
    assert lists.rows.tolist() == [[6, 5], [5, 6]]
    assert lists.entries.tolist() == [[2, 3], [0, 1]]
    assert lists.clicked.tolist() == [False, True]


def test_what_lies_beyond_the_list_is_cut_and_counted():
    lists = lists_of([0, 0, 1, 1], query=[0, 0, 0, 1], list_size=2)
    assert (lists.mask.sum(), lists.cut) == (3, 1)


@pytest.mark.parametrize("which", [[1, 0], [True, False, True]])
def test_some_lists_are_taken_with_all_that_is_known_of_them(which):
    lists = lists_of([1, 0, 1, 0, 0], query=["a", "a", "b", "c", "c"], list_size=1)
    some = lists.take(np.array(which))
    for name in ("query", "rows", "entries", "mask", "clicks"):
        assert np.array_equal(getattr(some, name), getattr(lists, name)[np.array(which)])
    assert (len(some), some.cut) == (2, 2)


def test_a_short_log_makes_no_wider_lists_than_it_needs():
    assert lists_of([1], query=[0], list_size=10).mask.shape == (1, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clicks": [0, 2]}, "click of row 1 is 2"),
        ({"clicks": [0, np.nan]}, "click of row 1 is nan"),
        ({"position": [1, 1]}, "list 0 has position 1 twice"),
        ({"position": [1, 3]}, "list 0 has no position 2 and has 3"),
        ({"position": [2, 3]}, "list 0 has no position 1 and has 3"),
        ({"position": [0, 1]}, "position of row 0 is 0"),
        ({"position": [1, np.nan]}, "position of row 1 is nan"),
        ({"position": [1, 1.5]}, "position of row 1 is 1.5"),
        ({"position": [1]}, "position has shape"),
        ({"document": [-1, 0]}, "document of row 0 is -1"),
        ({"query": [0]}, "query has shape"),
        ({"query": [0, np.nan]}, "query holds nan in row 1"),
        ({"query": ["a", None]}, "query holds None in row 1"),
        ({"query": np.array(["a", 1], object)}, "query holds int and str: ids of one kind"),
        ({"clicks": ["0", "1"]}, r"clicks holds str\w* such as \['0'\]: 0 and 1 are accepted"),
        ({"clicks": np.array([0, None], object)}, "click of row 1 is nan"),
        ({"clicks": np.array([0, "1"], object)}, "clicks holds object"),
        ({"position": ["1", "2"]}, "position holds str"),
        ({"clicks": [0, 101], "graded": True}, "grade of row 1 is 101: numbers from 0 to 100"),
        ({"list_size": 0}, "list_size=0"),
    ],
)
def test_bad_logs_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        lists_of(options.pop("clicks", [0, 1]), **{"query": [0, 0], **options})


def test_columns_of_a_frame_that_are_objects_are_taken_for_what_they_hold():
    lists = lists_of(np.array([0, 1.0, True], object), query=np.array(["b", "a", "b"], object),
                     position=np.array([2, 1, 1], object))  # fmt: skip
    assert lists.query.tolist() == ["a", "b"]
    assert lists.clicks.tolist() == [[1, 0], [1, 0]]


def test_group_sizes_are_numbers_of_lists_and_have_to_add_up():
    assert query_of_groups([1, 3], 4).tolist() == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="add up to 4, and there are 5 rows"):
        query_of_groups([1, 3], 5)
    with pytest.raises(ValueError, match="whole numbers from 1"):
        query_of_groups([0, 5], 5)
