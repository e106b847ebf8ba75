"""Joins of commands that are known."""

from __future__ import annotations

import numpy as np
import pytest

from policy.runtime.execution import Record
from policy.runtime.smoothness import jerk, smoothness


def record(x: list[float], joins: list[int], gaps: list[float]) -> Record:
    return Record(actions=[np.array([v, 0.0], np.float32) for v in x], joins=joins, gaps=gaps)


def test_a_jump_at_a_join_is_told_from_ordinary_strides():
    found = smoothness([record([0, 1, 2, 7, 8, 9], [3], [4.0])], 0.1, "px")
    assert found["join_stride"].value == 5.0 and found["stride"].value == 1.0
    assert found["join_ratio"].value == 5.0 and found["gap"].value == 4.0
    assert found["gap"].unit == "px" and found["join_ratio"].unit == "1" and found["jerk"].unit == "px/s^3"


def test_episodes_count_alike_and_those_without_joins_say_nothing_of_them():
    found = smoothness([record([0, 2, 4, 6, 8], [2], [1.0]), record([0, 1, 2, 3, 4], [], [])], 0.1, "px")
    assert (found["gap"].n, found["join_ratio"].n, found["stride"].n) == (1, 1, 2)
    assert found["stride"].value == pytest.approx(1.5)


def test_jerk_is_the_third_derivative_of_a_cubic():
    t = 0.1 * np.arange(12)
    assert jerk(np.stack([2.0 * t**3, t**2], 1), 0.1) == pytest.approx(12.0)
