"""Time grids against their formulas, exact at their ends, and against diffusers' timesteps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusion_core import grid as grids
from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Cosine, RectifiedFlow, Shifted, VarianceExploding
from tests.diffusion_core.worlds import SCHEDULES, vector

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
ends = st.tuples(st.floats(1e-3, 0.4), st.floats(0.5, 0.999))


def check_trailing(trailing) -> None:
    """Integer steps ``round(n_train - i n_train / n)``, the first the noisiest, then t = 0."""
    for n_train, n in ((1000, 10), (1000, 7), (100, 100), (100, 3), (50, 1)):
        steps = trailing(n_train, n) * n_train
        expected = [float(np.round(n_train - i * n_train / n)) for i in range(n)] + [0.0]
        assert steps.tolist() == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)  # the first call compiles type checks
@given(n=st.integers(1, 60), ends=ends)
def test_uniform_steps_are_equal_and_the_ends_exact(n, ends):
    end, start = ends
    grid = grids.uniform(n, start, end)
    assert len(grid) == n + 1 and float(grid[0]) == start and float(grid[-1]) == end
    torch.testing.assert_close(grid.diff(), torch.full((n,), (end - start) / n, dtype=torch.float64))


@every_schedule
@settings(deadline=None)  # the first call compiles type checks
@given(n=st.integers(1, 40), ends=ends)
def test_spaced_grids_fall_strictly_from_start_through_end_to_zero(schedule, n, ends):
    end, start = ends
    for grid in (grids.karras(schedule, n, start, end), grids.log_snr_uniform(schedule, n, start, end)):
        grids.check_grid(grid)
        assert len(grid) == n + 1 and float(grid[0]) == start and float(grid[-1]) == 0.0
        assert n == 1 or float(grid[-2]) == end
        assert bool((grid.diff() < 0).all())


@pytest.mark.parametrize("n", [2, 5, 18, 40])
def test_a_spaced_grid_from_one_stays_inside_the_schedule(n):
    # through log-SNR and back 1 may become 1 + 2e-16
    for sigma_max in (0.3, 7.0, 80.0, 1234.5):
        schedule = VarianceExploding(sigma_max)
        for grid in (grids.karras(schedule, n), grids.log_snr_uniform(schedule, n, start=1.0)):
            assert float(grid[0]) == 1.0
            grids.check_grid(grid)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_is_the_formula_of_edm(rho):
    n, sigma_max, sigma_min = 18, 80.0, 0.002
    edm = [
        (sigma_max ** (1 / rho) + i / (n - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
        for i in range(n)
    ] + [0.0]
    grid = grids.karras(VarianceExploding(sigma_max), n, 1.0, sigma_min / sigma_max, rho)
    assert (grid * sigma_max).tolist() == pytest.approx(edm, rel=1e-11)


@every_schedule
def test_karras_gives_every_schedule_the_same_noise_to_signal_ratios(schedule):
    n, start, end = 9, 0.9, 0.01
    ratio = torch.exp(-0.5 * schedule.log_snr(grids.karras(schedule, n, start, end)[:-1]))
    edges = ratio[[0, -1]]
    exploding = VarianceExploding(float(edges[0]))
    same = grids.karras(exploding, n, 1.0, float(edges[1] / edges[0]))[:-1]
    torch.testing.assert_close(ratio, exploding.sigma(same), rtol=1e-9, atol=0)


@every_schedule
def test_log_snr_uniform_steps_are_equal_in_log_snr(schedule):
    steps = schedule.log_snr(grids.log_snr_uniform(schedule, 12, 0.95, 0.01)[:-1]).diff()
    torch.testing.assert_close(steps, steps.mean().expand(11), rtol=1e-8, atol=0)


def test_trailing_counts_from_the_noise_end():
    check_trailing(grids.trailing)


@pytest.mark.parametrize(("n_train", "n"), [(1000, 10), (1000, 7), (1000, 33), (1000, 1000), (100, 16), (100, 1)])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_discrete_grids_are_the_timesteps_of_diffusers(n_train, n, spacing):
    if spacing == "linspace" and n == 1:
        pytest.skip("theirs is the least noisy step")
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(num_train_timesteps=n_train, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    ours = getattr(grids, spacing)(n_train, n)
    # their step 0 is the first noisy one, ours is step 1 of n_train; theirs has no entry for clean data
    assert (ours[:-1] * n_train).round().long().tolist() == (scheduler.timesteps + 1).tolist()
    assert float(ours[-1]) == 0.0


def test_a_discrete_grid_of_all_steps_is_the_training_grid():
    expected = torch.arange(100, -1, -1, dtype=torch.float64) / 100
    assert torch.equal(grids.trailing(100, 100), expected) and torch.equal(grids.leading(100, 100), expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: grids.uniform(0),
        lambda: grids.uniform(5, 0.3, 0.3),
        lambda: grids.uniform(5, 1.1, 0.0),
        lambda: grids.uniform(5, 1.0, -0.1),
        lambda: grids.karras(VarianceExploding(), 5, end=0.0),
        lambda: grids.karras(Cosine(), 5, start=1.0),
        lambda: grids.log_snr_uniform(RectifiedFlow(), 5, start=1.0),
        lambda: grids.log_snr_uniform(RectifiedFlow(), 5, end=0.0),
        lambda: grids.trailing(100, 101),
        lambda: grids.trailing(100, 0),
        lambda: grids.leading(100, 101),
        lambda: grids.linspace(100, 101),
        lambda: grids.beta(5, 0.0),
        lambda: grids.beta(5, 0.6, 11.0),
        lambda: grids.beta(0),
        lambda: grids.shifted(grids.uniform(3), 0.0),
        lambda: grids.of_steps(100, []),
        lambda: grids.of_steps(100, [50, 50]),
        lambda: grids.of_steps(100, [101, 50]),
        lambda: grids.of_steps(100, [50, 0]),
        lambda: grids.karras(VarianceExploding(80.0), 5, sigma_max=81.0),
        lambda: grids.karras(VarianceExploding(80.0), 5, sigma_max=80.0, sigma_min=0.0),
        lambda: grids.karras(VarianceExploding(80.0), 5, sigma_max=0.1, sigma_min=0.2),
        lambda: grids.check_grid(torch.stack([vector(1.0, 0.5, 0.0), vector(0.0, 0.5, 1.0)], 1)),
        lambda: grids.check_grid(torch.stack([vector(1.0, 0.5, 0.5), vector(1.0, 0.6, 0.6)], 1)),
        lambda: grids.check_grid(torch.stack([vector(1.0, 0.5, 0.6), vector(1.0, 0.6, 0.4)], 1)),
        lambda: grids.check_grid(torch.stack([vector(1.0, 0.5), vector(1.0, float("nan"))], 1)),
        lambda: grids.check_grid(vector(0.5)),
        lambda: grids.check_grid(vector(1.0, 0.5, 0.5)),
        lambda: grids.check_grid(vector(1.0, 0.5, 0.7)),
        lambda: grids.check_grid(vector(1.1, 0.5)),
        lambda: grids.check_grid(vector(0.5, -0.1)),
        lambda: grids.check_grid(vector(1.0, float("nan"), 0.0)),
    ],
)
def test_impossible_grids_are_refused(build):
    with pytest.raises(WorkbenchError, match=r"got .*expected"):
        build()


def test_a_rising_grid_is_an_inversion_and_accepted():
    grids.check_grid(grids.uniform(5, 0.9, 0.1).flip(0))


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_times_for_each_token_may_wait_for_one_another(shape):
    # a staircase: in every step another token moves
    wait = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # one begins at once and one ends at the end, so that something always moves
    wait[0], wait[-1] = 0.0, 1.0
    ramp = torch.linspace(0.0, 2.0, 9, dtype=torch.float64).reshape(-1, *(1 for _ in shape))
    grid = 1.0 - (ramp - wait).clamp(0.0, 1.0)
    assert bool((grid.diff(dim=0) == 0.0).any())
    grids.check_grid(grid)
    grids.check_grid(grid.flip(0))


def test_karras_takes_the_noise_levels_of_edm():
    n, schedule = 18, VarianceExploding(80.0)
    by_level = grids.karras(schedule, n, sigma_max=80.0, sigma_min=0.002)
    torch.testing.assert_close(by_level, grids.karras(schedule, n, 1.0, 0.002 / 80.0), rtol=1e-12, atol=0)
    assert float(by_level[0]) == 1.0


@every_schedule
def test_karras_noise_levels_are_ratios_under_every_schedule(schedule):
    grid = grids.karras(schedule, 7, sigma_max=5.0, sigma_min=0.05)
    levels = torch.exp(-0.5 * schedule.log_snr(grid[:-1]))
    roots = [5.0 ** (1 / 7) + i / 6 * (0.05 ** (1 / 7) - 5.0 ** (1 / 7)) for i in range(7)]
    assert levels.tolist() == pytest.approx([root**7 for root in roots], rel=1e-9)


def check_beta(quantiles) -> None:
    """Quantiles of the distribution, by scipy's own inverse."""
    for a, b in ((0.6, 0.6), (0.3, 2.0), (5.0, 1.0), (1.0, 1.0), (10.0, 9.5), (0.1, 0.1)):
        for n in (1, 5, 50):
            expected = stats.beta.ppf(1.0 - np.arange(n + 1) / n, a, b)
            assert quantiles(n, a, b).tolist() == pytest.approx(expected.tolist(), rel=1e-8, abs=1e-12)


def test_beta_is_made_of_quantiles():
    check_beta(grids.beta)


@settings(deadline=None)  # the first call compiles type checks
@given(n=st.integers(1, 40), a=st.floats(0.3, 3.0), b=st.floats(0.3, 3.0), ends=ends)
def test_beta_falls_strictly_between_its_ends(n, a, b, ends):
    end, start = ends
    grid = grids.beta(n, a, b, start, end)
    grids.check_grid(grid)
    assert len(grid) == n + 1 and float(grid[-1]) == end and float(grid[0]) == pytest.approx(start, abs=1e-15)


def check_shifted(shifted) -> None:
    """The noise-to-signal ratio ``t / (1 - t)`` of a flow is multiplied, once for each call."""
    grid = grids.uniform(9, 0.95, 0.05)
    for factor in (0.5, 3.0):
        once, twice = shifted(grid, factor), shifted(shifted(grid, factor), factor)
        ratio = grid / (1.0 - grid)
        torch.testing.assert_close(once / (1.0 - once), factor * ratio, rtol=1e-12, atol=0)
        torch.testing.assert_close(twice / (1.0 - twice), factor**2 * ratio, rtol=1e-12, atol=0)
        torch.testing.assert_close(once, Shifted(RectifiedFlow(), factor).sigma(grid), rtol=1e-13, atol=0)


def test_a_shifted_grid_is_the_grid_of_a_shifted_flow():
    check_shifted(grids.shifted)
    assert grids.shifted(vector(1.0, 0.0), 3.0).tolist() == [1.0, 0.0]


def test_a_grid_of_explicit_steps():
    assert grids.of_steps(1000, [999, 500, 1]).tolist() == [0.999, 0.5, 0.001, 0.0]
