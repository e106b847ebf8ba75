"""Splits: every class in its share, the same on every machine, little moved by a new file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_core.errors import WorkbenchError
from images.data.split import choose, keys_of, stratified


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 2**31))
def test_every_beginning_holds_each_class_in_its_share(labels, seed):
    labels = np.array(labels, np.int64)
    order = stratified(labels, np.random.default_rng(seed).random(len(labels)))
    assert sorted(order.tolist()) == list(range(len(labels)))
    n_classes = len(np.unique(labels))
    for n in range(len(labels) + 1):
        for label in np.unique(labels):
            share = n * np.mean(labels == label)
            # Each class is off by rounding, and n itself falls between the steps of the others.
            assert abs(np.sum(labels[order[:n]] == label) - share) <= 0.5 * n_classes + 1e-9


def test_order_within_a_class_is_that_of_the_keys():
    labels = np.array([1, 0, 1, 0, 1], np.int64)
    keys = np.array([0.9, 0.2, 0.1, 0.8, 0.5])
    # places: class 1 -> rows 2, 4, 0 at 1/6, 3/6, 5/6; class 0 -> rows 1, 3 at 1/4, 3/4
    assert stratified(labels, keys).tolist() == [2, 1, 4, 3, 0]


def test_a_new_name_changes_no_other_key():
    names = [f"a/{i}.png" for i in range(50)]
    keys = keys_of(names, 3)
    assert keys.min() >= 0 and keys.max() < 1 and len(set(keys)) == 50
    assert keys_of(["a/new.png", *names], 3)[1:].tolist() == keys.tolist()
    assert (keys_of(names, 4) != keys).all()
    # pinned: a split must be the same in every later version
    assert keys_of(["a/0.png"], 0)[0] == pytest.approx(0.2921778146, abs=1e-9)
    # a name that is no UTF-8, as os.walk gives it
    assert len(set(keys_of(["a/\udcff.png", "a/\udcfe.png"], 0))) == 2


def test_choose():
    labels = np.repeat([0, 1], [30, 10]).astype(np.int64)
    rows = choose(labels, 8, 0, "task.train")
    assert np.bincount(labels[rows]).tolist() == [6, 2] and (np.diff(rows) > 0).all()
    assert rows.tolist() != choose(labels, 8, 1, "task.train").tolist()
    assert choose(labels, 0, 0, "task.train").tolist() == list(range(40))
    with pytest.raises(WorkbenchError, match=r"task.train: got 41; expected at most the 40 pictures"):
        choose(labels, 41, 0, "task.train")
