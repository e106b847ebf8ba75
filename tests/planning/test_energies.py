"""Energies of trajectories: against finite differences, the maze's own distances, and what they must ignore."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from envs.maze2d import MAPS, Maze, Obstacle
from planning.energies import (
    Cost,
    Discs,
    Goal,
    Length,
    Separation,
    Smooth,
    Speed,
    Through,
    Value,
    Via,
    Walls,
    between,
    checked,
    clearance,
    every_pair,
)

OBSTACLES = (Obstacle((1.3, 5.1), 0.25), Obstacle((3.0, 6.0), 0.2, square=True), Obstacle((6.2, 1.4), 0.3))
LARGE = Maze(MAPS["large"], OBSTACLES)
OPEN = Maze(("#####", "#OOO#", "#OOO#", "#OOO#", "#####"))
CENTRE = (2.0, 2.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wander(*shape: int, seed: int = 0, scale: float = 0.35) -> Tensor:
    """Trajectories that go through free space and walls of the large maze, m."""
    xy = torch.randn(*shape, 2, generator=seeded(seed), dtype=torch.float64).cumsum(-2) * scale
    return xy + torch.tensor([4.0, 5.0], dtype=torch.float64)


def straight(a, b, n: int = 9) -> Tensor:
    shares = torch.linspace(0.0, 1.0, n, dtype=torch.float64)[:, None]
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return (a + shares * (b - a))[None]


ONE = {
    "walls": Walls(LARGE, 0.25),
    "discs": Discs(((4.0, 5.0, 0.4), (3.0, 3.0, 0.9)), 0.3),
    "goal": Goal((1.0, 2.0)),
    "goal at a step": Goal((1.0, 2.0), step=-1),
    "via": Via((3.5, 4.5), 0.2),
    "through": Through((3.5, 4.5), 0.2, width=2.0),
    "length": Length(),
    "smooth": Smooth(),
    "speed": Speed(1.0, 0.12),
    "value": Value(lambda xy: (xy**3).sum((-1, -2))),
    "sum": 0.5 * Length() - 2.0 * (Smooth() + Goal((0.0, 0.0), step=3)),
}


def check_gradient(cost: Cost, xy: Tensor, h: float = 1e-6) -> None:
    """Autograd's gradient along random directions against central differences."""
    xy = xy.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(xy).sum(), xy)
    for seed in range(4):
        direction = torch.randn(xy.shape, generator=seeded(seed), dtype=xy.dtype)
        with torch.no_grad():
            expected = (cost(xy + h * direction) - cost(xy - h * direction)) / (2.0 * h)
        got = (gradient * direction).flatten(1).sum(1)
        assert torch.allclose(got, expected, rtol=2e-6, atol=2e-6 * float(1.0 + expected.abs().max()))


@pytest.mark.parametrize("name", ONE)
def test_gradients_are_those_of_finite_differences(name):
    cost, xy = ONE[name], wander(5, 12)
    assert cost(xy).shape == (5,) and (cost(xy) != 0.0).any()
    check_gradient(cost, xy)
    check_gradient(cost, wander(4, 3, 12, seed=1))


def test_gradient_of_separation():
    xy = wander(4, 3, 12, scale=0.2)
    assert (Separation(0.8)(xy) > 0.0).all()
    check_gradient(Separation(0.8), xy)
    check_gradient(Separation(0.8, ((2, 0),)), xy)


@pytest.mark.parametrize("name", ONE)
def test_robots_are_summed_and_the_dtype_stays(name):
    cost, xy = ONE[name], wander(4, 3, 12)
    each = torch.stack([cost(xy[:, k]) for k in range(3)]).sum(0)
    assert torch.allclose(cost(xy), each, rtol=1e-12)
    single = cost(xy.float())
    assert single.dtype == torch.float32 and torch.allclose(single.double(), each, rtol=1e-3, atol=1e-4)
    assert cost(xy[:0, 0]).shape == (0,)


@pytest.mark.parametrize("maze", [LARGE, OPEN, Maze(MAPS["medium"]), Maze(MAPS["umaze"])])
def test_clearance_is_the_mazes_own_where_there_is_some(maze):
    size = np.array(maze.walls.shape)
    xy = np.random.default_rng(0).uniform([-2.0, -2.0], size + 1.0, (20_000, 2))
    own, ours = maze.clearance(xy), clearance(maze, torch.tensor(xy)).numpy()
    free = own > 0.0
    assert free.sum() > 1000
    np.testing.assert_allclose(ours[free], own[free], rtol=0.0, atol=1e-12)
    # inside, the maze's own depth ends at the seams between boxes, ours at free space
    assert (ours[~free] <= own[~free] + 1e-12).all()
    assert (ours[~free] < 0.0).sum() > (~free).sum() * 0.999


def test_depth_in_walls_is_the_distance_to_free_space():
    maze = Maze(MAPS["medium"])
    size = np.array(maze.walls.shape)
    axes = [np.arange(-0.7, n - 0.7 + 1e-9, 0.02) for n in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    free = grid[maze.clearance(grid) >= 0.0]
    # seams of boxes have the maze's clearance 0, too
    free = free[[not maze.walls[tuple(c)] for c in maze.cell(free)]]
    xy = np.random.default_rng(1).uniform(-0.7, size - 0.7, (300, 2))
    xy = xy[maze.clearance(xy) < 0.0]
    nearest = np.array([np.linalg.norm(free - place, axis=1).min() for place in xy])
    ours = clearance(maze, torch.tensor(xy)).numpy()
    assert len(xy) > 100
    assert np.abs(-ours - nearest).max() < 0.03


def test_from_deep_inside_a_wall_the_gradient_leads_out():
    """Along a wall of several boxes, from the very seam of two."""
    maze = Maze(MAPS["medium"])
    xy = torch.tensor([[[2.3 - 1e-3, 3.0], [2.3 + 1e-3, 3.0], [0.0, 3.3]]], dtype=torch.float64)
    cost = Walls(maze, 0.2, between=0)
    for _ in range(200):
        xy = xy.detach().requires_grad_()
        value = cost(xy).sum()
        xy = xy - 0.1 * torch.autograd.grad(value, xy)[0]
    assert (clearance(maze, xy.detach()) > 0.19).all()


def test_walls_are_met_between_the_nodes():
    way = straight((1.0, 1.0), (3.0, 3.0))
    maze = Maze(("######", "#OO#O#", "#OO#O#", "######"))
    jump = torch.tensor([[[1.0, 2.0], [1.0, 4.0]]], dtype=torch.float64)
    assert (clearance(maze, jump) > 0.2).all()
    assert float(Walls(maze, 0.2, between=0)(jump)) == 0.0
    assert float(Walls(maze, 0.2)(jump)) > 0.1
    assert float(Walls(OPEN, 0.2)(way)) == 0.0
    assert float(Walls(OPEN, 0.2)(way - 1.4)) > 0.0
    # the disc stands between two nodes
    assert float(Discs(((2.0, 2.0, 0.1),), 0.05, between=0)(way[:, ::8])) == 0.0
    assert float(Discs(((2.0, 2.0, 0.1),), 0.05)(way[:, ::8])) == 0.0  # 4 points miss the middle
    assert float(Discs(((2.0, 2.0, 0.1),), 0.05, between=5)(way[:, ::8])) == pytest.approx(0.15**2)


def test_walls_by_hand():
    """One node 0.1 m from a wall, no points between."""
    xy = torch.tensor([[[0.4, 2.0], [1.0, 2.0]]], dtype=torch.float64)
    assert float(Walls(OPEN, 0.3, between=0)(xy)) == pytest.approx(0.2**2, rel=1e-12)
    outside = torch.tensor([[[-5.0, 2.0]]], dtype=torch.float64)
    assert float(clearance(OPEN, outside)) == pytest.approx(-5.3, rel=1e-12)


@given(st.integers(0, 8), st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_points_between_lie_on_the_way(n, horizon, seed):
    xy = wander(2, horizon, seed=seed)
    dense = between(xy, n)
    assert dense.shape == (2, (horizon - 1) * (n + 1) + 1, 2)
    assert torch.equal(dense[:, :: n + 1], xy)
    assert torch.allclose(Length()(dense), Length()(xy), rtol=1e-12)


def test_a_goal_at_any_step_is_near_the_least_over_steps():
    xy = wander(50, 12)
    apart = (xy - torch.tensor(CENTRE, dtype=torch.float64)).square().sum(-1)
    soft = Goal(CENTRE, softness=0.05)(xy)
    least = apart.amin(1)
    assert (soft >= least).all() and (soft <= least + 0.05 * np.log(12) + 1e-12).all()
    assert torch.allclose(Goal(CENTRE, step=-1)(xy), apart[:, -1], rtol=1e-12)
    assert torch.allclose(Goal(CENTRE, step=3)(xy), apart[:, 3], rtol=1e-12)
    resting = straight(CENTRE, CENTRE)
    assert float(Goal(CENTRE)(resting)) == pytest.approx(0.0, abs=1e-12)


def test_goals_of_a_batch_and_of_robots_are_their_own():
    xy, goals = wander(3, 2, 6), torch.randn(3, 2, 2, generator=seeded(), dtype=torch.float64)
    each = sum(Goal(goals[:, k])(xy[:, k]) for k in range(2))
    assert torch.allclose(Goal(goals)(xy), each, rtol=1e-12)
    each = sum(Goal(goals[0, k], step=2)(xy[:, k]) for k in range(2))
    assert torch.allclose(Goal(goals[0], step=2)(xy), each, rtol=1e-12)


def test_what_costs_nothing():
    line, resting = straight((1.0, 1.0), (3.0, 2.0)), straight((1.0, 1.0), (1.0, 1.0))
    assert float(Length()(resting)) == 0.0
    assert float(Length()(line)) == pytest.approx(5.0**0.5, rel=1e-12)
    assert float(Smooth()(line)) == pytest.approx(0.0, abs=1e-25)
    corner = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]], dtype=torch.float64)
    assert float(Smooth()(corner)) == pytest.approx(5.0)
    step = 5.0**0.5 / 8
    assert float(Speed(step / 0.1 + 1e-9, 0.1)(line)) == 0.0
    assert float(Speed(step / 0.1 - 1.0, 0.1)(line)) == pytest.approx(8.0, rel=1e-9)
    several = Speed(step / 0.1, torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64))(line.repeat(3, 1, 1))
    assert several.tolist() == pytest.approx([0.0, 0.0, 8.0 * (step / 0.1) ** 2], abs=1e-9)
    assert float(Via((2.0, 1.5), 0.1)(line)) < 0.05 * np.log(9)
    assert float(Via((2.0, 1.5), 0.1, softness=1e-9)(line)) == pytest.approx(0.0, abs=1e-7)
    for cost in (Length(), Speed(0.0, 1.0)):
        xy = resting.clone().requires_grad_()
        assert torch.autograd.grad(cost(xy).sum(), xy)[0].abs().max() == 0.0


def test_a_way_through_a_region_costs_one_however_long_it_stays():
    through = Through((2.0, 2.0), 0.5, width=0.2)
    quick, slow = straight((0.0, 2.0), (4.0, 2.0), 17), straight((1.8, 2.0), (2.2, 2.0), 90)
    assert float(through(quick)) == pytest.approx(1.0) and float(through(slow)) == pytest.approx(1.0)
    assert float(through(straight((0.0, 0.0), (4.0, 0.0), 17))) < 1e-6
    # 0.2 m outside of it; the neighbours of the nearest node do not count
    near = Through((2.0, 2.0), 0.5, width=0.2, softness=1e-3)
    assert float(near(straight((2.0, 2.7), (2.0, 4.0), 17))) == pytest.approx(np.exp(-1.0), rel=1e-3)


def test_robots_that_change_places_between_nodes_are_not_separate():
    a, b = straight((0.0, 0.0), (2.0, 0.0), 2), straight((0.0, 1.0), (2.0, 1.0), 2)
    assert float(Separation(0.99)(torch.stack([a, b], 1))) == 0.0
    assert float(Separation(1.1, between=0)(torch.stack([a, b], 1))) == pytest.approx(2 * 0.1**2)
    swap = torch.stack([a, a.flip(1)], 1)
    assert float(Separation(0.5, between=0)(swap)) == 0.0
    assert float(Separation(0.5)(swap)) > 0.0
    three = torch.cat([swap, a[:, None] + 9.0], 1)
    assert float(Separation(0.5, ((0, 2), (1, 2)))(three)) == 0.0
    assert torch.equal(Separation(0.5)(three), Separation(0.5)(swap))
    assert every_pair(3) == ((0, 1), (0, 2), (1, 2))


def test_sums_add_and_have_a_name():
    xy = wander(4, 6)
    cost = Walls(LARGE, 0.25) + 0.5 * (Length() - 2.0 * Smooth())
    expected = Walls(LARGE, 0.25)(xy) + 0.5 * Length()(xy) - Smooth()(xy)
    assert torch.allclose(cost(xy), expected, rtol=1e-12)
    assert cost.name == "walls(0.25 m) + 0.5 length - smooth"
    assert (-Length()).name == "-length"
    assert torch.equal((-Length())(xy), -Length()(xy))
    assert Goal((1.0, 2.0), 3).name == "goal(1, 2) at step 3"
    with pytest.raises(WorkbenchError, match="finite"):
        float("nan") * Length()


def test_checked_names_the_energy_that_is_not_finite():
    xy = wander(4, 6)
    assert torch.equal(checked(Length() + Smooth())(xy), (Length() + Smooth())(xy))
    broken = Value(lambda xy: torch.where(torch.arange(4) == 2, torch.nan, xy.sum((1, 2))), "worth")
    with pytest.raises(WorkbenchError, match=r"energy worth: got nan in sample 2 \(1 of 4"):
        checked(Length() + 3.0 * broken)(xy)
    steep = Value(lambda xy: (xy[:, 0, 0] - xy[:, 0, 0].detach()).abs().sqrt(), "edge")
    with pytest.raises(WorkbenchError, match="gradient of the energy edge"):
        checked(steep + Length())(xy)
    with pytest.raises(WorkbenchError, match="trajectories: got inf in sample 1"):
        checked(Length())(xy.index_fill(0, torch.tensor([1]), torch.inf))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Walls(LARGE, -1.0), "Walls: got margin=-1.0"),
        (lambda: Discs(()), "Discs: got"),
        (lambda: Goal((0.0, 0.0), "last"), "step='last'"),
        (lambda: Goal((0.0, 0.0), 12)(wander(2, 12)), "step=12"),
        (lambda: Via((0.0, 0.0), -1.0), "radius of -1.0"),
        (lambda: Via((0.0, 0.0), 1.0, softness=0.0), "softness=0.0"),
        (lambda: Through((0.0, 0.0), 1.0, width=0.0), "width of 0.0"),
        (lambda: Speed(1.0, 0.0), "dt=0.0"),
        (lambda: Separation(0.0), "distance=0.0"),
        (lambda: Separation(1.0)(wander(2, 12)), "stack the trajectories"),
        (lambda: Separation(1.0, ((0, 2),))(wander(2, 2, 12)), "pairs"),
        (lambda: Value(lambda xy: xy.sum())(wander(2, 12)), "correct the network"),
    ],
)
def test_mistakes_are_refused(make, message):
    with pytest.raises(WorkbenchError, match=message):
        make()
