"""Weighted particles: unbiased where they are exact, converging where they are not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion_core import experts
from diffusion_core import grid as grids
from diffusion_core.correct import Mala, Ula
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Known
from diffusion_core.noise import Noise, PerSample, Shared
from diffusion_core.oracles import GaussianData
from diffusion_core.particles import Particles, Resampling, effective_share, offspring, sample_particles
from diffusion_core.process.gaussian import Gaussian as GaussianProcess
from diffusion_core.schedule import Cosine, Linear
from tests.diffusion_core.test_correct import Shrunk
from tests.diffusion_core.test_sample import Operations
from tests.diffusion_core.worlds import gaussian, mixture, plane_mixture, vector

METHODS = ("systematic", "stratified", "multinomial")
every_method = pytest.mark.parametrize("method", METHODS)


def shared(seed: int = 0) -> Shared:
    return Shared(torch.Generator().manual_seed(seed))


def grid_of(schedule, n: int, end: float = 0.01) -> Tensor:
    """Ends above 0, so that what is sampled has a density."""
    return grids.log_snr_uniform(schedule, n, 0.999, end)[:-1]


def run(
    denoiser: Denoiser, grid: Tensor, groups: int, k: int, noise: Noise | None = None, d: int = 1, **options
) -> Particles:
    noise = noise or shared()
    base = noise.normal((groups * k, d), torch.float64, torch.device("cpu"))
    return sample_particles(
        denoiser, grid, experts.start(denoiser, base, float(grid[0])), noise, groups=groups, **options
    )


class Line:
    """The product of two Gaussians on a line, with any exponents: mean, variance and normaliser in closed form."""

    def __init__(self, schedule, *exponents: float, t: float) -> None:
        self.experts = [GaussianData(schedule, vector(m), vector(s)) for m, s in ((1.0, 0.7), (-0.5, 0.9))]
        marginals = [expert.marginal(t) for expert in self.experts]
        self.product = self.experts[0] ** exponents[0] * self.experts[1] ** exponents[1]
        terms = [(w, float(m), float(s) ** 2) for w, (m, s) in zip(exponents, marginals, strict=True)]
        precision = sum(w / v for w, _, v in terms)
        self.variance, self.mean = 1.0 / precision, sum(w * m / v for w, m, v in terms) / precision
        self.log_normalizer = sum(-0.5 * w * (math.log(2.0 * math.pi * v) + m**2 / v) for w, m, v in terms)
        self.log_normalizer += 0.5 * (math.log(2.0 * math.pi * self.variance) + self.mean**2 * precision)


# --- resampling -----------------------------------------------------------------------------------------


def check_counts(draw=offspring, method="systematic", seeds: int = 4000) -> None:
    """On average K w_k copies of particle k, within 4.5 standard errors of each count."""
    weights = torch.tensor([[0.05, 0.4, 0.0, 0.25, 0.3], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    weights /= weights.sum(1, keepdim=True)
    many = weights.repeat(seeds, 1)
    uniform = torch.rand(many.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = draw(many, uniform, method)
    counts = torch.nn.functional.one_hot(chosen, 5).sum(1).double().reshape(seeds, 2, 5)
    errors = counts.std(0) / math.sqrt(seeds)
    assert bool(((counts.mean(0) - 5.0 * weights).abs() <= 4.5 * errors + 1e-9).all())
    assert bool((counts[:, 0, 2] == 0.0).all())


@every_method
def test_resampling_keeps_the_expected_counts(method):
    check_counts(method=method)


def test_systematic_counts_are_the_nearest_integers_and_never_vary_more_than_multinomial_ones():
    weights = torch.rand(500, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = (weights**3 / (weights**3).sum(1, keepdim=True))[:1].expand(500, 16)
    uniform = torch.rand(500, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    variance = {}
    for method in METHODS:
        counts = torch.nn.functional.one_hot(offspring(weights, uniform, method), 16).sum(1).double()
        variance[method] = float(counts.var(0).sum())
        if method == "systematic":
            assert bool(((counts - 16.0 * weights).abs() < 1.0 + 1e-9).all())
    assert variance["systematic"] <= variance["stratified"] <= variance["multinomial"]


def test_equal_weights_and_systematic_resampling_change_nothing():
    uniform = torch.rand(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(
        offspring(torch.full((7, 12), 1 / 12).double(), uniform, "systematic"), torch.arange(12).expand(7, 12)
    )


def test_a_place_at_the_end_is_somebodys():
    weights = torch.tensor([[0.1] * 3 + [0.7 - 1e-16, 0.0]], dtype=torch.float64)
    assert offspring(weights, torch.full((1, 5), 1.0 - 1e-16, dtype=torch.float64), "multinomial").max() == 3


def test_the_effective_share():
    even, one = torch.zeros(2, 8, dtype=torch.float64), torch.full((2, 8), -torch.inf, dtype=torch.float64)
    one[:, 3] = 5.0
    half = torch.where(torch.arange(8) < 4, 0.0, -torch.inf).double()[None]
    for log_weights, share in ((even, 1.0), (one, 1.0 / 8.0), (half, 0.5)):
        assert torch.allclose(effective_share(log_weights - 3.0), torch.tensor(share, dtype=torch.float64))


# --- weights by density ---------------------------------------------------------------------------------


def check_unbiased(weigh="density", resampling=None, corrector=None, groups=400, k=64, n=6, exponents=(1.2, 0.8)):
    """Unbiased for a handful of steps: the normaliser and the unnormalised moments, within 4 standard errors."""
    schedule = Linear()
    grid = grid_of(schedule, n, 0.05)
    line = Line(schedule, *exponents, t=float(grid[-1]))
    end = run(line.product, grid, groups, k, weigh=weigh, resampling=resampling, corrector=corrector)
    relative = (end.log_normalizer - line.log_normalizer).exp()
    moments = torch.stack([torch.ones_like(end.x), end.x - line.mean, (end.x - line.mean) ** 2 / line.variance], 1)
    estimates = relative[:, None] * end.mean(moments[..., 0])
    truth = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    errors = estimates.std(0) / math.sqrt(groups)
    assert bool(((estimates.mean(0) - truth).abs() < 4.0 * errors).all()), (estimates.mean(0), errors)
    # and the test could have seen a twentieth
    assert bool((errors < 0.0125).all()), errors


@pytest.mark.parametrize(
    ("resampling", "corrector"),
    [
        (None, None),
        (Resampling(0.95), None),
        (Resampling(1.1, 0.6, "stratified"), None),
        (Resampling(1.1, 1.0, "multinomial"), Mala(1, 0.4)),
    ],
    ids=["weights", "resampled", "stratified below 0.6", "always, with MALA"],
)
def test_weights_by_density_are_unbiased_for_any_number_of_steps(resampling, corrector):
    check_unbiased(resampling=resampling, corrector=corrector)


def test_a_quotient_is_unbiased_too():
    check_unbiased(exponents=(1.6, -0.4), resampling=Resampling(0.95))


@pytest.mark.parametrize("exponents", [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0)])
def test_the_narrow_kernel_wastes_no_weight_on_what_is_not_known_yet(exponents):
    grid = grid_of(Linear(), 7, 0.05)
    line = Line(Linear(), *exponents, t=float(grid[-1]))
    shares = [
        float(run(line.product, grid, 20, 500, weigh=weigh, resampling=None).effective.min())
        for weigh in ("density", "path")
    ]
    assert shares[0] > 0.8 and shares[1] < (0.1 if exponents != (0.5, 0.5) else 1.0)


def test_a_single_gaussian_expert_needs_no_weights_in_the_limit():
    # its ancestral kernel is off by the width of the posterior only
    spread = []
    for n in (25, 100, 400):
        grid = grid_of(Linear(), n)
        end = run(gaussian(Linear()), grid, 1, 2000, d=2, weigh="density", resampling=None)
        spread.append(float(end.log_weights.std()))
    assert spread[0] > 1.8 * spread[1] > 1.8**2 * spread[2]


# --- weights by path ------------------------------------------------------------------------------------


def test_a_single_expert_has_equal_weights_by_path():
    end = run(mixture(Linear()), grid_of(Linear(), 12), 3, 50)
    # the density of what an expert alone makes is its own
    assert float((end.log_weights + math.log(50)).abs().max()) < 1e-12
    assert float(end.log_normalizer.abs().max()) < 1e-12
    assert torch.allclose(end.effective, torch.ones(1, dtype=torch.float64))


def check_path(exponents=(1.5, -0.5), steps=(50, 100), limit=4.0) -> None:
    """First order in the step: extrapolated to none, normaliser, mean and variance are the product's."""
    schedule, groups, k = Linear(), 60, 400
    means, errors = [], []
    for n in steps:
        grid = grid_of(schedule, n, 0.02)
        line = Line(schedule, *exponents, t=float(grid[-1]))
        end = run(line.product, grid, groups, k, shared(n), resampling=None)
        moments = torch.cat([end.x - line.mean, (end.x - line.mean) ** 2 / line.variance], 1)
        found = torch.cat([(end.log_normalizer - line.log_normalizer)[:, None], end.mean(moments)], 1)
        means.append(found.mean(0))
        errors.append(found.std(0) / math.sqrt(groups))
    truth = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    extrapolated = 2.0 * means[1] - means[0]
    error = (4.0 * errors[1] ** 2 + errors[0] ** 2).sqrt()
    # what is left of second order
    left = 0.25 * (means[1] - means[0]).abs()
    assert bool(((extrapolated - truth).abs() < limit * error + left).all()), (means, error)
    assert bool((error < 0.05).all())


@pytest.mark.parametrize("exponents", [(1.5, -0.5), (0.5, 0.5), (0.9, 0.4)])
def test_weights_by_path_converge_to_the_product(exponents):
    check_path(exponents)


@pytest.mark.parametrize("weigh", ["path", "density"])
def test_a_cost_on_the_noisy_sample_is_weighted(weigh):
    check_cost(weigh)


def check_cost(weigh="path") -> None:
    """N(m, v) exp(-(x - c)^2 / (2 u)) at the last time, whatever the cost was before: within 4 standard errors."""
    schedule, groups, c, u = Linear(), 60, 1.2, 0.8
    grid = grid_of(schedule, 60, 0.02)
    data = GaussianData(schedule, vector(-0.3), vector(0.7))
    cost = Energy(lambda x, t: (x - c).square().sum(1) / (2.0 * u), on="x_t")
    tilted = data * cost ** (lambda t: (1.0 - t) ** 2)
    strength = (1.0 - float(grid[-1])) ** 2
    m, s = (float(value) for value in data.marginal(float(grid[-1])))
    precision = 1.0 / s**2 + strength / u
    mean = (m / s**2 + strength * c / u) / precision
    log_normalizer = -0.5 * math.log(s**2 * precision) - 0.5 * (c - m) ** 2 / (s**2 + u / strength)
    end = run(tilted, grid, groups, 400, weigh=weigh, resampling=Resampling())
    found = torch.cat([end.log_normalizer[:, None] - log_normalizer, end.mean(end.x) - mean], 1)
    found = torch.cat([found, end.mean((end.x - mean) ** 2) * precision - 1.0], 1)
    error = found.std(0) / math.sqrt(groups)
    # 0.03: the step's error
    assert bool((found.mean(0).abs() < 4.0 * error + 0.03).all()), (found.mean(0), error)
    assert bool((error < 0.03).all())


class Chain(Denoiser):
    """(x_0, x_1): standard normal with correlation 0.8; shown x_0 clean, whatever its place."""

    schedule = Linear()
    process = GaussianProcess(Linear())

    def bind(self, times, cond=None):
        alpha, sigma = self.schedule.alpha(times).tolist(), self.schedule.sigma(times).tolist()

        def evaluate(x: Tensor, i: int) -> Tensor:
            gain = alpha[i] * 0.36 / (alpha[i] ** 2 * 0.36 + sigma[i] ** 2)
            mean = 0.8 * x[:, 0]
            # the first estimate is nonsense: what is known must not count
            return torch.stack([-7.0 * x[:, 1], mean + gain * (x[:, 1] - alpha[i] * mean)], 1)

        return evaluate


@pytest.mark.parametrize("exponents", [(1.0,), (1.5, -0.5)])
def test_known_values_that_are_shown_clean_have_no_weight(exponents):
    """p(x_1 | x_0 = v) exp(-(x_1 - c)^2 / (2 u)): mean and normaliser within 4 standard errors."""
    groups, v, c, u = 60, 0.9, -0.4, 0.6
    grid = torch.cat([grid_of(Linear(), 60, 0.003), torch.zeros(1, dtype=torch.float64)])
    known = Known(torch.tensor([True, False]), torch.tensor([v, 0.0], dtype=torch.float64), "clean")
    cost = Energy(lambda x: (x[:, 1] - c).square() / (2.0 * u), on="x0_hat", through="estimate")
    chain: Denoiser = Chain() ** exponents[0]
    for exponent in exponents[1:]:
        chain = chain * Chain() ** exponent
    end = run(chain * cost * known, grid, groups, 400, d=2)
    precision, m = 1.0 / 0.36 + 1.0 / u, 0.8 * v
    mean = (m / 0.36 + c / u) / precision
    log_normalizer = -0.5 * math.log(0.36 * precision) - 0.5 * (c - m) ** 2 / (0.36 + u)
    found = torch.stack([end.log_normalizer - log_normalizer, end.mean(end.x)[:, 1] - mean], 1)
    error = found.std(0) / math.sqrt(groups)
    assert bool((found.mean(0).abs() < 4.0 * error + 0.03).all()) and bool((error < 0.03).all()), (found.mean(0), error)
    assert torch.equal(end.x[:, 0], torch.full_like(end.x[:, 0], v))


def test_a_cost_of_the_data_is_twisted_diffusion_sampling():
    schedule, groups, c, u = Linear(), 60, 1.0, 0.5
    grid = torch.cat([grid_of(schedule, 60, 0.003), torch.zeros(1, dtype=torch.float64)])
    data = GaussianData(schedule, vector(-0.3), vector(0.7))
    tilted = data * Energy(lambda x0: (x0 - c).square().sum(1) / (2.0 * u))
    precision = 1.0 / 0.49 + 1.0 / u
    mean = (-0.3 / 0.49 + c / u) / precision
    end = run(tilted, grid, groups, 300, resampling=Resampling())
    found = torch.cat([end.mean(end.x) - mean, end.mean((end.x - mean) ** 2) * precision - 1.0], 1)
    error = found.std(0) / math.sqrt(groups)
    assert bool((found.mean(0).abs() < 4.0 * error + 0.03).all()), (found.mean(0), error)


# --- groups, and when particles are drawn anew --------------------------------------------------------------


def test_resampling_is_triggered_by_each_groups_own_effective_size():
    line, grid = Line(Linear(), 1.2, 0.8, t=0.01), grid_of(Linear(), 20)
    weighed = run(line.product, grid, 4, 100, resampling=None)
    never = run(line.product, grid, 4, 100, resampling=Resampling(0.0))
    # the uniforms are drawn either way, and a step of another sample follows
    assert not torch.equal(weighed.x, never.x) and float(never.effective[-1].max()) < 0.5
    often = run(line.product, grid, 4, 100, resampling=Resampling(0.5))
    early, late = grid[1:] >= 0.4, grid[1:] < 0.4
    once = run(line.product, grid, 4, 100, resampling=Resampling(1.1, below=0.4))
    assert bool((often.effective.min(0).values < 0.5).all())
    # after a resampling the share starts at 1 again
    first = (often.effective < 0.5).double().argmax(0)
    assert all(often.effective[i + 1, g] > never.effective[i + 1, g] for g, i in enumerate(first.tolist()))
    torch.testing.assert_close(once.effective[early], never.effective[early], rtol=0, atol=1.0)
    assert float(once.effective[late][1:].min()) > float(never.effective[late][1:].min())


@pytest.mark.parametrize("weigh", ["path", "density"])
def test_a_group_does_not_depend_on_the_others(weigh):
    product, grid = plane_mixture(Linear()) ** 1.5 * gaussian(Linear()) ** 0.5, grid_of(Linear(), 8)

    def groups(seeds: list[int]) -> Particles:
        own = PerSample.from_seeds([100 * seed + j for seed in seeds for j in range(10)])
        return run(product, grid, len(seeds), 10, own, d=2, weigh=weigh, corrector=Mala(1, 0.2))

    together, alone = groups([1, 2, 3]), groups([2])
    assert torch.equal(together.x[10:20], alone.x)
    assert torch.equal(together.log_weights[1], alone.log_weights[0])
    assert torch.equal(together.log_normalizer[1], alone.log_normalizer[0])
    assert torch.equal(together.effective[:, 1], alone.effective[:, 0])
    assert together.accepted is not None and together.accepted.shape == (7, 3)


def test_weighted_particles_resampled_have_the_weighted_mean():
    line, grid = Line(Linear(), 0.7, 0.7, t=0.01), grid_of(Linear(), 20)
    end = run(line.product, grid, 50, 200, resampling=None)
    equal = end.resampled(shared(5)).reshape(50, 200, 1).mean(1)
    # systematic: less than one copy of each, so far below the spread of the particles
    assert float((equal - end.mean(end.x)).abs().mean()) < 0.5 * math.sqrt(line.variance / 200)


def test_the_loop_reads_no_value():
    product, counts = plane_mixture(Linear()) * gaussian(Linear()), []
    for n in (4, 8):
        with Operations() as operations:
            run(product, grid_of(Linear(), n), 2, 6, d=2, corrector=Ula(1, 0.1))
        counts.append(operations.counts)
    more = counts[1] - counts[0]
    assert not [name for name in ("_local_scalar_dense", "item", "nonzero") if more[name]]


def test_the_last_step_to_the_data_is_a_denoising():
    product, grid = plane_mixture(Linear()) * gaussian(Linear()), grid_of(Linear(), 8)
    whole = torch.cat([grid, torch.zeros(1, dtype=torch.float64)])
    above, end = (run(product, g, 2, 20, d=2) for g in (grid, whole))
    expected = product.bind(grid[-1:])(above.x, 0)
    torch.testing.assert_close(end.x, expected, rtol=0, atol=1e-12)
    assert torch.equal(above.log_weights, end.log_weights)


def test_mistakes_are_refused_with_what_to_do():
    data, grid = gaussian(Linear()), grid_of(Linear(), 4)
    network = NetworkDenoiser(torch.nn.Identity(), Linear(), "x0")
    x, noise = torch.zeros(6, 2, dtype=torch.float64), shared()
    known = data * Known(torch.tensor([True, False]), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(WorkbenchError, match="got 6 for 4 groups"):
        sample_particles(data, grid, x, noise, groups=4)
    with pytest.raises(WorkbenchError, match="which has none"):
        sample_particles(network, grid, x, noise, weigh="density")
    with pytest.raises(WorkbenchError, match="exponent that depends on time"):
        sample_particles(data ** (lambda t: 1.0 + t), grid, x, noise)
    with pytest.raises(WorkbenchError, match="known values"):
        sample_particles(known, grid, x, noise)
    with pytest.raises(WorkbenchError, match="parts with log-densities"):
        sample_particles((network | network) ** 1.5, grid, x, noise)
    with pytest.raises(WorkbenchError, match="leaves no signal"):
        cosine = gaussian(Cosine())
        sample_particles(cosine, grids.uniform(4), x, noise)
    with pytest.raises(WorkbenchError, match="rising"):
        sample_particles(data, grid.flip(0), x, noise)
    with pytest.raises(WorkbenchError, match="sum to -0"):
        sample_particles(data**-0.5, grid, x, noise)


def test_single_precision_stays_single_with_weights_in_double():
    product = NetworkDenoiser(Shrunk(0.5), Linear(), "eps") ** 1.5
    x = torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(0))
    single, double = (
        sample_particles(product, grid_of(Linear(), 6), start, PerSample.from_seeds(range(12)), groups=3)
        for start in (x, x.double())
    )
    assert single.x.dtype == torch.float32 and single.log_weights.dtype == torch.float64
    torch.testing.assert_close(single.log_weights, double.log_weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(single.x.double(), double.x, rtol=0, atol=1e-4)
