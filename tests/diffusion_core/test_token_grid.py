"""A time for every sample and token, and variances that the network gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import Denoiser, Evaluate, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample, Shared
from diffusion_core.predict import align
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import sample, trajectory
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule
from diffusion_core.solvers import Solver, consistency, ddim, ddpm, dpm_solver_pp_2m, euler
from diffusion_core.token_grid import pyramid, staircase
from tests.diffusion_core.worlds import gaussian, vector


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Tokens(Denoiser):
    """N(0.7, 0.4^2) in every entry, at whatever time it has."""

    def __init__(self, schedule) -> None:
        self.schedule, self.process = schedule, Gaussian(schedule)

    def bind(self, times: Tensor, cond: Any = None) -> Evaluate:
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        gain, shift = alpha * 0.16 / (alpha**2 * 0.16 + sigma**2), 0.7 * alpha
        return lambda x, i: 0.7 + align(gain[i], x) * (x - align(shift[i], x))


SOLVERS: tuple[Solver, ...] = (ddpm, ddim, euler, consistency, dpm_solver_pp_2m)
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)


class Recorded:
    """Draws made beforehand, so that two layouts of a run can see the same."""

    def __init__(self, draws: Tensor) -> None:
        self.draws, self.i = draws, 0

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.i += 1
        return self.draws[self.i - 1].reshape(shape)

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        raise NotImplementedError


def check_tokens(solver: Solver, schedule: Schedule) -> None:
    """Independent tokens, each on its way down the same grid two rows after the one before it."""
    world, grid, tokens = Tokens(schedule), grids.uniform(6, 0.96), 4
    plan = solver(schedule, pyramid(grid, tokens, delay=2))
    rows = len(plan.times)
    x, draws = points(3, tokens, 2), points(rows, 3, tokens, 2)
    together = sample(world, plan, x, noise=Recorded(draws))
    for k in range(tokens):
        alone = sample(world, solver(schedule, grid), x[:, k], noise=Recorded(draws[2 * k :, :, k]))
        torch.testing.assert_close(together[:, k], alone, rtol=1e-12, atol=1e-12)


@every_solver
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), RectifiedFlow()], ids=str)
def test_every_token_is_sampled_as_it_would_be_alone(solver, schedule):
    check_tokens(solver, schedule)


def check_standing(solver: Solver) -> None:
    """A token that waits, and one that is done, keep their value to the last bit."""
    world, grid = Tokens(Cosine()), grids.uniform(4, 0.9)
    plan = solver(Cosine(), pyramid(grid, 3, delay=4))
    states = list(trajectory(world, plan, points(2, 3, 1), noise=Shared(torch.Generator().manual_seed(0))))
    assert torch.equal(states[3].x[:, 1:], points(2, 3, 1)[:, 1:])
    assert torch.equal(states[11].x[:, 0], states[3].x[:, 0])


@every_solver
def test_a_token_that_stands_still_keeps_its_value_to_the_last_bit(solver):
    check_standing(solver)


@every_solver
def test_every_sample_may_have_its_own_grid(solver):
    world = Tokens(Linear())
    own = torch.stack([grids.uniform(5, 0.9), grids.uniform(5, 0.9) ** 1.5, grids.uniform(5, 0.7)], 1)
    x, draws = points(3, 2), torch.randn(5, 3, 2, dtype=torch.float64)
    together = sample(world, solver(Linear(), own), x, noise=Recorded(draws))
    for k in range(3):
        alone = sample(world, solver(Linear(), own[:, k]), x[k : k + 1], noise=Recorded(draws[:, k : k + 1]))
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-10, atol=1e-10)


def test_a_network_is_told_the_time_of_every_token():
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
            seen.append(t)
            return torch.zeros_like(x)

    grid = pyramid(grids.uniform(3, 0.9), 2, delay=1)
    end = sample(NetworkDenoiser(Watch(), Linear(), "eps"), ddim(Linear(), grid), points(5, 2, 1))
    assert [tuple(t.shape) for t in seen] == [(5, 2)] * 4
    torch.testing.assert_close(torch.stack(seen)[:, 0].double(), grid[:-1, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(end, points(5, 2, 1) / Linear().alpha(vector(0.9)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_a_pyramid_shows_each_token_the_whole_grid(delay):
    grid = grids.uniform(5, 0.9)
    tokens = pyramid(grid, 3, delay)
    assert tokens.shape == (5 + 2 * delay + 1, 1, 3)
    for k in range(3):
        assert torch.equal(tokens[k * delay : k * delay + 6, 0, k], grid)
        assert bool((tokens[: k * delay, 0, k] == 0.9).all() and (tokens[k * delay + 6 :, 0, k] == 0.0).all())
    assert bool((tokens.diff(dim=2) >= 0.0).all()), "an earlier token is never noisier"


def test_a_stream_hands_every_token_on():
    grid = grids.uniform(8, 0.96)
    turn = staircase(grid, 4)
    assert turn.shape == (3, 1, 4)
    assert (
        torch.equal(turn[0, 0, :-1], turn[-1, 0, 1:]) and float(turn[-1, 0, 0]) == 0.0 and float(turn[0, 0, -1]) == 0.96
    )
    # a token that is handed through the buffer is sampled as with the whole grid
    world, x = Tokens(Linear()), points(3, 4, 1)
    plan, newest = ddim(Linear(), turn), torch.randn(3, 1, 1, dtype=torch.float64)
    buffer = torch.cat([x[:, 1:], newest], 1)
    for _ in range(4):
        buffer = sample(world, plan, buffer)
        done, buffer = buffer[:, :1], torch.cat([buffer[:, 1:], torch.zeros(3, 1, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(done, sample(world, ddim(Linear(), grid), newest), rtol=1e-10, atol=1e-10)


def test_impossible_token_grids_are_refused():
    grid = grids.uniform(5, 0.9)
    with pytest.raises(WorkbenchError, match="got tokens=0, delay=1"):
        pyramid(grid, 0)
    with pytest.raises(WorkbenchError, match="0 <= delay <= 5"):
        pyramid(grid, 2, 6)
    with pytest.raises(WorkbenchError, match="got 5 steps for 2 tokens; expected a multiple"):
        staircase(grid, 2)
    with pytest.raises(WorkbenchError, match="expected one falling time"):
        staircase(grid.flip(0), 5)


# --- learned variance -------------------------------------------------------------------------------------


class Split(nn.Module):
    """x0 of the Gaussian world, and a second half that is one number everywhere."""

    def __init__(self, schedule, value: float) -> None:
        super().__init__()
        self.schedule, self.value = schedule, value

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        x0_hat = torch.stack([gaussian(self.schedule).bind(t[:1].double())(x, 0)])[0]
        return torch.cat([x0_hat, torch.full_like(x, self.value)], 1)


def learned(value: float) -> NetworkDenoiser:
    return NetworkDenoiser(Split(Linear(), value), Linear(), "x0", variance_axis=1)


@pytest.mark.parametrize(("value", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_a_learned_variance_reaches_from_the_small_to_the_large_one(value, variance):
    grid, x, noise = grids.uniform(6, 0.9), points(5, 2), PerSample.from_seeds(range(5))
    ours = sample(learned(value).with_variance(), ddpm(Linear(), grid, "learned"), x, noise=noise)
    theirs = sample(gaussian(Linear()), ddpm(Linear(), grid, variance), x, noise=PerSample.from_seeds(range(5)))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def check_half_way() -> None:
    """Half way between the logarithms is the geometric mean, in every step; the last one is clean."""
    grid, draws = grids.uniform(3, 0.9), points(3, 5, 2)
    small, large = (ddpm(Linear(), grid, kind) for kind in ("small", "large"))
    noise = Recorded(draws)
    states = list(trajectory(learned(0.0).with_variance(), ddpm(Linear(), grid, "learned"), points(5, 2), noise=noise))
    x = points(5, 2)
    for i, state in enumerate(states):
        mean = small.x[i, 0] * x + small.estimate[i, 0] * state.estimate.x0_hat
        torch.testing.assert_close(state.x, mean + (small.noise[i] * large.noise[i]).sqrt() * draws[i])
        x = state.x
    torch.testing.assert_close(states[-1].x, states[-1].estimate.x0_hat, rtol=1e-12, atol=1e-12)


def test_half_way_is_the_geometric_mean_and_the_last_step_is_clean():
    check_half_way()


def test_the_plain_view_of_such_a_network_ignores_its_variance():
    grid, x = grids.uniform(6, 0.9), points(5, 2)
    ours = sample(learned(0.3), ddim(Linear(), grid), x)
    torch.testing.assert_close(ours, sample(gaussian(Linear()), ddim(Linear(), grid), x), rtol=1e-5, atol=1e-5)


def test_a_learned_table_needs_a_denoiser_that_learned_one_and_the_other_way_round():
    table = ddpm(Linear(), grids.uniform(3, 0.9), "learned")
    noise = Shared(torch.Generator().manual_seed(0))
    with pytest.raises(WorkbenchError, match=r"got a denoiser without one; expected"):
        sample(gaussian(Linear()), table, points(5, 2), noise=noise)
    with pytest.raises(WorkbenchError, match="got variance_axis=None"):
        NetworkDenoiser(nn.Identity(), Linear(), "x0").with_variance()
