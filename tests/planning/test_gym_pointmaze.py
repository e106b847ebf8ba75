"""Gymnasium-Robotics' PointMaze, seen as Maze2D."""

import numpy as np
import pytest

from envs.maze2d import Maze2d
from planning.execute import STIFF
from planning.experiments.gym_pointmaze import Turned, went
from planning.peers.bfs import Bfs
from planning.plan import Problem

pytest.importorskip("pettingzoo", reason="gymnasium-robotics: pip install 'diffusion-workbench[arm]'")


@pytest.fixture(scope="module")
def env() -> Turned:
    return Turned()


def test_it_moves_as_maze2d_does(env: Turned) -> None:
    ours = Maze2d("large", multi=True)
    problem = env.reset(3)
    ours.reset(options={"state": problem.start, "goal": problem.goal})
    rng = np.random.default_rng(0)
    for _ in range(60):
        force = rng.uniform(-1.0, 1.0, 2)
        theirs, _, _ = env.step(force)
        state = ours.step(force)[0]
        np.testing.assert_allclose(theirs, state, atol=2e-3)


def test_problems_are_free_and_the_same_for_a_seed(env: Turned) -> None:
    for seed in range(10):
        one, two = env.reset(seed), env.reset(seed)
        assert isinstance(one, Problem)
        np.testing.assert_array_equal(one.start, two.start)
        assert np.linalg.norm(one.start[:2] - one.goal) > 0.4


def test_a_search_arrives(env: Turned) -> None:
    found = went(env, Bfs(), STIFF, 5)
    assert found.first is not None and found.first < 800
    assert len(found.inside) == 800
    assert found.inside[-1]
