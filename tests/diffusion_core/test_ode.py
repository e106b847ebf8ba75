"""Runge-Kutta methods against their order conditions, adaptive integration against exact flows."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations_with_replacement, pairwise

import pytest
import torch
from torch import Tensor

from diffusion_core import ode
from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.ode import (
    DORMAND_PRINCE,
    EULER,
    HEUN,
    RK4,
    Tableau,
    evenly,
    in_angle,
    integrate,
    integrate_on,
    probability_flow,
    sample_adaptive,
)
from diffusion_core.process import Process
from diffusion_core.schedule import Linear, Schedule, VarianceExploding, linear_betas
from tests.diffusion_core.worlds import SCHEDULES, SMOOTH, gaussian, mixture, plane_mixture, vector

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_smooth = pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
CLEAN = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]
END = 1e-3

Tree = tuple  # a rooted tree is the tuple of its subtrees


def trees(n: int) -> list[Tree]:
    """All rooted trees of ``n`` nodes."""

    def forests(nodes: int, largest: int) -> list[Tree]:
        if nodes == 0:
            return [()]
        found = []
        for size in range(min(nodes, largest), 0, -1):
            for count in range(1, nodes // size + 1):
                for same in combinations_with_replacement(trees(size), count):
                    found += [same + rest for rest in forests(nodes - size * count, size - 1)]
        return found

    return [()] if n == 1 else forests(n - 1, n - 1)


def nodes(tree: Tree) -> int:
    return 1 + sum(nodes(sub) for sub in tree)


def density(tree: Tree) -> int:
    return nodes(tree) * math.prod(density(sub) for sub in tree)


def order_defects(tableau: Tableau, weights: tuple[float, ...], n: int) -> list[float]:
    """``sum_i b_i Phi_i(tree) - 1 / density(tree)`` for every tree of n nodes: all 0 for a method of order >= n."""
    stages = len(tableau.nodes)
    matrix = torch.zeros(stages, stages, dtype=torch.float64)
    for i, row in enumerate(tableau.stages):
        matrix[i, : len(row)] = vector(*row)

    def weight(tree: Tree) -> Tensor:
        product = torch.ones(stages, dtype=torch.float64)
        for sub in tree:
            product = product * (matrix @ weight(sub))
        return product

    return [float(vector(*weights) @ weight(tree)) - 1.0 / density(tree) for tree in trees(n)]


def check_tableau(tableau: Tableau, order: int, embedded: int | None = None) -> None:
    for row, node in zip(tableau.stages, tableau.nodes, strict=True):
        assert abs(sum(row) - node) < 1e-14
    for n in range(1, order + 1):
        assert max(abs(d) for d in order_defects(tableau, tableau.weights, n)) < 1e-14
    assert max(abs(d) for d in order_defects(tableau, tableau.weights, order + 1)) > 1e-5
    if embedded is not None:
        other = tuple(b - e for b, e in zip(tableau.weights, tableau.error, strict=True))
        for n in range(1, embedded + 1):
            assert max(abs(d) for d in order_defects(tableau, other, n)) < 1e-14
        assert max(abs(d) for d in order_defects(tableau, other, embedded + 1)) > 1e-5


def test_there_are_as_many_trees_as_known():
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize(
    ("tableau", "order", "embedded"),
    [(EULER, 1, None), (HEUN, 2, None), (RK4, 4, None), (DORMAND_PRINCE, 5, 4)],
    ids=["euler", "heun", "rk4", "dormand-prince"],
)
def test_every_condition_of_the_order_holds_and_no_more(tableau, order, embedded):
    check_tableau(tableau, order, embedded)


@pytest.mark.parametrize(
    ("tableau", "order"), [(EULER, 1), (HEUN, 2), (RK4, 4), (DORMAND_PRINCE, 5)], ids=["1", "2", "4", "5"]
)
def test_fixed_steps_converge_on_the_flow_of_a_mixture_with_their_order(tableau, order):
    data = mixture(Linear())
    errors = []
    for n in (32, 64):
        solution = in_angle(evenly(n, tableau), data.schedule)(
            probability_flow(data), data.flow(CLEAN, END, 1.0), 1.0, END
        )
        assert solution.evaluations == n * len(tableau.nodes)
        errors.append(float((solution.x - CLEAN).abs().max()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] > order - 0.25, (errors, slopes)


def check_flow(sampler, schedule: Schedule) -> None:
    """From noise to data along the exact flow: the error follows the tolerance, the work its fifth root."""
    data = mixture(schedule)
    noisy = data.flow(CLEAN, END, 1.0)
    work = []
    for tolerance in (1e-3, 1e-5, 1e-8):
        solution = sampler(data, noisy, 1.0, END, tolerance, tolerance)
        error = float((solution.x - CLEAN).abs().max())
        assert error < 5.0 * tolerance, (tolerance, error)
        # six new stages a step, the first shared with the last step; two evaluations choose the first step
        assert solution.evaluations == 2 + 6 * (solution.steps + solution.rejected)
        work.append(solution.steps)
    assert work == sorted(work) and work[-1] < 8.0 * work[1], work


@every_schedule
def test_the_error_follows_the_tolerance(schedule):
    check_flow(sample_adaptive, schedule)


def test_a_table_of_betas_costs_no_more_than_the_smooth_schedule():
    # in t the velocity jumps at every of the 1000 entries: 4e-4 off after 2102 evaluations at a tolerance of 1e-7
    counts = {}
    for schedule in (Linear(), linear_betas()):
        data = mixture(schedule)
        counts[schedule] = sample_adaptive(data, data.flow(CLEAN, END, 1.0), 1.0, END, 1e-7, 1e-7).evaluations
    assert counts[linear_betas()] <= counts[Linear()] + 6


@every_smooth
def test_gaussian_data_flow_along_their_quantiles(schedule):
    data = gaussian(schedule)
    x = data.mean + data.std * torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution = sample_adaptive(data, data.flow(x, END, 1.0), 1.0, END, 1e-7, 1e-7)
    torch.testing.assert_close(solution.x, x, rtol=0, atol=1e-6)


@every_smooth
def test_inversion_and_back_is_the_start(schedule):
    data = plane_mixture(schedule)
    x = data.sample(20, torch.Generator().manual_seed(0))
    up = sample_adaptive(data, x, END, 1.0, 1e-7, 1e-7)
    down = sample_adaptive(data, up.x, 1.0, END, 1e-7, 1e-7)
    assert float((up.x - x).abs().max()) > 0.1
    torch.testing.assert_close(down.x, x, rtol=0, atol=3e-6)


def test_evaluations_are_counted_as_they_happen():
    calls = []

    def slope(x: Tensor, t: float) -> Tensor:
        calls.append(t)
        return torch.tanh((torch.tensor(t) - 0.5) / 0.01) * torch.ones_like(x)

    solution = integrate(slope, torch.zeros(1, dtype=torch.float64), 0.0, 1.2, 1e-8, 1e-8)
    assert solution.evaluations == len(calls) and solution.rejected > 0
    # the integral of tanh((t - 1/2) / w) is w log cosh
    expected = 0.01 * (_log_cosh(70.0) - _log_cosh(50.0))
    assert abs(float(solution.x) - expected) < 1e-7


def _log_cosh(x: float) -> float:
    return x + math.log1p(math.exp(-2.0 * x)) - math.log(2.0)


@pytest.mark.parametrize("solve", [partial(integrate, rtol=1e-10, atol=1e-10), evenly(100)], ids=["adaptive", "fixed"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (2.0, 0.0), (-1.0, 0.5)])
def test_a_state_of_several_fields_with_a_slope_that_depends_on_time(solve, start, end):
    # a' = -t a, b' = b + cos t: a = a_0 exp(-t^2/2), and b below
    x = {"a": vector(1.0, -2.0) * math.exp(-(start**2) / 2), "b": torch.zeros(2, 3, dtype=torch.float64)}
    before = {name: value.clone() for name, value in x.items()}
    solution = solve(lambda x, t: {"a": -t * x["a"], "b": x["b"] + math.cos(t)}, x, start, end)
    torch.testing.assert_close(solution.x["a"], vector(1.0, -2.0) * math.exp(-(end**2) / 2), rtol=1e-6, atol=1e-8)
    # b' = b + cos t from 0: b = (sin t - cos t)/2 + c e^t
    c = -0.5 * (math.sin(start) - math.cos(start)) * math.exp(-start)
    expected = 0.5 * (math.sin(end) - math.cos(end)) + c * math.exp(end)
    torch.testing.assert_close(solution.x["b"], torch.full((2, 3), expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)
    for name, value in before.items():
        assert torch.equal(x[name], value)


def check_worst_sample_counts(solve) -> None:
    """Elements at rest, in other fields or other samples, must not dilute the error of those that move."""
    one = vector(1.0)[:, None]
    alone = solve(lambda x, t: x * math.cos(5.0 * t), one, 0.0, 2.0)
    crowd = torch.cat([one, torch.zeros(999, 1, dtype=torch.float64)])
    among_samples = solve(lambda x, t: x * math.cos(5.0 * t), crowd, 0.0, 2.0)
    fields = {"one": one, "many": torch.zeros(1, 999, dtype=torch.float64)}
    among_fields = solve(
        lambda x, t: {"one": x["one"] * math.cos(5.0 * t), "many": torch.zeros_like(x["many"])}, fields, 0.0, 2.0
    )
    assert alone[1:] == among_samples[1:] == among_fields[1:]
    assert torch.equal(alone.x[0], among_samples.x[0]) and torch.equal(alone.x, among_fields.x["one"])


def test_a_sample_or_field_is_as_accurate_in_company_as_alone():
    check_worst_sample_counts(integrate)


def check_stiff(solve) -> None:
    """The slope's own scale of time, 1/50, bounds the steps: longer ones are unstable, and must be rejected."""
    solution = solve(lambda x, t: -50.0 * (x - math.cos(t)), vector(0.0), 0.0, 1.5, rtol=1e-6, atol=1e-6)
    # x = (2500 cos t + 50 sin t - 2500 e^{-50 t}) / 2501
    expected = (2500.0 * math.cos(1.5) + 50.0 * math.sin(1.5)) / 2501.0
    assert abs(float(solution.x) - expected) < 1e-5 and solution.steps + solution.rejected < 200


def test_a_stiff_equation_is_solved_by_rejecting_steps():
    check_stiff(integrate)


def test_single_precision_gives_the_same_sample():
    data = mixture(Linear())
    noisy = data.flow(CLEAN, END, 1.0)
    single = sample_adaptive(data, noisy.float(), 1.0, END, 1e-5, 1e-5)
    assert single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), CLEAN, rtol=0, atol=3e-4)


def test_no_way_to_go_is_no_work():
    x = vector(1.0)
    solution = integrate(lambda x, t: x, x, 0.3, 0.3)
    assert solution == (x, 0, 0, 0)


def test_a_single_step_of_the_fixed_method_is_the_tableau():
    solution = integrate_on(lambda x, t: x, vector(1.0), vector(0.0, 0.5), RK4)
    assert float(solution.x) == pytest.approx(1.0 + 0.5 + 0.125 + 0.125 / 6 + 0.0625 / 24, abs=1e-15)


def test_a_slope_that_is_not_finite_is_an_error():
    with pytest.raises(WorkbenchError, match="the step fell"):
        integrate(lambda x, t: x * (math.nan if t > 0.5 else 1.0), vector(1.0), 0.0, 1.0)
    with pytest.raises(WorkbenchError, match="ODE"):
        integrate(lambda x, t: x**2, vector(1.0), 0.0, 2.0)  # 1 / (1 - t)
    with pytest.raises(WorkbenchError, match="ODE"):
        integrate(lambda x, t: x * math.nan, vector(1.0), 0.0, 2.0)


def test_too_few_steps_are_an_error():
    data = mixture(Linear())
    with pytest.raises(WorkbenchError, match="max_steps=3 steps"):
        sample_adaptive(data, CLEAN, 1.0, END, 1e-8, 1e-8, max_steps=3)


def test_mistakes_are_named():
    x = vector(1.0)
    with pytest.raises(WorkbenchError, match="rtol=-1"):
        integrate(lambda x, t: x, x, 0.0, 1.0, rtol=-1.0)
    with pytest.raises(WorkbenchError, match="atol=0"):
        integrate(lambda x, t: x, x, 0.0, 1.0, rtol=0.0, atol=0.0)
    with pytest.raises(WorkbenchError, match="structure"):
        integrate(lambda x, t: {"x": x}, x, 0.0, 1.0)
    data = mixture(VarianceExploding(20.0))
    for start, end in ((1.0, 0.0), (1.5, 0.1), (-0.1, 1.0)):
        with pytest.raises(WorkbenchError, match="where there is none"):
            sample_adaptive(data, CLEAN, start, end)


def test_the_flow_of_another_kind_of_field_is_refused():
    class Torus(Process):
        noise = corrupt = prior = combine = Process.noise

    Torus.__abstractmethods__ = frozenset()

    class Other(Denoiser):
        process = Torus()

        def bind(self, times, cond=None):
            raise NotImplementedError

    with pytest.raises(WorkbenchError, match="process Torus"):
        ode.schedule_of(Other())
