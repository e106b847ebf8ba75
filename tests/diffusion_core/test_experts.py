"""The algebra of experts on closed-form densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import Denoiser, Evaluate, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Known, Product, given, start
from diffusion_core.noise import Shared
from diffusion_core.oracles import CategoricalTable, GaussianData, GaussianMixture
from diffusion_core.plan import Together
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, VarianceExploding
from diffusion_core.solvers import ddim, ddpm
from tests.diffusion_core.worlds import SMOOTH, gaussian, mixture, plane_mixture, vector

TIMES = vector(0.9, 0.5, 0.1)
every_smooth = pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())


def points(n: int = 7, d: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shared(seed: int = 0) -> Shared:
    return Shared(torch.Generator().manual_seed(seed))


def score(denoiser: Denoiser, schedule: Schedule, x: Tensor, t: float, cond: Any = None) -> Tensor:
    """``(alpha x0_hat - x) / sigma^2``."""
    time = vector(t)
    return (schedule.alpha(time) * denoiser.bind(time, cond)(x, 0) - x) / schedule.sigma(time) ** 2


class Counted(Denoiser):
    """Another denoiser, its calls remembered: the batch and the condition of each."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.process = denoiser, denoiser.process
        self.calls: list[tuple[int, Any]] = []

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        evaluate = self.denoiser.bind(times)

        def counted(x: Tensor, i: int) -> Tensor:
            self.calls.append((len(x), cond))
            return evaluate(x, i) + (0.0 if cond is None else cond)

        return counted


# --- products -------------------------------------------------------------------------------------------


def check_product_is_a_sum_of_scores(build: Callable[[Denoiser, Denoiser], Denoiser], schedule: Schedule) -> None:
    """``a * b ** 0.7`` has the score ``s_a + 0.7 s_b``."""
    a, b = plane_mixture(schedule), gaussian(schedule)
    x = points()
    for t in TIMES.tolist():
        expected = a.score(x, t) + 0.7 * score(b, schedule, x, t)
        torch.testing.assert_close(score(build(a, b), schedule, x, t), expected, rtol=1e-9, atol=1e-9)


@every_smooth
def test_a_product_sums_scores(schedule):
    check_product_is_a_sum_of_scores(lambda a, b: a * b**0.7, schedule)


@every_smooth
def test_the_score_of_an_expression_is_the_gradient_of_its_log_density(schedule):
    a, b = plane_mixture(schedule), gaussian(schedule)
    cost = Energy(lambda x, t: (x - t).pow(4).sum(1), on="x_t")
    expression = (a | b) ** 1.5 * a / b**0.2 * cost**0.3
    for t in TIMES.tolist():
        x = points().requires_grad_()
        (gradient,) = torch.autograd.grad(expression.bind_log_density(vector(t))(x, 0).sum(), x)
        torch.testing.assert_close(score(expression, schedule, x.detach(), t), gradient, rtol=1e-8, atol=1e-8)


def test_a_quotient_undoes_a_product_and_leaves_its_denoiser_uncalled():
    a, b = Counted(plane_mixture(Linear())), Counted(gaussian(Linear()))
    x = points()
    same = (a * b) / b
    torch.testing.assert_close(same.bind(TIMES)(x, 1), a.bind(TIMES)(x, 1), rtol=0, atol=0)
    assert a.calls and not b.calls


def test_powers_multiply():
    a = plane_mixture(Linear())
    x = points()
    torch.testing.assert_close(((a**3.0) ** 0.5).bind(TIMES)(x, 1), (a**1.5).bind(TIMES)(x, 1), rtol=1e-14, atol=1e-14)


def test_a_strength_may_depend_on_time_and_a_denoiser_that_is_off_is_not_called():
    a, b = Counted(plane_mixture(Linear())), Counted(gaussian(Linear()))
    late = a * b ** (lambda t: torch.where(t < 0.3, 2.0, 0.0))
    evaluate, x = late.bind(TIMES), points()
    for i in range(2):
        torch.testing.assert_close(evaluate(x, i), a.denoiser.bind(TIMES)(x, i), rtol=0, atol=0)
    assert not b.calls
    evaluate(x, 2)
    assert len(b.calls) == 1


def test_the_product_of_gaussians_starts_with_its_own_variance_and_the_true_product_is_its_end_at_t_0():
    schedule = VarianceExploding(50.0)
    a, b = GaussianData(schedule, vector(0.0), vector(1.0)), GaussianData(schedule, vector(2.0), vector(0.5))
    noise = points(40_000, 1)
    x = start(a * b**3.0, noise)
    assert float(x.std()) == pytest.approx(50.0 / 2.0, rel=0.02)
    # at a small t the score of the product is that of the data's product: precision 1 + 3 * 4, mean 12 * 2 / 13
    s_0, s_1 = (float(score(a * b**3.0, schedule, vector(v)[:, None], 1e-5)) for v in (0.0, 1.0))
    assert s_0 - s_1 == pytest.approx(13.0, rel=1e-3)
    assert s_0 == pytest.approx(24.0, rel=1e-3)


def test_a_start_without_a_density_is_refused():
    a = gaussian(Linear())
    with pytest.raises(WorkbenchError, match="exponents that sum to -1"):
        start(a / a**2.0, points())


def test_a_product_at_zero_signal_needs_exponents_that_sum_to_one():
    a, b = gaussian(Cosine()), plane_mixture(Cosine())
    with pytest.raises(WorkbenchError, match=r"at t=1 .*exponents sum to 2"):
        (a * b).bind(vector(1.0, 0.5))
    assert bool(torch.isfinite((a * (b / a) ** 3.0).bind(vector(1.0, 0.5))(points(), 0)).all())


def test_experts_of_different_schedules_are_refused_when_composed():
    with pytest.raises(WorkbenchError, match="expected one: experts must share"):
        gaussian(Linear()) * gaussian(Cosine())
    with pytest.raises(WorkbenchError, match="expected one: experts must share"):
        gaussian(Linear()) | gaussian(Cosine())


def test_what_is_no_density_is_refused():
    energy, known = Energy(lambda x: x.sum(1)), Known(torch.tensor([True, False]), vector(0.0, 0.0))
    with pytest.raises(WorkbenchError, match="expected at least one denoiser"):
        (energy * known).bind(TIMES)
    with pytest.raises(WorkbenchError, match="got Known values inside"):
        (gaussian(Linear()) * known) ** 2.0
    with pytest.raises(WorkbenchError, match="got Energy; expected denoisers"):
        gaussian(Linear()) | energy


# --- one call for conditions of one network -------------------------------------------------------------


def test_conditions_of_one_denoiser_share_a_call_in_order():
    model = Counted(gaussian(Linear()))
    a, b = torch.full((7, 2), 1.0, dtype=torch.float64), torch.full((7, 2), 5.0, dtype=torch.float64)
    guided = given(model, b) * (given(model, a) / given(model, b)) ** 3.0
    x = points()
    plain = gaussian(Linear()).bind(TIMES)(x, 1)
    torch.testing.assert_close(guided.bind(TIMES)(x, 1), plain + 5.0 + 3.0 * (1.0 - 5.0), rtol=1e-12, atol=1e-12)
    ((batch, cond),) = model.calls
    assert batch == 14 and sorted(cond[:, 0].tolist()) == [1.0] * 7 + [5.0] * 7


def test_conditions_that_cannot_be_stacked_are_called_apart():
    model = Counted(gaussian(Linear()))
    guided = model * (given(model, torch.ones(7, 2, dtype=torch.float64)) / model) ** 2.0
    x = points()
    plain = gaussian(Linear()).bind(TIMES)(x, 1)
    torch.testing.assert_close(guided.bind(TIMES)(x, 1), plain + 2.0, rtol=1e-12, atol=1e-12)
    assert [batch for batch, _ in model.calls] == [7, 7]


def test_batched_experts_agree_with_separate_ones_under_times_of_their_own():
    schedule = RectifiedFlow()
    data = plane_mixture(schedule)

    class Network(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            rows = [data.bind(vector(float(s)))(x[i : i + 1], 0) for i, s in enumerate(t)]
            return torch.cat(rows) * cond

    model = NetworkDenoiser(Network(), schedule, "x0")
    x, times = points(4), torch.tensor([[0.9, 0.6, 0.4, 0.2]], dtype=torch.float64)
    one, two = (torch.full((4, 1), c, dtype=torch.float64) for c in (1.0, 1.5))
    together = (given(model, one) * (given(model, two) / given(model, one)) ** 2.0).bind(times)(x, 0)
    apart = 2.0 * given(model, two).bind(times)(x, 0) - given(model, one).bind(times)(x, 0)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


# --- energies -------------------------------------------------------------------------------------------


@every_smooth
def test_an_energy_of_the_noisy_sample_adds_its_gradient_to_the_score(schedule):
    a = plane_mixture(schedule)
    tilted = a * Energy(lambda x, t: ((x - 1.0) ** 2).sum(1), on="x_t") ** 0.5
    x = points()
    for t in TIMES.tolist():
        torch.testing.assert_close(score(tilted, schedule, x, t), a.score(x, t) - (x - 1.0), rtol=1e-9, atol=1e-9)


def check_energy_through_the_denoiser(energy: Callable[[Callable[[Tensor], Tensor]], Energy]) -> None:
    """The score gains ``-grad_x cost(x0_hat(x))``, here by finite differences."""
    schedule, t = Linear(), 0.4
    a = plane_mixture(schedule)

    def cost(x0: Tensor) -> Tensor:
        return x0.square().prod(1) + x0.sum(1)

    x, h = points(), 1e-6
    steps = h * torch.eye(2, dtype=torch.float64)
    evaluate = a.bind(vector(t))
    gradient = torch.stack(
        [(cost(evaluate(x + step, 0)) - cost(evaluate(x - step, 0))) / (2.0 * h) for step in steps], 1
    )
    tilted = a * energy(cost) ** 2.0
    torch.testing.assert_close(score(tilted, schedule, x, t), a.score(x, t) - 2.0 * gradient, rtol=1e-6, atol=1e-6)


def test_an_energy_of_the_estimate_is_differentiated_through_the_denoiser():
    check_energy_through_the_denoiser(Energy)


@every_smooth
def test_the_stand_in_for_the_jacobian_is_exact_for_unit_gaussian_data(schedule):
    unit = GaussianData(schedule, vector(0.3, -1.0), vector(1.0, 1.0))

    def cost(x0: Tensor) -> Tensor:
        return (x0**4).sum(1)

    x = points()
    exact, cheap = ((unit * Energy(cost, through=way)).bind(TIMES) for way in ("denoiser", "estimate"))
    for i in range(3):
        torch.testing.assert_close(cheap(x, i), exact(x, i), rtol=1e-9, atol=1e-9)


def test_the_energy_of_a_measurement_gives_the_exact_posterior_of_a_gaussian():
    # x0 ~ N(0, 1), y = x0 + N(0, s^2): with the variance of x0_hat in the likelihood every noised posterior is exact
    schedule, std, y = Linear(), 0.5, 1.2
    prior = GaussianData(schedule, vector(0.0), vector(1.0))

    def precision(t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return 1.0 / (std**2 + sigma**2 / (alpha**2 + sigma**2))

    posterior = prior * Energy(lambda x0: 0.5 * ((x0 - y) ** 2).sum(1)) ** precision
    end = sample(posterior, ddim(schedule, grids.uniform(400)), points(4000, 1))
    assert float(end.mean()) == pytest.approx(y / (1.0 + std**2), abs=0.03)
    assert float(end.std()) == pytest.approx(std / math.sqrt(1.0 + std**2), abs=0.02)


def test_an_energy_that_is_off_costs_no_gradient():
    calls: list[int] = []

    def cost(x0: Tensor) -> Tensor:
        calls.append(len(x0))
        return x0.sum(1)

    a = gaussian(Linear())
    sometimes = a * Energy(cost) ** (lambda t: torch.where(t < 0.3, 1.0, 0.0))
    evaluate, x = sometimes.bind(TIMES), points()
    torch.testing.assert_close(evaluate(x, 0), a.bind(TIMES)(x, 0), rtol=0, atol=0)
    assert not calls
    evaluate(x, 2)
    assert calls == [7]


def test_a_cost_that_is_not_one_per_sample_is_refused():
    with pytest.raises(WorkbenchError, match=r"got a cost of shape \(\); expected \(batch,\)"):
        (gaussian(Linear()) * Energy(lambda x0: x0.sum())).bind(TIMES)(points(), 0)


# --- known values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["renoised", "clean"])
@pytest.mark.parametrize("solver", [ddim, ddpm], ids=["ddim", "ddpm"])
def test_known_entries_end_at_their_values_and_the_independent_rest_is_untouched(solver, mode):
    schedule = Linear()
    data = gaussian(schedule)
    known = Known(torch.tensor([True, False]), vector(3.0, 0.0), mode=mode)
    table, x = solver(schedule, grids.uniform(20)), points(50)
    end, free = (sample(a, table, x, noise=shared()) for a in (data * known, data))
    assert float((end[:, 0] - 3.0).abs().max()) < 1e-12
    assert torch.equal(end[:, 1], free[:, 1])


def test_ancestral_steps_noise_the_known_entries_as_the_data_is_noised():
    schedule, value = Linear(), 2.0
    known = Known(torch.tensor([True, False]), vector(value, 0.0))
    grid = grids.uniform(10)[:6]
    middle = sample(gaussian(schedule) * known, ddpm(schedule, grid), points(40_000), noise=shared())[:, 0]
    alpha, sigma = float(schedule.alpha(grid[-1])), float(schedule.sigma(grid[-1]))
    assert float(middle.mean()) == pytest.approx(alpha * value, abs=4.0 * sigma / 200.0)
    assert float(middle.std()) == pytest.approx(sigma, rel=4.0 / math.sqrt(2.0 * 40_000))


def test_clean_mode_shows_the_denoiser_the_values():
    seen: list[Tensor] = []

    class Watch(Denoiser):
        process = Gaussian(Linear())

        def bind(self, times: Any, cond: Any = None) -> Evaluate:
            return lambda x, i: seen.append(x) or torch.zeros_like(x)

    for mode, expected in (("clean", 3.0), ("renoised", float(points()[0, 0]))):
        known = Known(torch.tensor([True, False]), vector(3.0, 0.0), mode=mode)
        estimate = (Watch() * known).bind(TIMES)(points(), 0)
        assert float(seen[-1][0, 0]) == expected and estimate[:, 0].tolist() == [3.0] * 7


# --- mixtures -------------------------------------------------------------------------------------------


@every_smooth
def test_a_mixture_of_mixtures_is_a_mixture(schedule):
    a, b = mixture(schedule), GaussianMixture(schedule, vector(1.0), vector(3.0)[:, None], vector(0.5))
    both = GaussianMixture(
        schedule, torch.cat([a.weights, b.weights]) / 2.0, torch.cat([a.means, b.means]), torch.cat([a.stds, b.stds])
    )
    x = points(9, 1)
    for i, t in enumerate(TIMES.tolist()):
        torch.testing.assert_close((a | b).bind(TIMES)(x, i), both.bind(TIMES)(x, i), rtol=1e-9, atol=1e-10)
        log_density = (a | b).bind_log_density(TIMES)(x, i) - math.log(2.0)
        torch.testing.assert_close(log_density, both.log_density(x, t), rtol=1e-9, atol=1e-10)


def test_a_mixture_of_bare_denoisers_finds_its_shares_on_the_path():
    n, schedule = 20_000, Linear()
    a = GaussianData(schedule, vector(-1.5), vector(0.4))
    b = GaussianData(schedule, vector(1.0), vector(0.3))
    bare = Counted(a) | Counted(b)
    assert not bare.has_log_density
    grid = grids.log_snr_uniform(schedule, 150, start=1.0, end=1e-3)
    end = sample(bare, ddpm(schedule, grid), points(n, 1), noise=shared())[:, 0]
    upper = end > -0.1
    assert float(upper.double().mean()) == pytest.approx(0.5, abs=4.0 * 0.5 / math.sqrt(n) + 0.01)
    for part, data in ((end[~upper], a), (end[upper], b)):
        assert float(part.mean()) == pytest.approx(float(data.mean), abs=0.03)
        assert float(part.std()) == pytest.approx(float(data.std), rel=0.05)


def test_a_mixture_of_tables_of_classes_is_a_table():
    process = Absorbing(RectifiedFlow(), 3)
    shares = torch.tensor([[0.7, 0.1, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64)
    a, b, both = (CategoricalTable(process, table) for table in (*shares, shares.mean(0)))
    x = torch.tensor([[0], [2], [3]])
    for i in range(3):
        ours, exact = ((d.bind(TIMES)(x, i)).softmax(-1) for d in (a | b, both))
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_three_parts_have_a_third_each():
    a, b, c = (GaussianData(Linear(), vector(m), vector(0.1)) for m in (-1.0, 0.0, 1.0))
    assert len((a | b | c).parts) == 3 == len((a | (b | c)).parts)


# --- states of several fields ---------------------------------------------------------------------------


class Two(Denoiser):
    """Two independent oracles as one denoiser of a dict."""

    def __init__(self, left: GaussianData, right: GaussianData) -> None:
        self.fields = {"left": left, "right": right}
        self.process = Joint({name: oracle.process for name, oracle in self.fields.items()})

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        each = {name: oracle.bind(times[name]) for name, oracle in self.fields.items()}
        return lambda x, i: {name: evaluate(x[name], i) for name, evaluate in each.items()}


def test_a_product_over_several_fields_is_a_product_in_each():
    linear, flow = Linear(), RectifiedFlow()
    a, b = (
        Two(GaussianData(linear, vector(m), vector(s)), GaussianData(flow, vector(-m), vector(2.0 * s)))
        for m, s in ((0.0, 1.0), (1.0, 0.5))
    )
    times = {"left": TIMES, "right": vector(0.8, 0.4, 0.2)}
    x = {"left": points(5, 1), "right": points(5, 1, seed=1)}
    cost = Energy(lambda x0: (x0["left"] * x0["right"])[:, 0])
    guided = (a * b**0.5 * cost).bind(times)(x, 1)
    for name, other in (("left", "right"), ("right", "left")):
        one, two = a.fields[name], b.fields[name]
        schedule, t = one.schedule, times[name][1:2]
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        plain = (one * two**0.5).bind(t)(x[name], 0)
        # d cost / d x = other's estimate times the slope of the own one
        slope = [(alpha * o.std**2 / (alpha**2 * o.std**2 + sigma**2)) for o in (one, two)]
        own = slope[0] + 0.5 * slope[1] - 0.5 / alpha
        far = (a.fields[other] * b.fields[other] ** 0.5).bind(times[other][1:2])(x[other], 0)
        torch.testing.assert_close(guided[name], plain - sigma**2 / alpha * own * far, rtol=1e-9, atol=1e-9)


def test_every_field_follows_its_own_schedule_and_grid():
    linear, flow = Linear(), RectifiedFlow()
    left, right = GaussianData(linear, vector(0.7), vector(0.4)), GaussianData(flow, vector(-2.0), vector(1.3))
    x = {"left": points(6, 1), "right": points(6, 1, seed=1)}
    plans = {"left": ddim(linear, grids.uniform(12)), "right": ddim(flow, grids.karras(flow, 12, start=0.99))}
    end = sample(Two(left, right), Together(plans), x)
    for name, oracle in (("left", left), ("right", right)):
        torch.testing.assert_close(end[name], sample(oracle, plans[name], x[name]), rtol=0, atol=0)
    with pytest.raises(WorkbenchError, match="got 12 rows for 'left' and 5 for 'right'"):
        Together({"left": plans["left"], "right": ddim(flow, grids.uniform(5))})


def test_known_values_of_one_field_leave_the_other_free():
    linear = Linear()
    two = Two(GaussianData(linear, vector(0.7), vector(0.4)), GaussianData(linear, vector(0.0), vector(1.0)))
    known = Known({"left": torch.tensor([True])}, {"left": vector(5.0)})
    x = {"left": points(6, 1), "right": points(6, 1, seed=1)}
    plan = Together({name: ddim(linear, grids.uniform(8)) for name in x})
    end = sample(two * known, plan, x)
    assert end["left"].flatten().tolist() == [5.0] * 6
    torch.testing.assert_close(end["right"], sample(two, plan, x)["right"], rtol=0, atol=0)


def test_products_are_multiplied_out_when_written():
    a, b = gaussian(Linear()), plane_mixture(Linear())
    expression = (a * b) ** 2.0 * Energy(lambda x: x.sum(1)) ** 0.5 * Known(torch.tensor(True), vector(0.0, 0.0))
    assert isinstance(expression, Product)
    assert [strength for _, strength in expression.denoisers] == [2.0, 2.0]
    assert [strength for _, strength in expression.energies] == [0.5] and len(expression.known) == 1
