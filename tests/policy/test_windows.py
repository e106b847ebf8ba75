"""Windows against a second formulation, and the split against the published draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_core.errors import WorkbenchError
from policy.data.windows import limit_episodes, train_validation_split, windows

lengths_lists = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def by_padding(lengths: list[int], horizon: int, pad_before: int, pad_after: int) -> list[list[int]]:
    """Repeat the first and last step of each episode as often as the pads say, then slide a frame along."""
    before = min(max(pad_before, 0), horizon - 1)
    after = min(max(pad_after, 0), horizon - 1)
    frames, begin = [], 0
    for length in lengths:
        steps = list(range(begin, begin + length))
        padded = [steps[0]] * before + steps + [steps[-1]] * after
        frames += [padded[i : i + horizon] for i in range(len(padded) - horizon + 1)]
        begin += length
    return frames


@settings(deadline=None, max_examples=300)
@given(lengths_lists, st.integers(1, 20), st.integers(-2, 25), st.integers(-2, 25))
def test_same_as_sliding_over_padded_episodes(lengths, horizon, pad_before, pad_after):
    got = windows(np.cumsum(lengths), horizon, pad_before, pad_after)
    expected = by_padding(lengths, horizon, pad_before, pad_after)
    assert got.dtype == np.int64 and got.shape == (len(expected), horizon)
    assert got.tolist() == expected


@settings(deadline=None, max_examples=100)
@given(lengths_lists, st.data())
def test_left_out_episodes_leave_the_others_alone(lengths, data):
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    ends = np.cumsum(lengths)
    every = windows(ends, 8, 1, 7)
    episode_of = np.searchsorted(ends, every[:, 0], side="right")
    np.testing.assert_array_equal(windows(ends, 8, 1, 7, keep), every[keep[episode_of]])


def test_published_horizons_give_length_less_seven_windows():
    got = windows(np.array([49, 49 + 161]), horizon=16, pad_before=1, pad_after=7)
    assert len(got) == (49 - 7) + (161 - 7)
    assert got[0].tolist() == [0, 0, *range(1, 15)]
    assert got[41].tolist() == [*range(40, 49), *[48] * 7]
    assert got[42].tolist() == [49, 49, *range(50, 64)]


def test_too_short_an_episode_has_no_window():
    assert windows(np.array([7]), 16, 1, 7).shape == (0, 16)
    assert len(windows(np.array([8]), 16, 1, 7)) == 1


def test_keep_must_match():
    with pytest.raises(WorkbenchError, match=r"keep of shape \(3,\) for 2 episodes"):
        windows(np.array([5, 9]), 2, 0, 0, np.ones(3, bool))


def test_horizon_must_be_positive():
    with pytest.raises(WorkbenchError, match="horizon=0"):
        windows(np.array([5]), 0, 0, 0)


def test_published_split():
    train, validation = train_validation_split(206, 0.02, 42)
    # numpy.random.default_rng(42).choice(206, 4, replace=False), as diffusion_policy draws it.
    assert validation.tolist() == [18, 90, 134, 157]
    kept = limit_episodes(train, 90, 42)
    assert len(kept) == 90 and set(kept) <= set(train)
    positions = np.random.default_rng(42).choice(202, size=90, replace=False)
    np.testing.assert_array_equal(kept, np.sort(train[positions]))


@given(st.integers(2, 300), st.floats(0, 0.999), st.integers(0, 2**32 - 1))
def test_split_is_a_partition_with_both_sides_filled(n, fraction, seed):
    train, validation = train_validation_split(n, fraction, seed)
    assert sorted([*train, *validation]) == list(range(n))
    assert len(train) >= 1 and (len(validation) >= 1) == (fraction > 0)
    assert len(validation) == (min(max(1, round(n * fraction)), n - 1) if fraction else 0)
    again = train_validation_split(n, fraction, seed)
    assert again[1].tolist() == validation.tolist()


def test_split_and_limit_refuse_what_they_cannot_do():
    with pytest.raises(WorkbenchError, match=r"fraction=1\.0"):
        train_validation_split(10, 1.0, 0)
    with pytest.raises(WorkbenchError, match="at least 2 episodes"):
        train_validation_split(1, 0.1, 0)
    with pytest.raises(WorkbenchError, match="got 0"):
        limit_episodes(np.arange(5), 0, 0)
    assert train_validation_split(1, 0.0, 0)[0].tolist() == [0]


def test_limit_keeps_all_when_there_are_few():
    assert limit_episodes(np.arange(5), 9, 0).tolist() == [0, 1, 2, 3, 4]
    assert limit_episodes(np.arange(5), None, 0).tolist() == [0, 1, 2, 3, 4]
