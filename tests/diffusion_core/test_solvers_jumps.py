"""Jumps back to noise, and Langevin dynamics, as tables."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core.correct import Ula
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Known
from diffusion_core.noise import PerSample, Shared
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.sample import sample, trajectory
from diffusion_core.schedule import Cosine, Linear, VarianceExploding
from diffusion_core.solvers import (
    Solver,
    Table,
    annealed_langevin,
    corrected,
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    dpm_solver_pp_3s,
    edm,
    heun,
    langevin,
    pc,
    renoise,
    repaint,
    restart,
    sa_solver,
    unipc,
)
from tests.diffusion_core.test_denoise import ExactNetwork
from tests.diffusion_core.test_solvers import columns_close, every_smooth, kolmogorov_smirnov
from tests.diffusion_core.worlds import mixture, vector


def points(n: int, d: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shared(seed: int = 0) -> Shared:
    return Shared(torch.Generator().manual_seed(seed))


def check_renoise(row=renoise) -> None:
    """The jump carries the marginal of Gaussian data from one time to the other."""
    for schedule in (Linear(), Cosine(), VarianceExploding(20.0)):
        data = GaussianData(schedule, vector(0.7), vector(0.4))
        table = row(schedule, 0.2, 0.7)
        (mean_s, std_s), (mean_t, std_t) = data.marginal(0.2), data.marginal(0.7)
        columns_close(table.x[0] * mean_s, mean_t, 1e-12)
        columns_close((table.x[0] * std_s) ** 2 + table.noise**2, std_t**2, 1e-12)
        assert not table.evaluates.any()


def test_a_jump_carries_the_marginal():
    check_renoise()


def test_a_jump_in_the_wrong_direction_is_refused():
    with pytest.raises(WorkbenchError, match=r"got low=0\.7, high=0\.2"):
        renoise(Linear(), 0.7, 0.2)


def test_restart_contracts_the_error_of_a_coarse_solver():
    schedule, n = Linear(), 20_000
    data = mixture(schedule)
    grid = grids.log_snr_uniform(schedule, 5, start=0.99, end=1e-3)
    x0 = data.sample(n, torch.Generator().manual_seed(3))
    x = Gaussian(schedule).corrupt(x0, vector(0.99).expand(n), points(n))
    plain = kolmogorov_smirnov(sample(data, ddim(schedule, grid), x), data)
    table = restart(ddim, schedule, grid, low=0.08, high=0.4, repeats=3, steps=6)
    again = kolmogorov_smirnov(sample(data, table, x, noise=shared()), data)
    assert again < 0.6 * plain


def test_restart_visits_its_interval_as_often_as_it_is_told():
    schedule, grid = Linear(), grids.uniform(10, 0.95)
    table = restart(heun, schedule, grid, low=0.12, high=0.5, repeats=3, steps=4)
    jumps = ~table.evaluates
    assert int(jumps.sum()) == 3
    assert table.times[jumps].tolist() == [0.12] * 3 and table.reached[jumps].tolist() == [0.5] * 3
    assert torch.equal(table.times[1:], table.reached[:-1]), "every row starts where the last one ended"
    assert float(table.reached[-1]) == 0.0


def check_restart(build) -> None:
    """Xu et al. 2023, algorithm 1 in noise levels, with Heun's steps."""
    schedule, grid, low, high = VarianceExploding(10.0), grids.uniform(5, 0.9), 0.2, 0.5
    # linear in x: what a mixture would make of the last digit is not the solver's
    data = GaussianData(schedule, vector(0.7), vector(0.4))
    noise = PerSample.from_seeds(range(7))

    def solve(x: Tensor, levels: list[float]) -> Tensor:
        for s, after in pairwise(levels):
            d = (x - data.bind(vector(s / 10.0))(x, 0)) / s
            following = x + (after - s) * d
            if after > 0.0:
                d_after = (following - data.bind(vector(after / 10.0))(following, 0)) / after
                following = x + (after - s) * 0.5 * (d + d_after)
            x = following
        return x

    levels = (10.0 * grid).tolist()
    x = solve(points(7), [s for s in levels if s > 2.0] + [2.0])
    for _ in range(3):
        x = x + math.sqrt(5.0**2 - 2.0**2) * noise.normal((7, 1), torch.float64, torch.device("cpu"))
        x = solve(x, [5.0 * (2.0 / 5.0) ** (i / 4.0) for i in range(5)])
    x = solve(x, [2.0] + [s for s in levels if s < 2.0])
    table = build(heun, schedule, grid, low=low, high=high, repeats=3, steps=4)
    end = sample(data, table, points(7), noise=PerSample.from_seeds(range(7)))
    torch.testing.assert_close(end, x, rtol=1e-9, atol=1e-9)


def test_restart_is_the_algorithm_of_xu_et_al():
    check_restart(restart)


def looks_across_a_jump(table: Table) -> bool:
    """Whether any row uses a sample or an estimate from before the last jump."""
    jumps = (~table.evaluates & (table.reached > table.times)).long()
    block, rows = jumps.cumsum(0), torch.arange(len(table.times))
    evaluated, newest = rows[table.evaluates], table.evaluates.cumsum(0) - 1
    for values, source in (
        (table.x[:, 1:], lambda k: rows - k - 1),
        (table.estimate[:, 1:], lambda k: evaluated[(newest - k - 1).clamp(min=0)]),
    ):
        for k in range(values.shape[1]):
            used = values[:, k] != 0.0
            if bool((block[source(k).clamp(min=0)] < block)[used].any()):
                return True
    return False


MEMORIES: dict[str, Solver] = {
    "3m": dpm_solver_pp_3m,
    "unipc": lambda schedule, grid: unipc(schedule, grid, 3, warm_up="staged"),
    "sa": sa_solver,
    "3s": dpm_solver_pp_3s,
    "edm": lambda schedule, grid: edm(schedule, grid, churn=5.0),
}


@pytest.mark.parametrize("solver", MEMORIES.values(), ids=MEMORIES.keys())
def test_no_row_of_any_solver_looks_across_a_jump(solver):
    grid = grids.uniform(12, 0.95)
    assert not looks_across_a_jump(restart(solver, Linear(), grid, low=0.2, high=0.6, repeats=2, steps=5))
    assert not looks_across_a_jump(repaint(solver, Linear(), grid, jump=4, resamplings=2))


def check_no_memory_across_jumps(build) -> None:
    """What comes after a jump is what it would be alone."""
    schedule, grid = Linear(), grids.uniform(8, 0.95)
    data, table = mixture(schedule), build(dpm_solver_pp_2m, schedule, grid, jump=4, resamplings=2)
    x, noise = points(6), PerSample.from_seeds(range(6))
    expected = sample(data, dpm_solver_pp_2m(schedule, grid[:5]), x)
    for block in (grid[:5], grid[4:]):
        if block is not grid[:5] and float(block[0]) == float(grid[4]):
            expected = sample(data, dpm_solver_pp_2m(schedule, block), expected)
        scale, variance = Gaussian(schedule).forward(block[:1], block[-1:])
        expected = scale * expected + variance.sqrt() * noise.normal((6, 1), torch.float64, torch.device("cpu"))
        expected = sample(data, dpm_solver_pp_2m(schedule, block), expected)
    end = sample(data, table, x, noise=PerSample.from_seeds(range(6)))
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)


def test_no_memory_crosses_a_jump():
    check_no_memory_across_jumps(repaint)


def test_one_resampling_is_the_solver_itself():
    schedule, grid = Linear(), grids.uniform(8, 0.95)
    data, x = mixture(schedule), points(6)
    one = sample(data, repaint(ddim, schedule, grid, jump=3, resamplings=1), x)
    torch.testing.assert_close(one, sample(data, ddim(schedule, grid), x), rtol=1e-12, atol=1e-12)


def test_resampling_lets_the_unknown_part_agree_with_the_known_one():
    # two features that are equal in the data: given the first, the second is known
    schedule, n = Linear(), 1500
    diagonal = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
    data = GaussianMixture(
        schedule,
        torch.full((9,), 1.0 / 9.0, dtype=torch.float64),
        diagonal[:, None].expand(9, 2),
        vector(0.1).expand(9),
    )
    known = Known(torch.tensor([True, False]), vector(1.0, 0.0))
    grid = grids.log_snr_uniform(schedule, 40, start=0.99, end=1e-3)

    def off(resamplings: int) -> float:
        table = repaint(ddpm, schedule, grid, jump=5, resamplings=resamplings)
        end = sample(data * known, table, points(n, 2), noise=shared())
        assert float((end[:, 0] - 1.0).abs().max()) < 1e-9
        return float((end[:, 1] - 1.0).abs().mean())

    few, many = off(1), off(10)
    assert many < 0.75 * few


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: restart(ddim, Linear(), g, low=0.5, high=0.2), "restart: got low=0.5, high=0.2"),
        (lambda g: restart(ddim, Linear(), g[:3], low=0.05), "restart: got low=0.05"),
        (lambda g: restart(ddim, Linear(), g, repeats=0), "repeats=0"),
        (lambda g: repaint(ddim, Linear(), g, jump=0), "jump=0"),
        (lambda g: repaint(ddim, Linear(), g.flip(0)), "expected one falling time"),
    ],
)
def test_impossible_jumps_are_refused(call, message):
    with pytest.raises(WorkbenchError, match=message):
        call(grids.uniform(10, 0.95, 0.01))


def test_editing_starts_in_the_middle():
    # noised to t and sampled down from there, data keeps its distribution: a sliced grid
    schedule, n = Linear(), 20_000
    data = mixture(schedule)
    grid = grids.log_snr_uniform(schedule, 150, start=1.0, end=1e-3)
    grid = grid[grid <= 0.5]
    x0 = data.sample(n, torch.Generator().manual_seed(1))
    x_t = Gaussian(schedule).corrupt(x0, grid[:1].expand(n), points(n))
    end = sample(data, ddpm(schedule, grid), x_t, noise=shared())
    assert kolmogorov_smirnov(end, data) < 1.95 / math.sqrt(n) + 0.006
    # and stays near where it came from: less noise, nearer
    assert float((end - x0).abs().mean()) < float((end - x0[torch.randperm(n)]).abs().mean())


# --- Langevin ---------------------------------------------------------------------------------------------


def check_stationary(build) -> None:
    """A Gaussian of variance v is stationary at ``v / (1 - step sigma^2 / (2 v))``: the recursion's closed form."""
    for schedule in (Linear(), VarianceExploding(5.0)):
        t, step = vector(0.4), 0.3
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        std = vector(0.8)
        v = float(alpha**2 * std**2 + sigma**2)
        table = build(schedule, 0.4, 1, step)
        gain = alpha * std**2 / v
        factor = float(table.x[0] + table.estimate[0] * gain)
        stationary = float(table.noise[0]) ** 2 / (1.0 - factor**2)
        assert stationary == pytest.approx(v / (1.0 - step * float(sigma) ** 2 / (2.0 * v)), rel=1e-10)


def test_langevin_is_stationary_where_its_closed_form_is():
    check_stationary(langevin)


@every_smooth
def test_a_langevin_row_is_the_corrector_of_the_same_step(schedule):
    data, x = mixture(schedule), points(9)
    row = sample(data, langevin(schedule, 0.4, 5, 0.2), x, noise=PerSample.from_seeds(range(9)))
    correct = Ula(5, 0.2).bind(data, vector(0.4))
    ula, _ = correct(x, 0, PerSample.from_seeds(range(9)))
    torch.testing.assert_close(row, ula, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [VarianceExploding(10.0), Cosine()], ids=str)
def test_annealed_langevin_reaches_the_data(schedule):
    n = 20_000
    data = GaussianData(schedule, vector(0.7), vector(0.4))
    grid = grids.log_snr_uniform(schedule, 25, start=0.98, end=1e-2)
    x = Gaussian(schedule).prior(points(n), 0.98)
    states = list(trajectory(data, annealed_langevin(schedule, grid, n=20, step=0.1), x, noise=shared()))
    end = states[-1]
    assert end.t == 0.0
    assert float(end.x.mean()) == pytest.approx(0.7, abs=0.02)
    # at the last levels a step is small against the data: what they get they keep, 5 to 9 % too wide
    assert float(states[-2].x.std()) == pytest.approx(float(data.marginal(1e-2)[1]), rel=0.11)


def test_annealed_langevin_finds_both_modes_where_constant_noise_does_not():
    schedule, n = VarianceExploding(10.0), 4000
    data = GaussianMixture(schedule, vector(0.2, 0.8), vector(-4.0, 4.0)[:, None], vector(0.3, 0.3))
    x = 10.0 * points(n)
    grid = grids.log_snr_uniform(schedule, 20, start=1.0, end=1e-2)
    annealed = sample(data, annealed_langevin(schedule, grid, n=30, step=0.1), x, noise=shared())
    constant = sample(data, langevin(schedule, 0.01, 600, 0.1), x, noise=shared())
    shares = [float((end < 0.0).double().mean()) for end in (annealed, constant)]
    assert abs(shares[0] - 0.2) < 0.06 and abs(shares[1] - 0.2) > 0.2


def check_annealed(build) -> None:
    """Song & Ermon 2019, algorithm 1, in its own symbols; then the last estimate."""
    schedule = VarianceExploding(10.0)
    data, noise, eps = GaussianData(schedule, vector(0.7), vector(0.4)), PerSample.from_seeds(range(7)), 2e-3
    sigmas = torch.logspace(1.0, -1.0, 5, dtype=torch.float64).tolist()
    x = 10.0 * points(7)
    for sigma in sigmas:
        alpha = eps * sigma**2 / sigmas[-1] ** 2
        mean, std = data.marginal(sigma / 10.0)
        for _ in range(3):
            z = noise.normal((7, 1), torch.float64, torch.device("cpu"))
            x = x + 0.5 * alpha * (mean - x) / std**2 + math.sqrt(alpha) * z
    x = data.bind(vector(sigmas[-1] / 10.0))(x, 0)
    grid = vector(*(sigma / 10.0 for sigma in sigmas), 0.0)
    table = build(schedule, grid, n=3, step=eps / (2.0 * sigmas[-1] ** 2))
    end = sample(data, table, 10.0 * points(7), noise=PerSample.from_seeds(range(7)))
    torch.testing.assert_close(end, x, rtol=1e-10, atol=1e-10)


def test_annealed_langevin_is_the_algorithm_of_song_and_ermon():
    check_annealed(annealed_langevin)


def test_levels_without_signal_are_refused():
    with pytest.raises(WorkbenchError, match=r"annealed langevin: at t=1 the schedule .* leaves no signal"):
        annealed_langevin(Cosine(), grids.uniform(5))


CORRECTED: dict[str, Solver] = {"ddpm": ddpm, "heun": heun, **MEMORIES}


def check_corrected(build) -> None:
    """A corrected table is the loop with the corrector: the same states from the same noise, whatever is remembered."""
    schedule, grid = Linear(), grids.uniform(7, 0.95)
    data, x = GaussianData(schedule, vector(0.7), vector(0.4)), points(9)
    for solver in CORRECTED.values():
        table = solver(schedule, grid)
        plan = build(table, schedule, 2, 0.2)
        loop = trajectory(data, table, x, noise=PerSample.from_seeds(range(9)), corrector=Ula(2, 0.2))
        states = list(trajectory(data, plan, x, noise=PerSample.from_seeds(range(9))))
        for state, expected in zip(states, loop, strict=True):
            assert state.t == expected.t
            torch.testing.assert_close(state.x, expected.x, rtol=1e-11, atol=1e-11)


def test_a_corrected_table_is_the_loop_with_the_corrector():
    check_corrected(corrected)


def test_a_corrected_table_may_be_folded_for_raw_predictions():
    schedule, grid, x = Linear(), grids.uniform(7, 0.95, 0.1), points(9, 2)
    network = NetworkDenoiser(ExactNetwork(schedule, "eps"), schedule, "eps")
    for solver in CORRECTED.values():
        plan = corrected(solver(schedule, grid), schedule, 2, 0.2)
        *_, last = trajectory(network, plan, x, noise=PerSample.from_seeds(range(9)))
        end = sample(network, plan, x, noise=PerSample.from_seeds(range(9)))
        torch.testing.assert_close(end, last.x, rtol=1e-9, atol=1e-9)


def test_a_table_whose_steps_end_without_noise_is_not_corrected():
    table = ddim(Linear(), grids.uniform(1))
    assert corrected(table, Linear(), 3) is table


def variance(table: Table, data: GaussianData) -> float:
    """Of the end, from the exact marginal at the first time; for tables without memory, in closed form."""
    alpha, spread = data.schedule.alpha(table.times), data.marginal(float(table.times[0]))[1]
    v = float(spread**2)
    for i, t in enumerate(table.times.tolist()):
        gain = float(alpha[i] * data.std**2 / data.marginal(t)[1] ** 2)
        v = (float(table.x[i, 0]) + float(table.estimate[i, 0]) * gain) ** 2 * v + float(table.noise[i]) ** 2
    return v


def test_the_corrector_takes_the_predictor_to_the_bias_of_its_own_step():
    # ends at t = 0.1; a long correction forgets the predictor, and is stationary at v / (1 - r^2 sigma^2 / v)
    schedule, snr = VarianceExploding(5.0), 0.4
    data = GaussianData(schedule, vector(0.7), vector(0.4))
    grid = grids.uniform(3, 1.0, 0.1)
    wanted, sigma = float(data.marginal(0.1)[1]) ** 2, float(schedule.sigma(vector(0.1)))
    predicted = variance(ddim(schedule, grid), data)
    assert abs(predicted / wanted - 1.0) > 0.2
    stationary = wanted / (1.0 - snr**2 * sigma**2 / wanted)
    assert variance(pc(ddim, schedule, grid, n=100, snr=snr), data) == pytest.approx(stationary, rel=1e-9)


def test_predictor_corrector_reaches_the_marginal_where_the_predictor_does_not():
    schedule, n = Linear(), 20_000
    data = mixture(schedule)
    grid = grids.log_snr_uniform(schedule, 40, start=0.99, end=1e-3)
    x0 = data.sample(n, torch.Generator().manual_seed(3))
    x = Gaussian(schedule).corrupt(x0, vector(0.99).expand(n), points(n))
    plain = kolmogorov_smirnov(sample(data, ddpm(schedule, grid), x, noise=shared()), data)
    both = kolmogorov_smirnov(sample(data, pc(ddpm, schedule, grid, n=8, snr=0.3), x, noise=shared()), data)
    # exceeded once in a thousand by exact samples
    assert plain > 2.0 * 1.95 / math.sqrt(n) > 2.0 * both


def test_a_learned_variance_is_corrected_too():
    table = ddpm(Linear(), grids.uniform(4, 0.9), "learned")
    longer = corrected(table, Linear(), 2, 0.1)
    own = torch.tensor([0, 3, 6, 9])
    assert longer.noise_large is not None and table.noise_large is not None
    assert torch.equal(longer.noise_large[own], table.noise_large) and torch.equal(longer.noise[own], table.noise)
    between = longer.noise != longer.noise_large
    assert not between[[1, 2, 4, 5, 7, 8]].any() and between[own[:3]].all()


def test_a_corrector_of_several_times_at_once_is_refused():
    table = ddim(Linear(), grids.uniform(4, 0.9)[:, None].expand(-1, 3))
    with pytest.raises(WorkbenchError, match=r"corrected table: got times of shape \(4, 3\)"):
        corrected(table, Linear())


@pytest.mark.parametrize("wrong", [{"n": 0}, {"step": 0.0}, {"step": 2.0}, {"t": 0.0}], ids=str)
def test_impossible_langevin_steps_are_refused(wrong):
    with pytest.raises(WorkbenchError, match="langevin: got"):
        langevin(Linear(), **({"t": 0.5} | wrong))
