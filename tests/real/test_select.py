"""Which rows go into the store: classes, held-out images, the long tail."""

import numpy as np
import pytest

from ncfmkit.config import DataSettings
from ncfmkit.errors import UserError
from ncfmkit.real.listing import Listing, Rows
from ncfmkit.real.opening import open_real
from ncfmkit.real.select import choose, hold_out, kept_labels, long_tail


def listing(train, test=None, classes=("a", "b", "c")):
    train, test = (
        None if labels is None else Rows(np.array(labels), lambda rows: iter(()), lambda row: f"file row {row}")
        for labels in (train, test)
    )
    return Listing(classes, train, test)


def test_classes_by_name_or_number_in_label_order():
    assert kept_labels("s", ["x", "y", "z"], ["z", "0"]) == [0, 2]
    assert kept_labels("s", ["x", "y", "z"], []) == [0, 1, 2]
    assert kept_labels("s", ["2", "1", "0"], ["2", "2"]) == [0]
    assert kept_labels("s", ["1", "2", "3"], ["1", "2"]) == [0, 1]  # by name alone: a number would mean another class
    with pytest.raises(UserError, match=r"s has no class '0'\. It has 3 classes, named 1, 2, 3$"):
        kept_labels("s", ["1", "2", "3"], ["0", "1"])
    with pytest.raises(UserError, match=r"s .*no class 'airplan'; .*'airplane'"):
        kept_labels("s", ["airplane", "cat"], ["airplan"])


def test_names_that_no_set_can_hold_are_refused():
    """Before a picture is read: the set would refuse them at the end of a run."""
    with pytest.raises(
        UserError, match=r"s: the labels 0 and 2 have the same class name 'crane': rename one, or leave"
    ):
        choose("s", listing([0, 1, 2], classes=("crane", "dog", "crane")), (), 0.0, 1.0)
    assert choose("s", listing([0, 1, 2], classes=("crane", "dog", "crane")), ("0", "1"), 0.0, 1.0)[0] == (
        "crane",
        "dog",
    )
    with pytest.raises(UserError, match=r"s: the name '\\ud800' of class 1 is no valid text: rename it"):
        choose("s", listing([0, 1], classes=("a", "\ud800")), (), 0.0, 1.0)
    with pytest.raises(
        UserError, match=r"file row 1: expected the number of a class below 1,048,576 .* got 10000000000"
    ):
        choose("s", listing([0, 10**10], classes=()), (), 0.0, 1.0)


def test_subset_of_digits():
    whole, part = open_real("digits", DataSettings()), open_real("digits", DataSettings(classes=("7", "3")))
    assert part.classes == ("3", "7")
    for split in ("train", "test"):
        images, offsets = getattr(whole, split).images, getattr(whole, split).offsets
        expected = np.concatenate([images[offsets[c] : offsets[c + 1]] for c in (3, 7)])
        np.testing.assert_array_equal(getattr(part, split).images, expected)


def test_holdout_numbers_and_seed():
    groups = [np.arange(100), np.arange(100, 103), np.arange(200, 202)]
    train, test = hold_out("s", groups, 0.1)
    assert [len(t) for t in test] == [10, 1, 1]
    for group, a, b in zip(groups, train, test, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate([a, b])), group)
        assert (np.diff(a) > 0).all()
    np.testing.assert_array_equal(test[0], np.sort(np.random.default_rng(0).permutation(100)[:10]))
    assert [len(t) for t in hold_out("s", [np.arange(3)], 0.99)[0]] == [1]


def test_holdout_errors():
    with pytest.raises(UserError, match="--holdout: s has a class with 1 image"):
        hold_out("s", [np.arange(4), np.arange(1)], 0.5)
    with pytest.raises(UserError, match=r"--holdout 0\.2: digits .*test split .*--holdout at 0"):
        open_real("digits", DataSettings(holdout=0.2))


def test_long_tail_numbers():
    groups = [np.arange(c * 1000, c * 1000 + 500) for c in range(10)]
    tail = long_tail(groups, 100)
    assert [len(g) for g in tail] == [int(500 * 100 ** (-c / 9)) for c in range(10)]
    assert (len(tail[0]), len(tail[-1])) == (500, 5)
    assert all((np.diff(g) > 0).all() for g in tail)
    assert [len(g) for g in long_tail([np.arange(3), np.arange(3)], 1000)] == [3, 1]
    assert [len(g) for g in long_tail([np.arange(7)], 10)] == [7]


def test_long_tail_leaves_the_test_split():
    data = open_real("digits", DataSettings(imbalance=10))
    largest = open_real("digits", DataSettings()).train.counts().max()
    assert data.train.counts()[-1] == int(largest * 10**-1.0)
    assert len(data.test.images) == 450


def test_choose_refuses_labels_without_a_class():
    with pytest.raises(UserError, match=r"file row 1: expected a label in 0\.\.2, got 3"):
        choose("s", listing([0, 3, 1, 2]), (), 0, 1)
    with pytest.raises(UserError, match=r"file row 0: expected a label in 0\.\.2, got -1"):
        choose("s", listing([0, 1, 2], [-1]), (), 0, 1)
    with pytest.raises(UserError, match="class 'b' has no images in s test"):
        choose("s", listing([0, 1, 2], [0, 2]), (), 0, 1)


def test_choose_numbers_classes_without_names():
    classes, chosen = choose("s", listing([2, 0, 1, 0], classes=()), ("2", "0"), 0, 1)
    assert classes == ("0", "2")
    assert [g.tolist() for g in chosen["train"][1]] == [[1, 3], [0]]
