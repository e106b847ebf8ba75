"""The point mazes against OGBench's own, its recorded places, and their geometry."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import pointmaze
from envs.pointmaze import MAPS, POINT, STRIDE, TASKS, PointMaze, Walls, of_name

PROBLEMS = Path(os.environ.get("WORKBENCH_DATA", "absent")) / "planning" / "eval_problems"
SHORT = {"medium": "Me", "large": "Lg", "giant": "Gi"}
NAMES = sorted(MAPS)


@pytest.fixture(params=NAMES)
def theirs(request):
    """OGBench's own environment, where it is installed."""
    maze = pytest.importorskip("ogbench.locomaze.maze", reason="ogbench is not installed (pip install ogbench)")
    return request.param, maze.make_maze_env("point", "maze", maze_type=request.param)


def test_walls_and_tasks_are_ogbenchs(theirs):
    name, env = theirs
    ours = of_name(name)
    np.testing.assert_array_equal(ours.walls.T, env.maze_map == 1)
    for (start, goal), info in zip(TASKS[name], env.task_infos, strict=True):
        np.testing.assert_allclose(ours.middles(np.array(start[::-1])), info["init_xy"])
        np.testing.assert_allclose(ours.middles(np.array(goal[::-1])), info["goal_xy"])


def test_every_step_is_ogbenchs_at_walls_too(theirs):
    name, env = theirs
    ours, rng = Walls(of_name(name)), np.random.default_rng(0)
    free = ours.maze.middles(ours.maze.free)
    touched = 0
    for _ in range(40):
        xy = free[rng.integers(len(free))] + rng.uniform(-1.2, 1.2, 2)
        push = rng.uniform(-1.0, 1.0, 2)
        env.set_xy(xy)
        for _ in range(15):
            action = np.clip(push + rng.normal(0.0, 0.3, 2), -1.0, 1.0)
            there, touches = ours.moved(xy[None], action[None])
            env.set_xy(xy)
            env.step(action)
            np.testing.assert_allclose(there[0], env.get_xy(), atol=1e-6)
            xy, touched = there[0], touched + int(touches[0])
    assert touched > 50


def test_a_ball_that_is_pushed_into_a_wall_goes_where_ogbenchs_did():
    # recorded in OGBench 1.2.2: at (-1, 0), pushed by (-1, 0.3) against the wall at x = -2
    recorded = [-1.2, -1.317722, -1.338584, -1.342281, -1.342936, -1.343052, -1.343072, -1.343076, -1.343077]
    walls, xy = Walls(of_name("medium")), np.array([[-1.0, 0.0]])
    for k, x in enumerate(recorded, start=1):
        xy, touches = walls.moved(xy, np.array([[-1.0, 0.3]]))
        np.testing.assert_allclose(xy, [[x, 0.06 * k]], atol=1e-6)
        assert touches[0] == (k > 1)


def test_where_nothing_is_touched_the_physics_would_change_nothing():
    walls, rng = Walls(of_name("large")), np.random.default_rng(1)
    free = walls.maze.middles(walls.maze.free)
    places = free[rng.integers(len(free), size=300)] + rng.uniform(-1.9, 1.9, (300, 2))
    apart = walls.maze.clearance(places) > POINT.radius
    assert apart.sum() > 100 and (~apart).sum() > 50
    for xy in places[apart]:
        np.testing.assert_array_equal(walls.settled(xy), xy)
    # and where something is, it does
    assert all(np.abs(walls.settled(xy) - xy).max() > 1e-6 for xy in places[~apart])


def test_it_is_a_gymnasium_environment():
    check_env(PointMaze("medium"), skip_render_check=False)


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_ends_at_the_goal_or_after_its_steps(name):
    env = PointMaze(name, max_steps=30, render_mode=None)
    start, info = env.reset(seed=0, options={"task": 1, "state": (0.0, 0.0), "goal": (0.0, 2.3)})
    assert not info["is_success"] and start.tolist() == [0.0, 0.0]
    for k in range(1, 8):
        xy, reward, terminated, truncated, info = env.step(np.array([0.0, 3.0]))  # more than 1 is no farther
        assert xy == pytest.approx([0.0, STRIDE * k]) and not truncated
        assert terminated == info["is_success"] == (reward == 1.0) == (k == 7)  # 0.9 m left
    env.reset(seed=0, options={"state": (0.0, 0.0)})
    assert [env.step(np.zeros(2))[3] for _ in range(30)] == [False] * 29 + [True]


@pytest.mark.parametrize("name", NAMES)
def test_starts_and_goals_are_drawn_around_those_of_the_task(name):
    env = PointMaze(name, render_mode=None)
    for task, places in enumerate(TASKS[name], start=1):
        drawn = []
        for seed in range(40):
            start, info = env.reset(seed=seed, options={"task": task})
            drawn.append([start, info["goal"]])
        apart = np.array(drawn) - env.maze.middles(np.array(places)[:, ::-1])
        assert np.abs(apart).max() <= 1.0 and (np.abs(apart).max(0) > 0.8).all()
        assert env.maze.way(*drawn[0]).shape[0] > 3


@pytest.mark.parametrize("name", NAMES)
def test_the_published_problems_are_of_these_tasks(name):
    path = PROBLEMS / f"ogb_pointM_{SHORT[name]}_ev_prob_numEp20_eSdSt0.hdf5"
    if not path.exists():
        pytest.skip(f"the problems are not at {path}; set WORKBENCH_DATA to the folder that holds planning/")
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        starts, goals = file["start_state"][:, :2], file["goal_pos"][:]
    maze = of_name(name)
    for places, k in ((starts, 0), (goals, 1)):
        assert maze.clearance(places).min() >= POINT.radius
        cells = [place[k][::-1] for place in TASKS[name]]
        np.testing.assert_array_equal(maze.cell(places), np.repeat(cells, 20, 0))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: PointMaze("umaze"), "maze: got 'umaze'"),
        (lambda: PointMaze("medium", render_mode="human"), "render_mode"),
        (lambda: PointMaze("medium").reset(options={"task": 6}), "task: got 6"),
        (lambda: PointMaze("medium").reset(options={"goal": (-4.0, 0.0)}), "goal: got"),
        (lambda: PointMaze("medium").reset(options={"start": 1}), "options: got keys"),
    ],
)
def test_what_does_not_exist_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_world_scales_a_maze():
    maze = of_name("giant")
    cells = np.argwhere(~maze.walls)
    np.testing.assert_array_equal(maze.cell(maze.middles(cells)), cells)
    np.testing.assert_allclose(maze.clearance(maze.middles(cells)), 2.0, atol=1e-12)
    assert maze.clearance(np.array([0.0, 0.0]) - 1.3) == pytest.approx(POINT.radius)
    assert pointmaze.PointMaze("giant").render().shape == (480, 640, 3)
