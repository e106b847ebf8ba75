"""OGBench's recipes: ways as its own, episodes as it describes them, and files."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from envs.pointmaze import MAPS, POINT, STRIDE, Walls, of_name
from planning.config import DataConfig, TaskConfig
from planning.data import files, pointmaze, sources
from planning.data.pointmaze import FAR, GROUP, Ways, ends, generate, of_file
from planning.tasks import transitions, world
from planning.trajectories import Trajectories

LENGTH = 201
EPISODES = 40


@pytest.fixture(scope="module")
def stream():
    return generate("medium", "stitch", EPISODES * LENGTH, seed=3)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_ways_are_those_of_a_search_and_each_step_comes_nearer(name):
    maze = of_name(name)
    ways, rng = Ways.of(maze), np.random.default_rng(0)
    assert (ways.steps >= 0).all() and (ways.steps == ways.steps.T).all()
    for a, b in rng.integers(len(ways.cells), size=(30, 2)):
        assert len(maze.way(*maze.middles(ways.cells[[a, b]]))) == ways.steps[a, b] + 1
    n = np.arange(len(ways.cells))
    nearer = ways.steps[ways.following, n[None]]
    np.testing.assert_array_equal(nearer, np.maximum(ways.steps - 1, 0))
    apart = np.abs(ways.cells[ways.following] - ways.cells[:, None]).sum(-1)
    np.testing.assert_array_equal(apart, ways.steps > 0)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_the_next_cell_is_ogbenchs(name):
    theirs = pytest.importorskip("ogbench.locomaze.maze", reason="ogbench is not installed (pip install ogbench)")
    env, maze = theirs.make_maze_env("point", "maze", maze_type=name), of_name(name)
    ways, rng = Ways.of(maze), np.random.default_rng(1)
    for a, b in rng.integers(len(ways.cells), size=(200, 2)):
        start, goal = maze.middles(ways.cells[[a, b]])
        np.testing.assert_allclose(
            env.get_oracle_subgoal(start, goal)[0], maze.middles(ways.cells[ways.following[a, b]])
        )


def test_vertices_are_no_passages():
    ways, maze = Ways.of(of_name("medium")), of_name("medium")
    found = {tuple(cell) for cell in ways.cells[ways.vertices].tolist()}
    for x, y in ways.cells.tolist():
        left, right, below, above = (not maze.walls[p] for p in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)))
        # two ways on, and these opposite
        assert ((x, y) in found) != ([left, right, below, above] in ([1, 1, 0, 0], [0, 0, 1, 1]))
    assert 0 < len(found) < len(ways.cells)


def test_episodes_of_stitch_go_four_cells_and_stay(stream):
    maze = of_name("medium")
    ways = Ways.of(maze)
    xy = stream.observations[:, :2].astype(float).reshape(EPISODES, LENGTH, 2)
    goals = stream.goals.astype(float).reshape(EPISODES, LENGTH, 2)
    assert np.flatnonzero(stream.timeouts).tolist() == [LENGTH * (k + 1) - 1 for k in range(EPISODES)]
    np.testing.assert_array_equal(ends(stream), stream.timeouts)
    assert (goals == goals[:, :1]).all()
    numbers = {tuple(cell): k for k, cell in enumerate(ways.cells.tolist())}
    for start, end, goal in zip(xy[:, 0], xy[:, -1], goals[:, 0], strict=True):
        a, b = (numbers[tuple(maze.cell(place).tolist())] for place in (start, goal))
        assert ways.steps[a, b] in (FAR, 0)
        assert np.linalg.norm(end - maze.middles(maze.cell(goal))) < 1.5


def test_every_transition_replays_and_the_noise_is_as_asked(stream):
    walls = Walls(of_name("medium"))
    xy, actions = stream.observations[:, :2].astype(float), stream.actions.astype(float)
    inner = ~stream.timeouts[:-1]
    there, touches = walls.moved(xy[:-1][inner], actions[:-1][inner])
    np.testing.assert_allclose(there, xy[1:][inner], atol=1e-5)
    assert 0 < touches.mean() < 0.02
    # staying: the direction is of length 1 at a random angle u, and half the noise is beyond the bounds at its middle
    rng = np.random.default_rng(0)
    u = rng.uniform(0.0, 2.0 * np.pi, 100_000)
    expected = np.abs(np.clip(np.cos(u) + rng.normal(0.0, 0.5, u.shape), -1.0, 1.0)).mean()
    late = np.abs(actions.reshape(EPISODES, LENGTH, 2)[:, 150:]).mean()
    assert abs(late - expected) < 0.02


def test_more_episodes_begin_with_those_of_fewer_and_a_seed_gives_the_same_bytes(stream):
    longer = generate("medium", "stitch", (EPISODES + GROUP) * LENGTH, seed=3)
    assert longer.observations[: len(stream)].tobytes() == stream.observations.tobytes()
    assert len(longer) == (EPISODES + GROUP) * LENGTH
    other = generate("medium", "stitch", EPISODES * LENGTH, seed=4)
    assert other.content_sha256 != stream.content_sha256


def test_navigate_pursues_a_new_goal_once_one_is_reached():
    made = generate("medium", "navigate", 3 * 1001, seed=0)
    xy, goals = made.observations[:, :2].astype(float), made.goals.astype(float)
    for first in range(0, len(made), 1001):
        here, there = xy[first : first + 1001], goals[first : first + 1001]
        changed = np.flatnonzero(np.abs(np.diff(there, axis=0)).max(1) > 0)
        assert len(changed) >= 3
        # the place after the last step to a goal is within its reach
        assert (np.linalg.norm(here[changed + 1] - there[changed], axis=1) <= POINT.reach + 1e-4).all()
        reached = np.flatnonzero(np.linalg.norm(here[1:] - there[:-1], axis=1) <= POINT.reach - 1e-4)
        assert set(reached.tolist()) <= set(changed.tolist()) | {999}


def test_windows_end_with_their_episodes_even_where_the_next_begins_nearby():
    xy = np.zeros((20, 2), np.float32)
    last = np.zeros(20, bool)
    last[[9, 19]] = True
    windows = Trajectories(xy, 4, [2], ends=last, dt=POINT.dt)
    assert sorted(windows.starts.tolist()) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert windows.batch(windows.starts[:1] * 0)["dt"].item() == pytest.approx(0.2)


def test_a_task_makes_its_transitions_once_and_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "cache", lambda name: tmp_path / name)
    task, data = (
        TaskConfig("pointmaze_medium", "medium", env="pointmaze"),
        DataConfig(steps=4 * LENGTH, recipe="stitch"),
    )
    assert world(task) == POINT
    made = transitions(task, data)
    monkeypatch.setattr(pointmaze, "generate", None)
    again = transitions(task, data)
    assert again.provenance == made.provenance and again.content_sha256 == made.content_sha256
    assert "pointmaze-medium, generated: stitch, 4 episodes of 201 steps, seed 0" in made.provenance
    (kept,) = (tmp_path / "planning").glob("*.hdf5")
    assert len(of_file("medium", kept)) == 4 * LENGTH
    with pytest.raises(WorkbenchError, match="inside the walls of giant"):
        of_file("giant", kept)


def test_a_file_of_ogbench_is_read_as_it_is(tmp_path, stream):
    path = tmp_path / "pointmaze-medium-stitch-v0.npz"
    np.savez(path, observations=stream.observations[:, :2], actions=stream.actions, terminals=stream.timeouts)
    found = of_file("medium", path)
    np.testing.assert_array_equal(found.observations[:, :2], stream.observations[:, :2])
    np.testing.assert_array_equal(ends(found), stream.timeouts)
    other = tmp_path / "maze2d.hdf5"
    files.save(other, sources.generate("umaze", 50, 0))
    with pytest.raises(WorkbenchError, match="expected a pointmaze of OGBench's"):
        of_file("medium", other)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: generate("umaze", "stitch", 1000, 0), "maze: got 'umaze'"),
        (lambda: generate("medium", "explore", 1000, 0), "data.recipe: got 'explore'"),
        (lambda: generate("medium", "stitch", 200, 0), "data.steps"),
        (lambda: TaskConfig("a", "medium", env="antmaze"), "task.env: got 'antmaze'"),
        (lambda: transitions(TaskConfig("a", "umaze"), DataConfig(recipe="stitch")), "data.recipe: got 'stitch'"),
        (lambda: transitions(TaskConfig("a", "umaze", env="pointmaze"), DataConfig(recipe="stitch")), "task.maze"),
    ],
)
def test_what_does_not_exist_is_refused(act, message):
    with pytest.raises(WorkbenchError, match=message):
        act()


def test_a_stride_is_what_the_world_says():
    assert POINT.speed * POINT.dt == pytest.approx(STRIDE)
