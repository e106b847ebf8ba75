"""Plans of segments, and plans followed in the point mazes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import uniform
from diffusion_core.nn.mlp import ResidualMLP
from diffusion_core.normalize import MinMax
from diffusion_core.schedule import Cosine
from diffusion_core.solvers import ddpm
from envs.pointmaze import MAPS, POINT, STRIDE, PointMaze
from planning.config import PlannerConfig
from planning.follow import ThroughCells, follow, tasks
from planning.plan import Plan, Problem
from planning.planner import DiffusionPlanner
from planning.prior import CONDITIONS, TrajectoryPrior

HORIZON = 9


def straight(xy: np.ndarray, dt: float = POINT.dt):
    """Always the same plan."""
    return lambda problem, seed: Plan(xy, dt)


def room(env: PointMaze, start=(0.0, 0.0), goal=(0.0, 4.0)) -> Problem:
    return Problem(env.maze, np.array([*start, 0.0, 0.0]), np.array(goal))


@pytest.fixture(scope="module")
def medium() -> PointMaze:
    return PointMaze("medium", render_mode=None)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_who_knows_the_map_reaches_the_goal_of_every_task(name):
    env = PointMaze(name, render_mode=None)
    for problem in tasks(env, 2, 0):
        attempt = follow(env, problem, ThroughCells(), 0)
        assert attempt.success and attempt.valid and attempt.contacts == 0
        shortest = ThroughCells()(problem).length
        # at 2 m/s, and 1 m of it need not be gone
        assert shortest - 1.5 < STRIDE * attempt.steps < shortest + 1.0
        assert np.linalg.norm(attempt.xy[-1] - problem.goal) <= POINT.reach


def test_a_plan_within_the_limits_is_followed_to_the_digit(medium):
    way = np.stack([np.linspace(0.0, 0.6, 25), np.linspace(0.0, 4.0, 25)], -1)
    attempt = follow(medium, room(medium), straight(way), 0)
    np.testing.assert_allclose(attempt.xy, way[: len(attempt.xy)], atol=1e-9)
    assert attempt.success and len(attempt.planning_seconds) == 1


def test_a_plan_that_asks_for_more_is_trailed_at_the_limit(medium):
    attempt = follow(medium, room(medium), straight(np.array([[0.0, 0.0], [0.0, 4.0]])), 0)
    assert attempt.success and attempt.steps == 15  # 3 m at 0.2 m a step


def test_a_plan_through_a_wall_fails_and_another_one_helps(medium):
    # from (0, 0) to (8, 0) there is a wall at x = 10 on the way to (12, 0)
    wrong, goal = np.linspace([0.0, 0.0], [16.0, 0.0], 90), (16.0, 0.0)
    problem = room(medium, goal=goal)
    once = follow(medium, problem, straight(wrong), 0)
    assert not once.success and not once.valid and once.contacts > 100 and once.steps == medium.max_steps
    seen: list[tuple[np.ndarray, int]] = []

    def second(problem: Problem, seed: int) -> Plan:
        seen.append((problem.start[:2], seed))
        return Plan(wrong, POINT.dt) if len(seen) == 1 else ThroughCells()(problem)

    again = follow(medium, problem, second, 7, plans=3)
    assert again.success and not again.valid and len(seen) == len(again.planning_seconds) == 2
    assert seen[0][1] == 7 != seen[1][1] and seen[1][0] == pytest.approx([5.34, 0.0], abs=0.2)


def test_another_maze_is_refused(medium):
    with pytest.raises(WorkbenchError, match="another maze"):
        follow(PointMaze("medium", render_mode=None), room(medium), ThroughCells(), 0)


@pytest.fixture(scope="module")
def prior() -> TrajectoryPrior:
    torch.manual_seed(0)
    network = ResidualMLP(HORIZON, 2, CONDITIONS, width=32, depth=2)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    normalizer = MinMax(torch.tensor([-2.0, -2.0]), torch.tensor([22.0, 22.0]))
    denoiser = NetworkDenoiser(network, Cosine(), "x0")
    return TrajectoryPrior(denoiser, normalizer, HORIZON, (0.2, 0.4)).requires_grad_(False).eval()


def planner(prior: TrajectoryPrior, **settings) -> DiffusionPlanner:
    asked = {"candidates": 4, "durations": [16, 32], "segments": 3, "overlap": 2, "refine": "none", "walls": 0.0}
    return DiffusionPlanner(prior, ddpm(Cosine(), uniform(6, start=0.98)), PlannerConfig(**asked | settings), POINT)


@pytest.mark.parametrize("settings", [{}, {"walls": 2.0}, {"langevin": 2}])
def test_segments_make_one_plan_from_the_start_to_the_goal(medium, prior, settings):
    make = planner(prior, **settings)
    assert make.horizon == 3 * HORIZON - 2 * 2
    # each segment at the pace that was asked for, in steps of this world
    assert make.dt.tolist() == pytest.approx([0.2, 0.2, 0.4, 0.4])
    problem = room(medium, goal=(4.0, 8.0))
    candidates = make.candidates([problem], [0])
    assert candidates.shape == (1, 4, make.horizon, 2)
    np.testing.assert_allclose(candidates[0, :, 0], np.tile([0.0, 0.0], (4, 1)), atol=1e-4)
    np.testing.assert_allclose(candidates[0, :, -1], np.tile([4.0, 8.0], (4, 1)), atol=1e-4)
    np.testing.assert_allclose(make(problem, 0).xy[-1], [4.0, 8.0], atol=1e-4)


def test_a_plan_of_segments_does_not_depend_on_what_is_planned_beside_it(medium, prior):
    make, problem = planner(prior, langevin=1), room(medium)
    together = make.plans([room(medium, goal=(4.0, 0.0)), problem], [5, 7])[1]
    np.testing.assert_allclose(together.xy, make(problem, 7).xy, atol=1e-4)


def test_one_segment_is_the_prior_itself(medium, prior):
    alone = planner(prior, segments=1).candidates([room(medium)], [0])
    assert alone.shape[2] == HORIZON and planner(prior, segments=1).windows == ()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p, e: planner(p, segments=0), "planner.segments"),
        (lambda p, e: planner(p, overlap=6), "overlap"),
        (lambda p, e: planner(p, plans=0), "planner.plans"),
        (lambda p, e: planner(p, durations=[80]).candidates([room(e)], [0]), "duration: got"),
        (lambda p, e: planner(p, refine="cut")(room(e), 0), "without inertia"),
    ],
)
def test_what_cannot_be_planned_is_refused(medium, prior, act, message):
    with pytest.raises(WorkbenchError, match=message):
        act(prior, medium)
