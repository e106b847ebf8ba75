"""Every peer on the same problems: it arrives, is the same for the same seed, and says so where there is no way."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from envs.maze2d import MAPS, Maze, Maze2d, Obstacle
from planning.execute import STIFF, Gains, execute
from planning.peers.bfs import Bfs
from planning.peers.chomp import Chomp
from planning.peers.mppi import Mppi
from planning.peers.ompl_planner import Ompl
from planning.peers.waypoint import Waypoint
from planning.plan import Plan, Problem

OMPL = pytest.mark.skipif(find_spec("ompl") is None, reason="needs ompl: pip install 'diffusion-workbench[peers]'")
MPPI = pytest.mark.skipif(find_spec("pytorch_mppi") is None, reason="needs pytorch-mppi: the extra 'peers'")
PLANNERS = [
    pytest.param(Bfs, id="bfs"),
    pytest.param(lambda: Bfs(spacing=0.25), id="bfs on a lattice"),
    pytest.param(lambda: Chomp(starts=24, steps=150), id="chomp"),
    pytest.param(Ompl, id="ompl", marks=OMPL),
]


def problem(start=(2.8, 0.8), goal=(0.8, 0.8), obstacles=()) -> Problem:
    return Problem(Maze(MAPS["umaze"], obstacles), np.array([*start, 0.0, 0.0]), np.array(goal))


@pytest.mark.parametrize("make", PLANNERS)
def test_a_plan_round_the_wall_fits_and_is_the_same_for_the_same_seed(make):
    plan = make()(problem(), 5)
    assert plan.valid(problem()) and plan.length > 4.0
    np.testing.assert_array_equal(plan.xy, make()(problem(), 5).xy)
    e = execute(Maze2d("umaze", max_steps=900), problem(), plan, 0, STIFF)
    assert e.success and e.collisions == 0 and e.tracking_max < 0.1


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_search_beats_the_correct_controller(maze):
    env = Maze2d(maze)
    scores = []
    for seed in range(4):
        asked = Problem(env.maze, env.reset(seed=seed)[0], env.goal)
        ours, theirs = execute(env, asked, Bfs(), 0, STIFF), execute(env, asked, Waypoint(), seed, Gains())
        assert ours.success and ours.collisions == 0 and theirs.success
        scores.append(ours.score - theirs.score)
    assert np.mean(scores) > 5.0


def test_an_obstacle_between_two_cells_takes_a_lattice_to_get_around():
    asked = problem(obstacles=[Obstacle((1.8, 2.55), 0.2)])
    assert Bfs(spacing=0.1)(asked, 0).valid(asked)


@MPPI
def test_mppi_drives_to_a_near_goal():
    asked = problem((2.8, 0.8), (2.8, 2.3))
    peer = Mppi(samples=64, horizon=8)
    env = Maze2d("umaze", max_steps=80)
    e = execute(env, asked, peer, 0)
    assert e.success
    np.testing.assert_array_equal(e.actions, execute(env, asked, peer, 0).actions)


WALLED = [Obstacle((x, 2.8), 0.6) for x in (0.8, 1.8, 2.8)]


@pytest.mark.parametrize(
    "make",
    [
        *PLANNERS[:2],
        pytest.param(lambda: Chomp(starts=4, steps=20), id="chomp"),
        pytest.param(lambda: Ompl(legs=200), id="ompl", marks=OMPL),
        pytest.param(Waypoint, id="waypoint"),
        pytest.param(lambda: Mppi(samples=8, horizon=2), id="mppi", marks=MPPI),
    ],
)
def test_where_there_is_no_way_one_error_says_so(make):
    with pytest.raises(WorkbenchError, match="no way from"):
        found = make()(problem(obstacles=WALLED), 0)
        assert not isinstance(found, Plan)
