"""The planner: what a plan keeps exactly, and what it does not depend on."""

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
from envs.maze2d import MAPS, RADIUS, Maze
from planning.config import PlannerConfig
from planning.plan import Plan, Problem
from planning.planner import DiffusionPlanner
from planning.prior import CONDITIONS, TrajectoryPrior
from planning.refine import refined

HORIZON = 8
MAZE = Maze(MAPS["umaze"])


def problem(start=(3.0, 1.0), goal=(1.0, 1.0), maze: Maze = MAZE) -> Problem:
    return Problem(maze, np.array([*start, 0.0, 0.0]), np.array(goal))


@pytest.fixture(scope="module")
def prior() -> TrajectoryPrior:
    torch.manual_seed(0)
    network = ResidualMLP(HORIZON, 2, CONDITIONS, width=32, depth=2)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    normalizer = MinMax(torch.tensor([0.5, 0.5]), torch.tensor([3.5, 3.5]))
    denoiser = NetworkDenoiser(network, Cosine(), "x0")
    return TrajectoryPrior(denoiser, normalizer, HORIZON, (0.02, 0.2)).requires_grad_(False).eval()


def planner(prior: TrajectoryPrior, **settings) -> DiffusionPlanner:
    config = PlannerConfig(**{"candidates": 6, "durations": [35, 70, 105], "refine": "none"} | settings)
    return DiffusionPlanner(prior, ddpm(Cosine(), uniform(6, start=0.98)), config)


def test_a_plan_begins_at_the_start_and_ends_at_the_goal(prior):
    for walls in (0.0, 3.0):
        candidates = planner(prior, walls=walls).candidates([problem()], [0])
        assert candidates.shape == (1, 6, HORIZON, 2)
        np.testing.assert_allclose(candidates[0, :, 0], np.tile([3.0, 1.0], (6, 1)), atol=1e-5)
        np.testing.assert_allclose(candidates[0, :, -1], np.tile([1.0, 1.0], (6, 1)), atol=1e-5)


def test_a_plan_does_not_depend_on_what_is_planned_beside_it(prior):
    make = planner(prior)
    other = problem((1.0, 3.0), (3.0, 2.0))
    together = make.plans([other, problem()], [5, 7])[1]
    np.testing.assert_allclose(together.xy, make(problem(), 7).xy, atol=1e-5)
    assert not np.allclose(together.xy, make(problem(), 8).xy, atol=1e-2)


def test_candidates_have_the_durations_that_were_asked_for(prior):
    make = planner(prior)
    assert make.dt.tolist() == pytest.approx([0.05, 0.05, 0.1, 0.1, 0.15, 0.15])
    plan = make(problem(), 0)
    assert plan.dt * (HORIZON - 1) == pytest.approx(0.35) or plan.dt in make.dt.tolist()


def test_the_shortest_that_fits_is_taken_and_the_roomiest_where_none_does(prior):
    make = planner(prior, candidates=3, durations=[35])
    round_ = np.array([[3, 1], [3, 2], [3, 3], [2, 3], [1, 3], [1, 2], [1, 1.5], [1, 1]], float) - 0.2
    detour = round_.copy()
    detour[3] += [0.0, 0.15]
    through = np.linspace(round_[0], round_[-1], HORIZON)
    taken = make.selected(problem(), np.stack([through, detour, round_]))
    np.testing.assert_array_equal(taken.xy, round_)
    assert taken.clearance(MAZE) >= RADIUS and not make.selected(problem(), np.stack([through] * 3)).valid(problem())
    first = planner(prior, candidates=3, durations=[35], select="first").selected(problem(), np.stack([through] * 3))
    np.testing.assert_array_equal(first.xy, through)


def test_the_quickest_is_the_one_of_the_shortest_time_and_only_then_of_the_shortest_way(prior):
    make = planner(prior, candidates=4, durations=[35, 70], select="quickest")
    straight = np.linspace([2.8, 0.8], [2.8, 1.8], HORIZON)
    bent = straight + 0.05 * np.sin(np.linspace(0.0, np.pi, HORIZON))[:, None]
    here = problem((2.8, 0.8), (2.8, 1.8))
    taken = make.selected(here, np.stack([bent, bent, straight, straight]))
    np.testing.assert_array_equal(taken.xy, bent)
    assert taken.dt == pytest.approx(0.05)
    np.testing.assert_array_equal(make.selected(here, np.stack([bent, straight, straight, straight])).xy, straight)


def test_a_refined_plan_goes_the_same_way_round_shorter_and_faster(prior):
    wide = np.array([[3, 1], [3, 2], [3, 3], [2, 3], [1, 3], [1, 2], [1, 1.5], [1, 1]], float) - 0.2
    drawn = Plan(wide, 0.2)
    timed, cut = (refined(problem((2.8, 0.8), (0.8, 0.8)), drawn, how) for how in ("timed", "cut"))
    for plan in (timed, cut):
        assert plan.valid(problem((2.8, 0.8), (0.8, 0.8)), RADIUS)
        np.testing.assert_allclose(plan.xy[[0, -1]], wide[[0, -1]])
    assert cut.length < timed.length - 0.5 < drawn.length
    assert len(cut.xy) * cut.dt < len(timed.xy) * timed.dt < (HORIZON - 1) * 0.2 * 1.2


def test_walls_push_candidates_out_of_walls(prior):
    make = (planner(prior, walls=w, candidates=30, through="denoiser") for w in (0.0, 20.0))
    free, kept = (each.candidates([problem()], [0])[0] for each in make)
    inside = [np.minimum(MAZE.clearance(xy), 0.0).sum() for xy in (free, kept)]
    assert inside[1] > 0.7 * inside[0]  # both are negative: at most so much of the depth is left


def test_a_critic_takes_the_candidate_that_its_worst_stride_speaks_least_against(prior):
    make = planner(prior, candidates=3, durations=[35], select="critic")
    straight = np.linspace([2.8, 0.8], [2.8, 1.8], HORIZON)
    shifted = [straight + np.array([0.1 * k, 0.0]) for k in range(3)]
    with pytest.raises(WorkbenchError, match="a prior without one"):
        make.selected(problem(), np.stack(shifted))

    class Near(torch.nn.Module):
        """Speaks against one stride of each, most in the first and least in the second."""

        def forward(self, xy, dt):
            r = torch.full((len(xy), HORIZON - 1), 5.0)
            r[torch.arange(3), torch.tensor([0, 3, 6])] = torch.tensor([-3.0, -1.0, -2.0])
            assert (xy[1, :, 0] - 2.9).abs().max() < 1e-5 and dt.tolist() == pytest.approx([0.05] * 3)
            return r

    prior.critic = Near()
    try:
        np.testing.assert_array_equal(make.selected(problem(), np.stack(shifted)).xy, shifted[1])
    finally:
        prior.critic = None


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: problem(start=(2.0, 1.0)), "start: got .*inside a wall"),
        (lambda p: problem(goal=(9.0, 9.0)), "goal: got .*outside of the maze"),
        (lambda p: planner(p, durations=[2000]).candidates([problem()], [0]), "duration: got"),
        (lambda p: planner(p).plans([problem(), problem(maze=Maze(MAPS["umaze"]))], [0, 1]), "several mazes"),
        (lambda p: planner(p, select="best"), "planner.select: got 'best'"),
        (lambda p: planner(p, refine="more"), "planner.refine: got 'more'"),
        (lambda p: planner(p, durations=[]), "planner.durations"),
    ],
)
def test_what_cannot_be_planned_is_refused(prior, act, message):
    with pytest.raises(WorkbenchError, match=message):
        act(prior)


def test_particles_end_where_they_should_and_depend_on_nothing_else(prior):
    make = planner(prior, walls=1.0, particles=True)
    alone = make.candidates([problem()], [7])
    np.testing.assert_allclose(alone[0, :, 0], np.tile([3.0, 1.0], (6, 1)), atol=1e-5)
    np.testing.assert_allclose(alone[0, :, -1], np.tile([1.0, 1.0], (6, 1)), atol=1e-5)
    beside = make.candidates([problem((1.0, 3.0), (3.0, 2.0)), problem()], [5, 7])[1]
    np.testing.assert_allclose(beside, alone[0], atol=1e-4)
    with pytest.raises(WorkbenchError, match="5 candidates for 3 durations"):
        planner(prior, particles=True, candidates=5)


def test_segments_may_have_priors_of_their_own(prior):
    with pytest.raises(WorkbenchError, match="got 2 and 1 priors"):
        DiffusionPlanner(prior, ddpm(Cosine(), uniform(6)), PlannerConfig(segments=2, overlap=2), segments=[prior])
    same, named = (
        DiffusionPlanner(
            prior,
            ddpm(Cosine(), uniform(6, start=0.98)),
            PlannerConfig(segments=2, overlap=2, candidates=3, durations=[70]),
            segments=segments,
        ).candidates([problem()], [3])
        for segments in ([], [prior, prior])
    )
    assert same.shape == (1, 3, 2 * HORIZON - 2, 2)
    np.testing.assert_array_equal(same, named)
