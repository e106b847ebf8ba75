"""The categorical process against matrices, Bayes' rule and enumeration of small joint tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import Denoiser
from diffusion_core.denoise.classifier import Classifier
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Known, start
from diffusion_core.loss import Draws
from diffusion_core.noise import On, PerSample, Shared
from diffusion_core.oracles import CategoricalTable
from diffusion_core.process.categorical import Absorbing, Categorical, Marginal, Rates, Steps, uniform
from diffusion_core.process.categorical.chain import discretised_gaussian, nearest_neighbour
from diffusion_core.process.categorical.elbo import (
    bound,
    continuous_loss,
    cross_entropy,
    hybrid_loss,
    masked_weight,
    prior_kl,
    rate_kl,
    step_kl,
)
from diffusion_core.process.categorical.kernel import inverse_cdf, one_hot
from diffusion_core.process.categorical.orders import (
    order_agnostic_loss,
    order_agnostic_nll,
    order_nll,
    random_orders,
)
from diffusion_core.sample import sample, trajectory
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, VarianceExploding
from diffusion_core.solvers.categorical import ancestral, reveal
from tests.diffusion_core.worlds import vector

K = 3
FLOW = RectifiedFlow()


def rates(k: int = K) -> Tensor:
    """A rate matrix without any symmetry."""
    matrix = torch.rand(k, k, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.2
    matrix.fill_diagonal_(0.0)
    return matrix - matrix.sum(1).diag()


def absorbing_rates(k: int) -> Tensor:
    matrix = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    matrix[:k, :k] = -torch.eye(k, dtype=torch.float64)
    matrix[:k, k] = 1.0
    return matrix


def steps(n: int = 12, k: int = K) -> Steps:
    """Different transition matrices at every step, with no symmetry."""
    matrices = torch.rand(n, k, k, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 3
    matrices = 0.7 * torch.eye(k, dtype=torch.float64) + 0.3 * matrices / matrices.sum(-1, keepdim=True)
    return Steps(matrices, k)


PROCESSES: dict[str, Categorical] = {
    "absorbing": Absorbing(FLOW, K),
    "absorbing_cosine": Absorbing(Cosine(0.0), K),
    "uniform": uniform(FLOW, K),
    "uniform_linear": uniform(Linear(), K),
    "marginal": Marginal(FLOW, (0.2, 0.5, 0.3)),
    "rates": Rates(FLOW, rates(), K),
    "steps": steps(),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
continuous = pytest.mark.parametrize(
    "process", [p for p in PROCESSES.values() if not isinstance(p, Steps)], ids=[k for k in PROCESSES if k != "steps"]
)
# times that every process has, also the one of twelve steps
twelfths = st.integers(1, 11)


def at(i: int) -> Tensor:
    return torch.tensor(i / 12, dtype=torch.float64)


def matrix(process: Categorical, t: Tensor, s: Tensor) -> Tensor:
    return process.kernel(t, s).push(torch.eye(process.states, dtype=torch.float64))


def table(d: int, k: int = K, seed: int = 0) -> Tensor:
    """A joint distribution of d entries that depend on one another."""
    p = torch.rand((k,) * d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return p / p.sum()


def logits_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chi_squared(counts: Tensor, probabilities: Tensor) -> None:
    """Counts against probabilities, at a level of 1e-4; what is impossible must not occur."""
    n = float(counts.sum())
    possible = probabilities > 0.0
    assert int(counts[~possible].sum()) == 0
    expected = n * probabilities[possible]
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(1.0 - 1e-4, int(possible.sum()) - 1), statistic


@dataclass(frozen=True)
class Wrong(Denoiser):
    """Someone who does not know the truth, but is not told the time either: fixed logits per state."""

    process: Categorical
    seed: int = 1

    def bind(self, times: Tensor, cond: Any = None) -> Callable[[Tensor, int], Tensor]:
        def evaluate(x: Tensor, i: int) -> Tensor:
            states = self.process.states
            code = sum(entry * states**j for j, entry in enumerate(x.unbind(1)))
            d = x.shape[1]
            return logits_of(states**d, d, self.process.classes, seed=self.seed)[code]

        return evaluate


def noised(process: Categorical, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """All states x_t of d entries, and ``q(x_t | x0)`` for each row of x0: (m, d), (batch, m)."""
    d = x0.shape[1]
    x_t = torch.cartesian_prod(*[torch.arange(process.states)] * d).reshape(-1, d)
    q = matrix(process, t, torch.zeros_like(t))
    return x_t, q[x0[:, None], x_t[None]].prod(-1)


def expected(process: Categorical, denoiser: Denoiser, x0: Tensor, t: Tensor, term: Callable[..., Tensor]) -> Tensor:
    """``E_{q(x_t | x0)} term(logits, x0, x_t)`` by summing over every x_t: (batch,)."""
    x_t, q = noised(process, x0, t)
    evaluate = denoiser.bind(t[None])
    logits = evaluate(x_t, 0)
    totals = []
    for row, weights in zip(x0, q, strict=True):
        reached = weights > 0.0
        one = row.expand(int(reached.sum()), -1)
        totals.append((weights[reached] * term(logits[reached], one, x_t[reached])).sum())
    return torch.stack(totals)


def exact_bound(process: Categorical, denoiser: Denoiser, x0: Tensor, grid: Tensor) -> Tensor:
    """Every term of the bound, with all expectations by enumeration."""
    total = prior_kl(process, x0, float(grid[0]))
    for t, s in itertools.pairwise(grid):
        total = total + expected(process, denoiser, x0, t, lambda *a, t=t, s=s: step_kl(process, *a, t, s))
    return total


# the kernels


@every_process
@settings(deadline=None, max_examples=30)
@given(times=st.lists(twelfths, min_size=3, max_size=3, unique=True))
def test_noising_in_two_steps_is_noising_in_one(process, times):
    s, t, u = (at(i) for i in sorted(times))
    torch.testing.assert_close(matrix(process, t, s) @ matrix(process, u, t), matrix(process, u, s), rtol=0, atol=1e-12)


@every_process
def test_kernels_are_distributions_and_start_at_the_data(process):
    for i, j in ((12, 0), (7, 3), (12, 11)):
        m = matrix(process, at(i), at(j))
        assert bool((m >= 0.0).all())
        torch.testing.assert_close(m.sum(1), torch.ones(process.states, dtype=torch.float64), rtol=0, atol=1e-14)
    eye = torch.eye(process.states, dtype=torch.float64)
    torch.testing.assert_close(matrix(process, at(0), at(0)), eye, rtol=0, atol=1e-15)


def check_closed_form(process: Categorical, chain: Rates) -> None:
    """A closed form against the exponential of its rate matrix, in every operation of a kernel."""
    x = torch.tensor([[0, 1], [2, process.states - 1], [1, 1]])
    t, s = vector(0.9, 0.5, 0.31), vector(0.4, 0.1, 0.3)
    ours, theirs = process.kernel(t, s), chain.kernel(t, s)
    weights = logits_of(3, 2, process.states)
    torch.testing.assert_close(ours.push(weights), theirs.push(weights), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.column(x), theirs.column(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(process.rates(x, t), chain.rates(x, t), rtol=1e-12, atol=0)
    logits = logits_of(3, 2, process.classes)
    torch.testing.assert_close(
        process.reverse(t, s).probabilities(logits, x.clamp(max=process.classes - 1)),
        chain.reverse(t, s).probabilities(logits, x.clamp(max=process.classes - 1)),
        rtol=0,
        atol=1e-10,
    )
    torch.testing.assert_close(process.prior_probabilities(), chain.prior_probabilities(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [FLOW, Cosine(0.0), Linear()], ids=str)
def test_closed_forms_are_their_rate_matrices(schedule):
    check_closed_form(Absorbing(schedule, K), Rates(schedule, absorbing_rates(K), K))
    even = torch.full((K, K), 1.0 / K, dtype=torch.float64) - torch.eye(K, dtype=torch.float64)
    check_closed_form(uniform(schedule, K), Rates(schedule, even, K))
    p = (0.2, 0.5, 0.3)
    drawn = vector(*p).expand(K, K) - torch.eye(K, dtype=torch.float64)
    check_closed_form(Marginal(schedule, p), Rates(schedule, drawn, K))


def test_absorbing_entries_are_drawn_as_from_the_matrix():
    u = torch.rand(1000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0 = torch.randint(K, (1000, 4), generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.0, 1.0, 1000, dtype=torch.float64)
    ours = Absorbing(FLOW, K).corrupt(x0, t, u)
    assert torch.equal(ours, Rates(FLOW, absorbing_rates(K), K).corrupt(x0, t, u))


def check_posterior(process: Categorical) -> None:
    """The reverse kernel by Bayes' rule on the joint ``p(x0) q(x_s | x0) q(x_t | x_s)``, for any prior of x0."""
    prior = vector(0.5, 0.2, 0.3)
    for i, j in ((12, 5), (7, 6), (3, 0), (9, 1)):
        t, s = at(i), at(j)
        from_data, onward = matrix(process, s, at(0))[: process.classes], matrix(process, t, s)
        joint = prior[:, None, None] * from_data[:, :, None] * onward  # x0, x_s, x_t
        x_t = torch.arange(process.states)[joint.sum((0, 1)) > 0.0]
        logits = (joint.sum(1) / joint.sum((0, 1))).T[x_t].log()
        reverse = process.reverse(t, s).probabilities(logits, x_t)
        torch.testing.assert_close(reverse, (joint.sum(0) / joint.sum((0, 1))).T[x_t], rtol=0, atol=1e-12)
        for x0 in range(process.classes):
            reached = x_t[joint[x0].sum(0)[x_t] > 0.0]
            known = one_hot(torch.tensor(x0), process.classes).log().expand(len(reached), -1)
            truth = (joint[x0] / joint[x0].sum(0)).T[reached]
            torch.testing.assert_close(process.reverse(t, s).probabilities(known, reached), truth, rtol=0, atol=1e-12)


@every_process
def test_the_posterior_is_bayes_rule(process):
    check_posterior(process)


def test_the_absorbing_posterior_is_the_published_one():
    # Sahoo et al. 2024: a masked entry is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t)
    process, t, s = Absorbing(FLOW, K), 0.8, 0.3
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    reverse = process.reverse(vector(t), vector(s)).probabilities(p.log()[None], torch.tensor([process.mask]))[0]
    torch.testing.assert_close(reverse, torch.cat([(t - s) / t * p, vector(s / t)]), rtol=1e-13, atol=0)


def check_remasking(churned: Callable[[Absorbing, Tensor, float], Any]) -> None:
    """Back to r and forward to s is ReMDM's posterior with ``sigma = 1 - alpha_s / alpha_r``."""
    process, t, s, churn = Absorbing(Cosine(0.0), K), vector(0.8), vector(0.5), 0.4
    a_t, a_s, a_r = (float(process.schedule.alpha(u)) for u in (t, s, (1.0 - churn) * s))
    sigma = 1.0 - a_s / a_r
    p = vector(0.2, 0.5, 0.3)
    n = 20_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    plan = churned(process, torch.cat([t, s]), churn)

    class Ladder(Shared):
        def uniform(self, shape, dtype, device):
            return u[:, None]

    for state, expected_s in (
        (
            process.mask,
            torch.cat([(a_s - (1 - sigma) * a_t) / (1 - a_t) * p, vector((1 - a_s - sigma * a_t) / (1 - a_t))]),
        ),
        (1, torch.cat([(1 - sigma) * one_hot(torch.tensor(1), K), vector(sigma)])),
    ):
        advance = plan.begin(torch.full((n, 1), state), Ladder(torch.Generator()))
        drawn = advance(torch.full((n, 1), state), p.log().expand(n, 1, K), 0)[:, 0]
        counts = torch.bincount(drawn, minlength=K + 1).double() / n
        torch.testing.assert_close(counts, expected_s, rtol=0, atol=2.0 / n)


def test_churn_is_remasking():
    check_remasking(ancestral)


def test_a_given_class_is_kept_where_the_noise_has_no_trace_of_data():
    process = Absorbing(FLOW, K)
    reverse = process.reverse(vector(1.0, 1.0), vector(0.5, 0.5))
    kept = reverse.probabilities(logits_of(2, K), torch.tensor([1, process.mask]))
    assert kept[0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert bool(kept.isfinite().all())


# drawing


def check_corruption(process: Categorical) -> None:
    """Frequencies over a ladder of uniforms, which integrates the draw exactly up to one rung."""
    n = 60_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for i in (1, 5, 12):
        for x0 in range(process.classes):
            x_t = process.corrupt(torch.full((n,), x0), at(i), u)
            frequencies = torch.bincount(x_t, minlength=process.states).double() / n
            torch.testing.assert_close(frequencies, matrix(process, at(i), at(0))[x0], rtol=0, atol=4.0 / n)


@every_process
def test_corruption_has_the_forward_frequencies(process):
    check_corruption(process)


@every_process
def test_the_prior_is_where_the_noise_ends(process):
    n = 60_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    frequencies = torch.bincount(process.prior(u), minlength=process.states).double() / n
    torch.testing.assert_close(frequencies, process.prior_probabilities(), rtol=0, atol=2.0 / n)
    # the rates' slowest mode is exp(-1.4 700): what is left of the data is what the schedule leaves
    end = float(process.kernel(at(12), at(0)).push(torch.eye(process.states, dtype=torch.float64))[: process.classes]
                .sub(process.prior_probabilities()).abs().max())  # fmt: skip
    left = {"Linear": math.exp(-5.025)}.get(type(getattr(process, "schedule", None)).__name__, 1e-12)
    assert end <= left or isinstance(process, Steps)


def check_rare_classes(draw: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A class of probability 1e-10 is drawn exactly by the share of uniforms that belongs to it."""
    p = vector(1.0 - 3e-10, 1e-10, 2e-10)
    u = vector(0.5e-10, 1.5e-10, 2.5e-10, 3.5e-10, 0.5)
    assert draw(p, u).tolist() == [2, 2, 1, 0, 0]


def test_rare_classes_are_drawn():
    check_rare_classes(inverse_cdf)


def check_impossible(draw: Callable[[Tensor, Tensor], Tensor]) -> None:
    """No uniform in [0, 1), its ends included, draws a state without probability."""
    p = torch.rand(5000, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = p * (torch.rand(5000, 9, generator=torch.Generator().manual_seed(1)) < 0.5)
    p = torch.cat([p, torch.eye(9, dtype=torch.float64)])
    p = p[p.sum(1) > 0.0]
    p[:, 0], p[:, -1] = 0.0, 0.0
    p = p[p.sum(1) > 0.0] * vector(1.0 / 3.0)
    for u in (0.0, 5e-324, 0.5, math.nextafter(1.0, 0.0)):
        drawn = draw(p, torch.full((len(p),), u, dtype=torch.float64))
        assert bool((p.gather(1, drawn[:, None]) > 0.0).all())


def test_impossible_states_are_never_drawn():
    check_impossible(inverse_cdf)


def test_noise_keeps_each_entry_until_its_time():
    process = Absorbing(FLOW, K)
    x0 = torch.randint(K, (500,), generator=torch.Generator().manual_seed(0))
    u = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masked = torch.stack([process.corrupt(x0, at(i), u) == process.mask for i in range(13)])
    assert bool((masked[1:] >= masked[:-1]).all()) and not masked[0].any() and masked[-1].all()


@every_process
def test_each_sample_is_corrupted_at_its_own_time(process):
    x0 = torch.randint(K, (4, 2, 5), generator=torch.Generator().manual_seed(0))
    u = torch.rand(4, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.stack([at(i) for i in (1, 4, 9, 12)])
    whole = process.corrupt(x0, t, u)
    assert torch.equal(whole, torch.stack([process.corrupt(x0[i], t[i], u[i]) for i in range(4)]))
    tokens = torch.stack([t, t.flip(0)], 1)
    per_token = process.corrupt(x0, tokens, u)
    assert torch.equal(per_token[:, 1], torch.stack([process.corrupt(x0[i, 1], t[3 - i], u[i, 1]) for i in range(4)]))


# the oracle, and samplers


@every_process
def test_the_oracle_is_bayes_rule(process):
    world, t = CategoricalTable(process, table(2)), at(5)
    x_t, q = noised(process, world.outcomes, t)
    joint = world.table.flatten()[:, None] * q
    x_t, joint = x_t[joint.sum(0) > 0.0], joint[:, joint.sum(0) > 0.0]
    torch.testing.assert_close(world.log_density(x_t, float(t)), joint.sum(0).log(), rtol=0, atol=1e-12)
    posterior = joint / joint.sum(0)
    estimate = world.bind(t[None])(x_t, 0).exp()
    for d in range(2):
        marginal = torch.stack([posterior[world.outcomes[:, d] == k].sum(0) for k in range(K)], 1)
        torch.testing.assert_close(estimate[:, d], marginal, rtol=0, atol=1e-12)


def check_sampler(process: Categorical, plan_of: Callable[[Categorical, Tensor], Any], d: int, n_steps: int) -> None:
    """Samples against the table, chi-squared at 1e-4."""
    world = CategoricalTable(process, table(d))
    source = Shared(torch.Generator().manual_seed(0))
    n = 40_000
    noise = process.noise(torch.zeros(n, d, dtype=torch.int64), On(source, torch.device("cpu")))
    x = sample(world, plan_of(process, grids.uniform(n_steps)), process.prior(noise), noise=source)
    assert int(x.max()) < process.classes
    counts = torch.bincount(world.index(x), minlength=process.classes**d).double()
    chi_squared(counts, world.table.flatten())


FULL = {k: p for k, p in PROCESSES.items() if k not in ("uniform_linear", "steps")}
every_full_process = pytest.mark.parametrize("process", FULL.values(), ids=FULL.keys())


@every_full_process
@pytest.mark.parametrize("n_steps", [1, 3])
def test_one_entry_is_exact_at_any_number_of_steps(process, n_steps):
    check_sampler(process, ancestral, 1, n_steps)


@every_full_process
def test_churn_keeps_the_distribution(process):
    check_sampler(process, lambda p, grid: ancestral(p, grid, churn=0.7), 1, 4)


def one_step_chain(process: Categorical, world: CategoricalTable, n: int) -> Tensor:
    """The distribution of x at t = 0 after n ancestral steps, by multiplying out its transition matrices."""
    d = world.table.ndim
    states = torch.cartesian_prod(*[torch.arange(process.states)] * d).reshape(-1, d)
    p = process.prior_probabilities()[states].prod(-1)
    for t, s in itertools.pairwise(grids.uniform(n)):
        live = p > 0.0
        reverse = process.reverse(t, s).probabilities(world.bind(t[None])(states[live], 0), states[live])
        per_entry = [reverse[:, j][:, states[:, j]] for j in range(d)]
        p = p[live] @ torch.stack(per_entry).prod(0)
    clean = (states < process.classes).all(1)
    assert float(p[~clean].sum()) <= 1e-15
    return p[clean]


@every_full_process
def test_several_entries_converge_at_first_order(process):
    world = CategoricalTable(process, table(2))
    errors = [float((one_step_chain(process, world, n) - world.table.flatten()).abs().sum()) for n in (20, 40, 80)]
    assert errors[2] < 0.02
    for coarse, fine in itertools.pairwise(errors):
        assert 0.8 < math.log2(coarse / fine) < 1.25


def test_the_sampler_draws_from_its_transition_matrices():
    process = uniform(FLOW, K)
    world = CategoricalTable(process, table(2))
    source, n = Shared(torch.Generator().manual_seed(1)), 40_000
    prior = process.prior(source.uniform((n, 2), torch.float64, torch.device("cpu")))
    x = sample(world, ancestral(process, grids.uniform(3)), prior, noise=source)
    chi_squared(torch.bincount(world.index(x), minlength=K**2).double(), one_step_chain(process, world, 3))


@pytest.mark.parametrize("order", ["raster", "random", "each its own"])
def test_one_entry_at_a_time_is_exact(order):
    n = 40_000
    orders = {
        "raster": torch.arange(3)[None],
        "random": torch.tensor([[2, 0, 1]]),
        "each its own": random_orders(n, 3, Draws(torch.Generator().manual_seed(2))),
    }[order]
    check_sampler(Absorbing(FLOW, K), lambda p, grid: reveal(p, grid, 3, orders), 3, 3)  # type: ignore[arg-type]


def test_the_most_confident_entry_is_revealed_first():
    process = Absorbing(FLOW, K)
    sharp = torch.stack([vector(0.4, 0.3, 0.3), vector(0.98, 0.01, 0.01), vector(0.7, 0.2, 0.1)]).log()

    class Fixed(Denoiser):
        def bind(self, times, cond=None):
            return lambda x, i: sharp.expand(x.shape[0], 3, K)

    masked = torch.full((2, 3), process.mask)
    plan = reveal(process, grids.uniform(3), 3, temperature=0.0)
    states = [state.x[0].tolist() for state in trajectory(Fixed(), plan, masked, noise=PerSample.from_seeds([0, 1]))]
    assert states == [[3, 0, 3], [3, 0, 0], [0, 0, 0]]


def test_known_entries_count_as_revealed():
    process = Absorbing(FLOW, K)
    world = CategoricalTable(process, table(3))
    x = torch.tensor([[2, process.mask, process.mask]])
    first = next(trajectory(world, reveal(process, grids.uniform(3), 3), x, noise=PerSample.from_seeds([0]))).x
    assert torch.equal(first, x)


@every_full_process
def test_no_sample_depends_on_its_batch(process):
    world = CategoricalTable(process, table(2))

    def run(seeds: list[int]) -> Tensor:
        source = PerSample.from_seeds(seeds)
        prior = process.prior(source.uniform((len(seeds), 2), torch.float64, torch.device("cpu")))
        return sample(world, ancestral(process, grids.uniform(4)), prior, noise=source)

    together = run(list(range(20)))
    assert torch.equal(together[[3, 11]], run([3, 11]))


def test_times_may_differ_by_sample_and_token():
    process = Absorbing(FLOW, K)
    world = CategoricalTable(process, table(2))
    shared = grids.uniform(4)
    masked = torch.full((5, 2), process.mask)
    one = sample(world, ancestral(process, shared), masked, noise=PerSample.from_seeds(range(5)))
    for grid in (shared[:, None].expand(-1, 5), shared[:, None, None].expand(-1, 5, 2)):
        plan = ancestral(process, grid.contiguous())
        assert torch.equal(one, sample(world, plan, masked, noise=PerSample.from_seeds(range(5))))


def test_temperature_zero_takes_the_likeliest_class():
    process, p = Absorbing(FLOW, K), vector(0.3, 0.45, 0.25)
    world = CategoricalTable(process, p)
    x = sample(
        world,
        ancestral(process, grids.uniform(3), temperature=0.0),
        torch.full((200, 1), process.mask),
        noise=Shared(torch.Generator().manual_seed(0)),
    )
    assert x.unique().tolist() == [1]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_a_power(temperature):
    process, p = Absorbing(FLOW, K), vector(0.2, 0.5, 0.3)
    x = sample(
        CategoricalTable(process, p),
        ancestral(process, grids.uniform(2), temperature=temperature),
        torch.full((20_000, 1), process.mask),
        noise=Shared(torch.Generator().manual_seed(0)),
    )
    tempered = p ** (1.0 / temperature)
    chi_squared(torch.bincount(x[:, 0], minlength=K).double(), tempered / tempered.sum())


# the bound


def check_bound_is_tight(process: Categorical) -> None:
    """One entry, exact denoiser: the terms sum to the likelihood, less what the prior has not forgotten."""
    world = CategoricalTable(process, table(1))
    for grid in (grids.uniform(1), grids.uniform(4), torch.stack([at(i) for i in (12, 5, 4, 0)])):
        got = exact_bound(process, world, world.outcomes, grid)
        nll = -world.table.log()
        # averaged over the data, the bound exceeds the likelihood by KL(p(x_1) || prior): 0 if all is forgotten
        q_1 = world.table @ matrix(process, grid[0], at(0))[:K]
        prior = process.prior_probabilities()
        gap = torch.where(q_1 > 0.0, q_1 * (q_1 / prior.clamp(min=1e-300)).log(), 0.0).sum()
        torch.testing.assert_close((world.table * got).sum(), (world.table * nll).sum() + gap, rtol=0, atol=1e-12)
        if float(gap) < 1e-14:
            torch.testing.assert_close(got, nll, rtol=0, atol=1e-12)


@every_process
def test_the_bound_is_the_likelihood_of_one_entry(process):
    check_bound_is_tight(process)


@every_process
@pytest.mark.parametrize("exact", [True, False])
def test_the_bound_is_a_bound(process, exact):
    """Against the likelihood of the sampler itself, ``log p_theta``, by multiplying out its transition matrices."""
    world = CategoricalTable(process, table(2))
    denoiser = world if exact else Wrong(process)
    states = torch.cartesian_prod(*[torch.arange(process.states)] * 2)
    p = process.prior_probabilities()[states].prod(-1)
    grid = grids.uniform(4)
    for t, s in itertools.pairwise(grid):
        live = p > 0.0
        reverse = process.reverse(t, s).probabilities(denoiser.bind(t[None])(states[live], 0), states[live])
        p = p[live] @ torch.stack([reverse[:, j][:, states[:, j]] for j in range(2)]).prod(0)
    nll = -p[(states < K).all(1)].log()
    got = exact_bound(process, denoiser, world.outcomes, grid)
    assert bool((got >= nll - 1e-12).all())
    # and on average over the data, not below its entropy
    assert float((world.table.flatten() * got).sum()) >= float(-(world.table * world.table.log()).sum()) - 1e-12


@every_process
def test_the_last_step_is_the_reconstruction(process):
    x0 = torch.tensor([[0, 1], [2, 2], [1, 0]])
    t = torch.full((3,), 1.0 / 12.0, dtype=torch.float64)
    x_t = process.corrupt(x0, t, torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    logits = logits_of(3, 2, K)
    torch.testing.assert_close(
        step_kl(process, logits, x0, x_t, t, torch.zeros_like(t)),
        cross_entropy(process, logits, x0, x_t, t),
        rtol=1e-12,
        atol=1e-12,
    )


@continuous
def test_small_steps_are_the_rate(process):
    x0 = torch.tensor([[0, 1], [2, 2], [1, 0], [1, 1]])
    t = vector(0.2, 0.5, 0.7, 0.9)
    x_t = process.corrupt(x0, t, torch.rand(4, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64))
    logits = logits_of(4, 2, K)
    fractions = [step_kl(process, logits, x0, x_t, t, t - h) / h for h in (2e-3, 1e-3, 5e-4)]
    first = [2 * b - a for a, b in itertools.pairwise(fractions)]
    limit = (4 * first[1] - first[0]) / 3
    torch.testing.assert_close(rate_kl(process, logits, x0, x_t, t), limit, rtol=1e-4, atol=1e-7)


def check_masked_weight(weight: Callable[[Absorbing, Tensor], Tensor], schedule: Schedule = FLOW) -> None:
    process = Absorbing(schedule, K)
    x0, t = torch.tensor([[0, 1, 2]]).expand(4, 3), vector(0.1, 0.4, 0.7, 0.95)
    x_t = torch.tensor([[3, 1, 2], [3, 1, 3], [3, 3, 3], [0, 3, 3]])
    logits = logits_of(4, 3, K)
    ours = weight(process, t) * cross_entropy(process, logits, x0, x_t, t)
    torch.testing.assert_close(ours, rate_kl(process, logits, x0, x_t, t), rtol=1e-11, atol=0)
    masked = x_t == process.mask
    plain = -logits.log_softmax(-1).gather(-1, x0[..., None])[..., 0]
    slope = -(schedule.alpha(t + 1e-6) - schedule.alpha(t - 1e-6)) / 2e-6 / (1.0 - schedule.alpha(t))
    torch.testing.assert_close(ours, slope * (plain * masked).sum(1), rtol=1e-8, atol=0)


@pytest.mark.parametrize("schedule", [FLOW, Cosine(0.0)], ids=str)
def test_the_continuous_bound_of_masks_is_a_weighted_cross_entropy(schedule):
    check_masked_weight(masked_weight, schedule)


def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(0.5 * (nodes + 1.0)), torch.from_numpy(0.5 * weights)


@continuous
def test_the_rate_integrates_to_the_likelihood_of_one_entry(process):
    world, (nodes, weights) = CategoricalTable(process, table(1)), gauss_legendre(40)
    total = prior_kl(process, world.outcomes)
    for u, w in zip(nodes, weights, strict=True):
        # t = u^3: the integrand grows like log t towards the data
        t, w = u**3, 3.0 * u**2 * w
        total = total + w * expected(process, world, world.outcomes, t, lambda *a, t=t: rate_kl(process, *a, t))
    q_1 = world.table @ matrix(process, at(12), at(0))[:K]
    left = torch.where(q_1 > 0.0, q_1 * (q_1 / process.prior_probabilities().clamp(min=1e-300)).log(), 0.0).sum()
    entropy = -(world.table * world.table.log()).sum()
    torch.testing.assert_close((world.table * total).sum(), entropy + left, rtol=0, atol=1e-6)


# any order


def over_time(denoiser: Denoiser, x0: Tensor, weight: Callable[[Absorbing, Tensor], Tensor]) -> Tensor:
    """The continuous-time bound by quadrature over t, exact: the integrand is a polynomial of degree D - 1."""
    process: Absorbing = denoiser.process  # type: ignore[assignment]
    total = torch.zeros(len(x0), dtype=torch.float64)
    for t, w in zip(*gauss_legendre(4), strict=True):
        entropy = expected(process, denoiser, x0, t, lambda *a, t=t: cross_entropy(process, *a, t))
        total = total + w * weight(process, t) * entropy
    return total


def check_any_order(weight: Callable[[Absorbing, Tensor], Tensor]) -> None:
    """Diffusion's bound is the mean likelihood over all 3! orders, for whatever denoiser does not look at t."""
    process = Absorbing(FLOW, K)
    world = CategoricalTable(process, table(3))
    orders = [torch.tensor([order]) for order in itertools.permutations(range(3))]
    true = -world.table.flatten().log()
    for denoiser, exact in ((world, True), (Wrong(process), False)):
        by_order = torch.stack([order_nll(denoiser, world.outcomes, order) for order in orders])
        by_time = over_time(denoiser, world.outcomes, weight)
        torch.testing.assert_close(by_time, by_order.mean(0), rtol=0, atol=1e-10)
        if exact:
            torch.testing.assert_close(by_order, true.expand_as(by_order), rtol=0, atol=1e-10)
        else:
            # each order is a model of its own; all are above the entropy on average over the data
            p = world.table.flatten()
            assert bool(((p * by_order).sum(1) > (p * true).sum() + 0.1).all())


def test_absorbing_diffusion_is_any_order_autoregression():
    check_any_order(masked_weight)


def test_orders_are_uniform():
    orders = random_orders(30_000, 3, Draws(torch.Generator().manual_seed(0)))
    code = (orders * torch.tensor([9, 3, 1])).sum(1)
    counts = torch.stack([(code == a * 9 + b * 3 + c).sum() for a, b, c in itertools.permutations(range(3))]).double()
    chi_squared(counts, torch.full((6,), 1.0 / 6.0, dtype=torch.float64))


class Table3(nn.Module):
    """A network that is a table: fixed logits for each state of three entries."""

    def __init__(self, denoiser: Wrong) -> None:
        super().__init__()
        self.evaluate = denoiser.bind(vector(0.5))

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.evaluate(x_t, 0)


def within(values: Tensor, truth: float, k: float = 4.5) -> None:
    """The mean of ``values`` is ``truth`` up to k standard errors."""
    assert abs(float(values.mean()) - truth) < k * float(values.std()) / math.sqrt(len(values))


def check_losses(continuous_one: Callable[..., Tensor] = continuous_loss) -> None:
    """Four one-call estimates of two bounds, against their exact values."""
    process = Absorbing(FLOW, K)
    wrong = Wrong(process)
    denoiser = Classifier(Table3(wrong), process)
    x0 = torch.tensor([[0, 2, 1]]).expand(40_000, 3)
    truth = float(over_time(wrong, x0[:1], masked_weight))
    draws = Draws(torch.Generator().manual_seed(0))
    within(continuous_one(denoiser, x0, None, draws), truth)
    within(order_agnostic_loss(denoiser, x0, None, draws), truth)
    within(order_agnostic_nll(denoiser, x0[:4000], draws), truth)
    four = float(exact_bound(process, wrong, x0[:1], grids.uniform(4)))
    within(hybrid_loss(denoiser, x0, None, draws, 4, ce_weight=0.0), four)
    noise = On(Shared(torch.Generator().manual_seed(1)), torch.device("cpu"))
    estimate = bound(denoiser, x0, grids.uniform(4), noise)
    within(estimate.nats, four)
    assert float(estimate.bits_per_dim(3).mean()) == pytest.approx(float(estimate.nats.mean()) / 3 / math.log(2))


def test_losses_estimate_the_bounds():
    check_losses()


@continuous
def test_the_continuous_loss_estimates_its_integral(process):
    wrong = Wrong(process)
    denoiser = Classifier(Table3(wrong), process)
    x0 = torch.tensor([[0, 2]])
    exact = 0.0
    for t, w in zip(*gauss_legendre(30), strict=True):
        exact += float(w * expected(process, wrong, x0, t, lambda *a, t=t: rate_kl(process, *a, t)))
    draws = Draws(torch.Generator().manual_seed(0))
    values = continuous_loss(denoiser, x0.expand(20_000, 2), None, draws)
    assert abs(float(values.mean()) - exact) < 4.5 * float(values.std()) / math.sqrt(20_000) + 1e-3 * exact


@every_process
def test_losses_have_finite_gradients(process):
    network = nn.Linear(1, K, dtype=torch.float64)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
            return 50.0 * self.inner(x_t[..., None].double())

    denoiser, draws = Classifier(Net(), process), Draws(torch.Generator().manual_seed(0))
    x0 = torch.randint(K, (64, 2), generator=torch.Generator().manual_seed(0))
    losses = [hybrid_loss(denoiser, x0, None, draws, 12)]
    if not isinstance(process, Steps):
        losses.append(continuous_loss(denoiser, x0, None, draws))
    for loss in losses:
        network.zero_grad()
        loss.mean().backward()
        assert bool(loss.isfinite().all())
        assert bool(network.weight.grad.isfinite().all()) and float(network.weight.grad.abs().sum()) > 0.0


# products, costs, known values


def check_product(process: Categorical) -> None:
    """One entry: the product of two posteriors is the posterior of the product, at every time and any exponents."""
    a, b = table(1, seed=1), table(1, seed=2)
    t = torch.stack([at(12), at(7), at(1)])
    for w_a, w_b in ((1.0, 1.0), (2.5, -1.5), (0.3, 0.4)):
        product = a**w_a * b**w_b
        truth = CategoricalTable(process, product / product.sum()).bind(t)
        experts = [CategoricalTable(process, p).bind(t) for p in (a, b)]
        combined = process.combine(torch.tensor([[w_a, w_b]] * 3, dtype=torch.float64), t)
        for i in range(3):
            x = torch.arange(process.states)[matrix(process, t[i], at(0))[0] > 0.0][:, None]
            got = combined(x, [expert(x, i) for expert in experts], i).softmax(-1)
            torch.testing.assert_close(got, truth(x, i).exp(), rtol=0, atol=1e-12)


@every_process
def test_a_product_of_posteriors_is_the_posterior_of_the_product(process):
    check_product(process)


def test_guidance_samples_the_product():
    process = uniform(FLOW, K)
    a, b = (CategoricalTable(process, table(1, seed=s)) for s in (1, 2))
    guided = a * (b / a) ** 2.0
    source, n = Shared(torch.Generator().manual_seed(0)), 40_000
    noise = source.uniform((n, 1), torch.float64, torch.device("cpu"))
    x = sample(guided, ancestral(process, grids.uniform(3)), start(guided, noise), noise=source)
    truth = b.table**2 / a.table
    chi_squared(torch.bincount(x[:, 0], minlength=K).double(), truth / truth.sum())


def test_a_linear_cost_tilts_exactly():
    process, p = Absorbing(FLOW, K), vector(0.2, 0.5, 0.3)
    cost = vector(0.0, 1.0, -0.5)
    denoiser = CategoricalTable(process, p) * Energy(lambda probabilities: (probabilities * cost).sum((1, 2)),
                                                     through="estimate")  # fmt: skip
    source, n = Shared(torch.Generator().manual_seed(0)), 40_000
    x = sample(denoiser, ancestral(process, grids.uniform(3)), torch.full((n, 1), process.mask), noise=source)
    tilted = p * (-cost).exp()
    chi_squared(torch.bincount(x[:, 0], minlength=K).double(), tilted / tilted.sum())


@pytest.mark.parametrize("mode", ["clean", "renoised"])
def test_known_entries_condition_the_rest(mode):
    # mode "clean" shows the denoiser the value from the start, and gives the exact conditional
    process = Absorbing(FLOW, K)
    world = CategoricalTable(process, table(2))
    known = Known(torch.tensor([True, False]), torch.tensor([2, 0]), mode)
    source, n = Shared(torch.Generator().manual_seed(0)), 20_000
    plan = ancestral(process, grids.uniform(1 if mode == "clean" else 3))
    x = sample(world * known, plan, torch.full((n, 2), process.mask), noise=source)
    assert bool((x[:, 0] == 2).all())
    if mode == "clean":
        chi_squared(torch.bincount(x[:, 1], minlength=K).double(), world.table[2] / world.table[2].sum())


def test_a_class_index_has_no_gradient():
    with pytest.raises(WorkbenchError, match="on='x0_hat'"):
        Absorbing(FLOW, K).tilt(vector(0.5), "x_t")


# mistakes


def test_mistakes_are_named():
    with pytest.raises(WorkbenchError, match="survival that falls"):
        Absorbing(VarianceExploding(), K)
    with pytest.raises(WorkbenchError, match="sum to 1"):
        Marginal(FLOW, (0.2, 0.2))
    with pytest.raises(WorkbenchError, match="rows that sum to 0"):
        Rates(FLOW, rates().abs(), K)
    with pytest.raises(WorkbenchError, match="rows that sum to 1"):
        Steps(2.0 * steps().matrices, K)
    with pytest.raises(WorkbenchError, match="none of its 12 steps"):
        steps().kernel(vector(0.5, 0.51), vector(0.0, 0.0))
    with pytest.raises(WorkbenchError, match="continuous time"):
        steps().rates(torch.tensor([0]), vector(0.5))
    with pytest.raises(WorkbenchError, match="falling times"):
        ancestral(Absorbing(FLOW, K), grids.uniform(4).flip(0))
    with pytest.raises(WorkbenchError, match="as many"):
        reveal(Absorbing(FLOW, K), grids.uniform(4), 4, torch.arange(3)[None])
    with pytest.raises(WorkbenchError, match="noise=None"):
        ancestral(Absorbing(FLOW, K), grids.uniform(4)).begin(torch.zeros(1, 1, dtype=torch.int64), None)
    with pytest.raises(WorkbenchError, match="Absorbing"):
        order_nll(CategoricalTable(uniform(FLOW, K), table(2)), torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    with pytest.raises(WorkbenchError, match="classes on every axis"):
        CategoricalTable(Absorbing(FLOW, K), torch.full((2, 2), 0.25, dtype=torch.float64))


# D3PM's matrices


def test_the_discretised_gaussian_is_doubly_stochastic_and_gaussian():
    betas = vector(0.01, 0.2)
    matrices = discretised_gaussian(betas, 6)
    ones = torch.ones(2, 6, dtype=torch.float64)
    torch.testing.assert_close(matrices.sum(1), ones, rtol=0, atol=1e-14)
    torch.testing.assert_close(matrices.sum(2), ones, rtol=0, atol=1e-14)
    # log ratio of distances 2 and 1: -4 (4 - 1) / (25 beta)
    ratio = (matrices[:, 0, 2] / matrices[:, 0, 1]).log()
    torch.testing.assert_close(ratio, -12.0 / (25.0 * betas), rtol=1e-12, atol=0)
    check_posterior(Steps(discretised_gaussian(torch.linspace(0.02, 0.5, 12, dtype=torch.float64), K), K))


def test_neighbours_mix_at_the_rate_that_is_promised():
    for k in (4, 9, 16):
        gap = -torch.linalg.eigvalsh(nearest_neighbour(k))[-2]
        assert float(gap) == pytest.approx(1.0 - math.cos(math.pi / k), rel=1e-12)
        assert 1.0 / float(gap) == pytest.approx(2.0 * (k / math.pi) ** 2, rel=0.06)
