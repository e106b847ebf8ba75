"""Ways and their times: shortcuts keep their room, times keep the ball's limits, the ball moves as told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.maze2d import DT, Maze2d
from planning.ball import ACCELERATION, Limits, advance
from planning.plan import Problem
from planning.timing import profile, timed
from planning.ways import Room, corner_cut, resampled, rounded

ENV = Maze2d("large")


def drawn(seed: int) -> Problem:
    state = Maze2d("large", multi=True)
    obs, _ = state.reset(seed=seed)
    return Problem(ENV.maze, obs, state.goal)


def length(way: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum())


def test_the_ball_moves_as_in_the_simulator():
    state, _ = ENV.reset(seed=0, options={"state": [2.8, 0.8, 0.3, -0.2], "goal": [0.8, 0.8]})
    action = np.array([0.4, -0.1])
    xy, v = (torch.as_tensor(part) for part in (state[:2], state[2:]))
    for _ in range(6):
        state = ENV.step(action)[0]
    there, speed = advance(xy, v, torch.as_tensor(action), 6)
    np.testing.assert_allclose(np.concatenate([there, speed]), state, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_shortcuts_are_shorter_and_keep_their_room(seed):
    problem = drawn(seed)
    room = Room.of(problem, 0.15)
    cells = ENV.maze.way(problem.start[:2], problem.goal) - 0.2
    way = np.concatenate([problem.start[None, :2], cells[1:-1], problem.goal[None]])
    cut = corner_cut(room, way)
    # places are looked at every 5 cm, which misses 2 mm
    nearly = Room.of(problem, 0.147)
    assert length(cut) <= length(way) + 1e-9 and nearly.along(cut)
    np.testing.assert_array_equal(cut[[0, -1]], way[[0, -1]])
    smooth = rounded(room, cut)
    assert nearly.along(smooth) and length(smooth) <= length(cut) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_times_keep_the_limits(seed):
    problem, limits = drawn(seed), Limits()
    room = Room.of(problem)
    cells = ENV.maze.way(problem.start[:2], problem.goal) - 0.2
    way = rounded(room, np.concatenate([problem.start[None, :2], cells[1:-1], problem.goal[None]]))
    plan = timed(way, np.zeros(2), limits)
    v = np.diff(plan.xy, axis=0) / DT
    assert np.abs(v).max() <= limits.speed * 1.02
    # along the way, where the profile decides it; sideways it is known to a few legs only
    found = profile(way, np.zeros(2), limits)
    along = np.diff(found.v**2) / (2.0 * max(found.ds, 1e-9))
    assert np.abs(along).max() <= limits.acceleration * 1.01


def test_a_straight_line_takes_as_long_as_a_trapezoid():
    limits = Limits(speed=2.0, acceleration=10.0)
    plan = timed(np.array([[0.0, 0.0], [3.0, 0.0]]), np.zeros(2), limits)
    # 0.2 s and 0.2 m to full speed, the same to rest, 2.6 m between
    assert (len(plan.xy) - 1) * plan.dt == pytest.approx(0.4 + 2.6 / 2.0, abs=0.03)
    assert np.allclose(plan.xy[:, 1], 0.0) and pytest.approx(23.87, abs=0.01) == ACCELERATION


def test_resampling_keeps_ends_and_spacing():
    way = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    at = resampled(way, 0.07)
    np.testing.assert_array_equal(at[[0, -1]], way[[0, -1]])
    assert np.linalg.norm(np.diff(at, axis=0), axis=1).max() <= 0.07 + 1e-12
