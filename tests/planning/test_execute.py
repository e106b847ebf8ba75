"""Plans carried out: what came of them is what it must be by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from envs.maze2d import MAPS, Maze, Maze2d, Obstacle
from planning.ball import Limits
from planning.execute import STIFF, Gains, Replan, execute
from planning.peers.waypoint import Waypoint
from planning.plan import Plan, Problem
from planning.timing import timed

ENV = Maze2d("umaze")


def problem(start=(2.8, 0.8), goal=(2.8, 2.8)) -> Problem:
    return Problem(ENV.maze, np.array([*start, 0.0, 0.0]), np.array(goal))


def straight(to=(2.8, 2.8)) -> Plan:
    return timed(np.array([[2.8, 0.8], to]), np.zeros(2), Limits())


def test_a_plan_that_fits_is_followed_and_its_numbers_are_those_of_the_way():
    e = execute(ENV, problem(), straight(), 0, STIFF)
    assert e.success and e.valid and e.collisions == 0
    assert e.tracking_max < 0.06
    # 2 m from rest to rest: at the goal's edge after at least the time that 1.5 m take at full speed
    assert e.first is not None and 1.5 / 5.0 * 100 < e.first < len(straight().xy)
    assert e.path_ratio == pytest.approx(1.0, abs=0.02) and e.length == pytest.approx(1.5, abs=0.06)
    assert np.linalg.norm(e.states[-1, :2] - [2.8, 2.8]) < 0.02
    assert e.rewards.sum() == 300 - e.first + 1


def test_a_plan_through_a_wall_is_not_valid_and_meets_it():
    e = execute(ENV, problem(goal=(0.8, 0.8)), straight((0.8, 0.8)), 0, STIFF)
    assert not e.valid and not e.success and e.first is None and e.collisions > 100
    assert np.isnan(e.path_ratio) and e.score < 0.0


def test_the_same_seed_gives_the_same_episode_and_controllers_remember_nothing():
    first, again = (execute(ENV, problem(), Waypoint(), 3) for _ in range(2))
    np.testing.assert_array_equal(first.states, again.states)
    assert first.valid is None and first.success and len(first.tracking) == 0
    other = execute(ENV, problem(goal=(0.8, 0.8)), Waypoint(), 3)
    assert other.success


def test_far_from_its_plan_the_ball_is_given_another():
    """The first plan leads away from the goal."""
    made = []

    def planner(asked: Problem, seed: int) -> Plan:
        made.append(asked.start)
        # the second time, too late to be of use elsewhere: from where the ball is to the goal
        return timed(np.stack([asked.start[:2], asked.goal]), asked.start[2:], Limits())

    away = timed(np.array([[2.8, 0.8], [2.8, 2.8]]), np.zeros(2), Limits())
    here = problem(goal=(2.8, 1.8))
    e = execute(ENV, here, away, 0, STIFF, Replan(planner, every=20))
    assert len(made) >= 2 and e.success and e.failed_replans == 0
    assert np.linalg.norm(e.states[-1, :2] - here.goal) < 0.02
    np.testing.assert_allclose(made[0], e.states[20])

    def none(asked: Problem, seed: int) -> Plan:
        raise WorkbenchError("plan: got none.")

    kept = execute(ENV, here, away, 0, STIFF, Replan(none, every=100))
    assert kept.failed_replans == 2 and np.linalg.norm(kept.states[-1, :2] - [2.8, 2.8]) < 0.02


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: execute(Maze2d("medium"), problem(), straight(), 0), "another maze"),
        (
            lambda: execute(
                ENV,
                Problem(Maze(MAPS["umaze"], [Obstacle((1.0, 1.0), 0.1)]), problem().start, problem().goal),
                straight(),
                0,
            ),
            "other obstacles",
        ),
        (lambda: execute(ENV, problem((0.8, 0.8)), straight(), 0), "m from the start"),
        (lambda: execute(ENV, problem(), Waypoint(), 0, replan=Replan(Waypoint(), every=5)), "a controller always"),
        (lambda: Replan(Waypoint()), "set one of them"),
        (lambda: Gains(kp=-1.0), "kp"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(act, message):
    with pytest.raises(WorkbenchError, match=message):
        act()
