"""Maze2D against D4RL's real transitions, its reference returns, and its own geometry."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.maze2d import GOAL_RADIUS, MAPS, RADIUS, RETURNS, STEPS, Maze, Maze2d, Obstacle, picture, score
from envs.maze2d_expert import WaypointController

D4RL = Path(os.environ.get("WORKBENCH_DATA", "absent")) / "planning" / "d4rl_maze2d_excerpts"
NAMES = sorted(MAPS)


@pytest.fixture(scope="module", params=NAMES)
def excerpt(request):
    """A maze's name, and 20,000 steps of D4RL's own data."""
    path = D4RL / f"maze2d-{request.param}-sparse-v1-luotest.hdf5"
    if not path.exists():
        pytest.skip(f"D4RL's transitions are not at {path}; set WORKBENCH_DATA to the folder that holds planning/")
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        state = np.concatenate([file["infos/qpos"][:], file["infos/qvel"][:]], 1).astype(float)
        return request.param, {"state": state} | {key: file[key][:] for key in ("observations", "actions", "rewards")}


def test_every_real_transition_replays(excerpt):
    name, data = excerpt
    states, actions = data["state"], data["actions"].astype(float)
    env = Maze2d(name, render_mode=None)
    near = env.maze.clearance(states[:-1, :2]) < RADIUS + 0.002
    assert near.sum() > 5  # contacts are among them
    chosen = np.concatenate([np.flatnonzero(near), np.flatnonzero(~near)[::5]])
    replayed = np.stack([env.replay(states[i], actions[i]) for i in chosen])
    error = np.abs(replayed - states[chosen + 1]).max(1)
    assert error.max() < 1e-4 and np.median(error) < 1e-6


def test_the_walls_are_where_the_real_ball_never_was(excerpt):
    name, data = excerpt
    maze = Maze(MAPS[name])
    assert maze.clearance(data["state"][:, :2]).min() > 0.07
    visited = {tuple(cell) for cell in maze.cell(data["state"][:, :2])}
    assert visited == {tuple(cell) for cell in maze.free.astype(int)}


def test_the_reward_is_that_of_the_state_before_in_the_real_data(excerpt):
    # D4RL labelled its rewards one step early (its issue #194); the distance that they speak of is the environment's
    name, data = excerpt
    near = np.linalg.norm(data["observations"][:, :2] - Maze(MAPS[name]).goal, axis=1) <= GOAL_RADIUS
    assert (near == (data["rewards"] > 0)).mean() > 0.995


def test_it_is_a_gymnasium_environment():
    check_env(Maze2d("umaze"), skip_render_check=False)


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_lasts_as_d4rls_and_never_ends_at_the_goal(name):
    env = Maze2d(name, render_mode=None)
    env.reset(seed=0, options={"state": env.maze.goal})
    steps, total, truncated = 0, 0.0, False
    while not truncated:
        _, reward, terminated, truncated, info = env.step(np.zeros(2))
        steps, total = steps + 1, total + reward
        assert not terminated and info["is_success"]
    assert steps == STEPS[name] == total
    # the most that there is: 200, 222, 297 (published tables lie below)
    assert 199 < score(name, total) < 298


def test_starts_and_goals_are_drawn_as_d4rl_draws_them():
    env = Maze2d("medium", multi=True, render_mode=None)
    starts, goals, speeds = [], [], []
    for seed in range(300):
        state, info = env.reset(seed=seed)
        starts.append(state[:2])
        goals.append(info["goal"])
        speeds.append(state[2:])
    for places in (np.array(starts), np.array(goals)):
        apart = np.abs(places[:, None] - env.maze.free[None]).max(-1)
        assert (apart.min(1) <= 0.1).all() and len(set(apart.argmin(1))) == len(env.maze.free)
    assert abs(np.std(speeds) - 0.1) < 0.01
    assert not np.array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(env.reset(seed=7)[0], env.reset(seed=7)[0])
    single = Maze2d("medium", render_mode=None)
    assert (single.reset(seed=1)[1]["goal"] == single.maze.goal).all()


def test_an_episode_does_not_depend_on_the_one_before():
    env, fresh = (Maze2d("umaze", render_mode=None) for _ in range(2))
    env.reset(seed=1)
    for _ in range(100):
        env.step(np.array([1.0, -1.0]))
    for one in (env, fresh):
        one.reset(seed=2)
    for _ in range(100):
        assert (env.step(np.array([-1.0, 0.4]))[0] == fresh.step(np.array([-1.0, 0.4]))[0]).all()


def test_the_speed_is_bounded_and_actions_are_clipped():
    env = Maze2d(("#######", "#OOOOG#", "#######"), render_mode=None)
    strong, most = [], []
    for force, states in ((50.0, strong), (1.0, most)):
        env.reset(seed=0, options={"state": np.array([1.0, 1.0])})
        for _ in range(60):
            states.append(env.step(np.array([0.0, force]))[0])
    np.testing.assert_array_equal(strong, most)
    # clipped before the step, so one step's acceleration may come on top
    assert 4.9 < max(s[3] for s in most) < 5.3


@pytest.mark.parametrize("square", [False, True])
def test_obstacles_stop_the_ball_where_the_distance_says(square):
    rows = ("#########", "#OOOOOOG#", "#########")
    env = Maze2d(rows, obstacles=[Obstacle((0.8, 4.0), 0.3, square)], render_mode=None)
    env.reset(seed=0, options={"state": np.array([0.8, 1.0])})
    least = np.inf
    for _ in range(300):
        state, *_, info = env.step(np.array([0.0, 1.0]))
        least = min(least, float(env.maze.clearance(state[:2])))
    assert state[1] < 4.0 and not info["is_success"]
    assert 0.05 < least < RADIUS + 0.01
    free = Maze2d(rows, render_mode=None)
    free.reset(seed=0, options={"state": np.array([0.8, 1.0])})
    assert any(free.step(np.array([0.0, 1.0]))[4]["is_success"] for _ in range(300))


def test_clearance_is_the_distance_to_what_is_solid():
    maze = Maze(MAPS["large"], [Obstacle((1.0, 1.0), 0.2), Obstacle((7.0, 10.0), 0.25, True)])
    rng = np.random.default_rng(0)
    xy = rng.uniform([-0.7, -0.7], np.array(maze.walls.shape) - 0.7, (150, 2))
    # the nearest solid point of a fine grid, an implementation without any formula of boxes
    axes = [np.arange(-0.7, n - 0.7, 0.04) + 0.02 for n in maze.walls.shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    solid = maze.walls[tuple(maze.cell(grid).T)] | (np.linalg.norm(grid - [1.0, 1.0], axis=1) < 0.2)
    solid |= (np.abs(grid - [7.0, 10.0]) < 0.25).all(1)
    found = maze.clearance(xy)
    for place, distance in zip(xy, found, strict=True):
        apart = np.linalg.norm(grid - place, axis=1)
        if abs(distance) > 0.04:
            assert (distance <= 0) == solid[apart.argmin()]
        if distance > 0.0:
            assert abs(apart[solid].min() - distance) < 0.04
        else:
            assert apart[~solid].min() >= -distance - 0.04  # boxes are joined in part: never too deep


def test_ways_go_round_walls_and_obstacles():
    maze = Maze(MAPS["umaze"])
    way = maze.way(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    assert way.tolist() == [[3, 1], [3, 2], [3, 3], [2, 3], [1, 3], [1, 2], [1, 1]]
    with pytest.raises(ValueError, match="no connection"):
        Maze(MAPS["umaze"], [Obstacle((1.8, 2.8), 0.45, True)]).way(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
    detour = Maze(MAPS["large"], [Obstacle((0.8, 2.8), 0.45, True)]).way(np.array([1.0, 1.0]), np.array([1.0, 4.0]))
    direct = Maze(MAPS["large"]).way(np.array([1.0, 1.0]), np.array([1.0, 4.0]))
    assert len(direct) == 4 and len(detour) > 4


def returns_of(env: Maze2d, controller: WaypointController, episodes: int) -> np.ndarray:
    """The return of every episode."""
    found = []
    for seed in range(episodes):
        state, info = env.reset(seed=seed)
        total, truncated = 0.0, False
        while not truncated:
            state, reward, _, truncated, info = env.step(controller.act(state, info["goal"]))
            total += reward
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize(("name", "multi", "low", "high"), [("umaze", True, 135, 175), ("large", True, 190, 230)])
def test_the_controller_scores_past_d4rls_reference(name, multi, low, high):
    env = Maze2d(name, multi, render_mode=None)
    returns = returns_of(env, WaypointController(env.maze, np.random.default_rng(0)), 20)
    assert (returns > 0).all() and low < score(name, float(returns.mean())) < high


def test_a_controller_kept_for_all_episodes_is_d4rls_reference():
    # D4RL's own reference return, 161.86 on umaze, is that of one controller that never looks for a second way
    env = Maze2d("umaze", render_mode=None)
    returns = returns_of(env, WaypointController(env.maze, np.random.default_rng(0), stale=True), 40)
    assert abs(returns.mean() - RETURNS["umaze"][1]) < 3 * returns.std() / np.sqrt(len(returns))
    assert (returns == 0).mean() > 0.1  # it drives into walls


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Maze2d("huge"), "expected one of"),
        (lambda: Maze2d(("###", "#G", "###")), "rows of one length"),
        (lambda: Maze2d(("####", "#GOO", "####")), "walls all around"),
        (lambda: Maze2d(("####", "#OO#", "####")), "expected a goal"),
        (lambda: Maze2d("umaze", obstacles=[Obstacle((1.0, 1.0), -0.1)]), "radius > 0"),
        (lambda: Maze2d("umaze", render_mode="human"), "render_mode"),
        (lambda: Maze2d("umaze").reset(options={"state": np.array([2.0, 1.0])}), "m inside a wall"),
        (lambda: Maze2d("umaze").reset(options={"goal": np.array([9.0, 1.0])}), "outside of the maze"),
        (lambda: Maze2d("umaze").reset(options={"goal": np.array([np.nan, 1.0])}), "2 finite numbers"),
        (lambda: Maze2d("umaze").reset(options={"start": np.zeros(2)}), "'state' and 'goal' alone"),
    ],
)
def test_what_is_no_maze_is_refused_with_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_steps_are_refused():
    env = Maze2d("umaze")
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="2 finite numbers"):
        env.step(np.array([np.nan, 0.0]))


def test_the_picture_shows_walls_goal_and_ball():
    maze = Maze(MAPS["umaze"])
    image = picture(maze, np.array([1.0, 1.0]), np.array([3.0, 1.0]), scale=20)
    assert image.shape == (100, 100, 3)

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(image[int(100 - (y + 0.7) * 20), int((x + 0.7) * 20)])

    assert at(1.0, 1.0) == (60, 160, 90) and at(3.0, 1.0) == (35, 90, 200)
    assert at(1.8, 1.0) == (90, 98, 110) and at(2.8, 2.8) == (250, 250, 250)
