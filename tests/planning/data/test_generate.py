"""Generated transitions: D4RL's statistics, the physics of the maze, the same bytes from any number of processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from envs.maze2d import STEPS, Maze2d
from planning.data import files
from planning.data import generate as module
from planning.data.generate import generate
from planning.data.transitions import Transitions
from planning.trajectories import breaks

D4RL = Path(os.environ.get("WORKBENCH_DATA", "absent")) / "planning" / "d4rl_maze2d_excerpts"


def replay_errors(maze: str, stream: Transitions, rows: np.ndarray) -> np.ndarray:
    """How far the state after each step is from where the environment's step leads."""
    env = Maze2d(maze, render_mode=None)
    states, actions = stream.observations.astype(float), stream.actions.astype(float)
    return np.array([np.abs(env.replay(states[i], actions[i]) - states[i + 1]).max() for i in rows])


@pytest.fixture(scope="module")
def made() -> Transitions:
    return generate("umaze", 2_500, seed=1)


def test_every_generated_transition_is_a_step_of_the_environment(made):
    # goals change on the way, and no step may be missing or repeated there
    whole = np.flatnonzero(~breaks(made.observations[:, :2]))
    assert len(whole) == 2_499 and made.timeouts[whole].sum() > 20
    errors = replay_errors("umaze", made, whole)
    # float32 rounds the state that is replayed; a contact's force amplifies that
    assert np.quantile(errors, 0.99) < 1e-5 and errors.max() < 1e-3
    assert np.abs(made.actions).max() == 1.0


def test_goals_are_drawn_near_free_cells_and_end_when_reached(made):
    free = Maze2d("umaze").maze.free
    ends = np.flatnonzero(made.timeouts)
    apart = np.abs(made.goals[:, None] - free[None].astype(np.float32)).max(-1)
    assert (apart.min(1) <= 0.1 + 1e-6).all() and set(apart.argmin(1)) == set(range(len(free)))
    changes = np.flatnonzero((made.goals[1:] != made.goals[:-1]).any(1))
    np.testing.assert_array_equal(changes, ends[:-1])
    assert np.diff(ends, prepend=-1).max() <= STEPS["umaze"]
    distance = np.linalg.norm(made.observations[:, :2] - np.round(made.goals), axis=1)
    assert (distance[ends[:-1]] < 0.1).all() and (distance[~made.timeouts] >= 0.1 - 1e-6).all()


def test_a_goal_that_cannot_be_reached_in_time_is_given_up(monkeypatch):
    monkeypatch.setitem(module.STEPS, "umaze", 30)
    stream = generate("umaze", 300, seed=0)
    lengths = np.diff(np.flatnonzero(stream.timeouts), prepend=-1)
    assert lengths.max() == 30 and not breaks(stream.observations[:-1, :2])[:-1].any()


def test_the_same_seed_gives_the_same_bytes_however_many_processes(made, monkeypatch):
    assert generate("umaze", 2_500, seed=1).content_sha256 == made.content_sha256
    assert generate("umaze", 2_500, seed=2).content_sha256 != made.content_sha256
    monkeypatch.setattr(module, "CHUNK", 700)
    told: list[int] = []
    alone = generate("umaze", 2_000, seed=1, workers=1, progress=told.append)
    shared = generate("umaze", 2_000, seed=1, workers=2)
    assert told == [700, 700, 600]
    assert alone.content_sha256 == shared.content_sha256 != made.content_sha256
    # chunks start anew, say so, and do not depend on how many follow
    np.testing.assert_array_equal(np.flatnonzero(breaks(alone.observations[:, :2])), [699, 1399, 1999])
    assert alone.timeouts[[699, 1399, 1999]].all()
    longer = generate("umaze", 3_000, seed=1)
    np.testing.assert_array_equal(longer.observations[:1400], alone.observations[:1400])
    assert not (alone.observations[:700] == alone.observations[700:1400]).any(1).any()


def check_statistics(stream: Transitions, real: Transitions) -> None:
    """That a stream is driven as the real one is: within 5 %, correlations within 0.05 (four standard errors)."""
    found, wanted = stream.statistics(), real.statistics()
    for name in ("speed", "saturated", "size"):
        assert abs(found[name] / wanted[name] - 1.0) < 0.05, name
    for lag in (1, 5, 10):
        assert abs(found[f"autocorrelation {lag}"] - wanted[f"autocorrelation {lag}"]) < 0.05, lag
    # goals differ in how far they are: four standard errors of the mean of about 70
    assert abs(found["steps of a goal"] / wanted["steps of a goal"] - 1.0) < 0.3


def excerpt(maze: str) -> Transitions:
    path = D4RL / f"maze2d-{maze}-sparse-v1-luotest.hdf5"
    if not path.exists():
        pytest.skip(f"D4RL's transitions are not at {path}; set WORKBENCH_DATA to the folder that holds planning/")
    return files.load(path)


def test_the_ball_is_driven_as_in_d4rls_data():
    real = excerpt("large")
    check_statistics(generate("large", 20_000, seed=0), real)
    for noise in (0.3, 0.7):
        with pytest.raises(AssertionError):
            check_statistics(generate("large", 5_000, seed=0, noise=noise), real)


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_every_real_transition_replays_now_that_stale_rows_are_mended(maze):
    real = excerpt(maze)
    ends = np.flatnonzero(real.timeouts[:-2])
    # the rows that D4RL's own observations have wrong: to and from the one after each end of a goal
    errors = replay_errors(maze, real, np.concatenate([ends, ends + 1]))
    assert errors.max() < 1e-4
    assert not breaks(real.observations[:, :2])[:-1].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge", 10, 0), "expected one of umaze, medium, large"),
        (("umaze", 0, 0), "steps: got 0"),
        (("umaze", 10, -1), "seed: got -1"),
        (("umaze", 10, 0, -0.5), "noise: got -0.5"),
        (("umaze", 10, 0, float("nan")), "noise: got nan"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments, message):
    with pytest.raises(WorkbenchError, match=message):
        generate(*arguments)


def test_an_interrupt_stops_the_processes(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 200)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    import multiprocessing

    with pytest.raises(KeyboardInterrupt):
        generate("umaze", 2_000, seed=0, workers=2, progress=interrupt)
    assert not multiprocessing.active_children()
