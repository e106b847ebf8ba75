"""Correctors: stationary at the density, at step sizes where a wrong acceptance would show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_core import correct as module
from diffusion_core import experts
from diffusion_core import grid as grids
from diffusion_core.correct import Hmc, Mala, Sweep, Ula
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Known
from diffusion_core.noise import PerSample, Shared
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.plan import Together
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.process.torus import Torus
from diffusion_core.sample import Corrector, sample, trajectory
from diffusion_core.schedule import GeometricVarianceExploding, Linear, RectifiedFlow, VarianceExploding
from diffusion_core.solvers import categorical, ddim, ddpm, heun, torus
from tests.diffusion_core.test_sample import Operations
from tests.diffusion_core.worlds import gaussian, plane_mixture, vector

CHAINS = (Ula(3, 0.2), Mala(3, 0.4), Mala(3, 0.4, quadrature=1), Hmc(2, 0.2, 3), Hmc(3, 0.2, 2, 2, persistence=0.5))
every_chain = pytest.mark.parametrize("chain", CHAINS, ids=str)


def shared(seed: int = 0) -> Shared:
    return Shared(torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)


def unit() -> tuple[GaussianData, float]:
    """A standard normal at a time with sigma = 1: data with almost no width of its own."""
    schedule = VarianceExploding(20.0)
    return GaussianData(schedule, vector(0.0), vector(1e-6)), float(schedule.t_of_log_snr(vector(0.0)))


class Shrunk(torch.nn.Module):
    """A linear network without parameters, for any shape."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x, t, cond):
        return self.factor * x


class Fixed:
    """The same number for every draw: what a linear chain does to a sample and to noise can be read off."""

    def __init__(self, value: float) -> None:
        self.value = value

    def normal(self, shape, dtype, device):
        return torch.full(shape, self.value, dtype=dtype, device=device)

    def uniform(self, shape, dtype, device):
        return torch.full(shape, 0.5, dtype=dtype, device=device)


# --- stationary laws ------------------------------------------------------------------------------------


def check_stationary(chain: Corrector, n: int = 20_000, acceptance: float | None = None) -> None:
    """From a point, the chain reaches variance 1 of a standard normal: within 4 standard errors."""
    data, t = unit()
    x, accepted = chain.bind(data, at(t))(torch.zeros(n, 1, dtype=torch.float64), 0, shared())
    assert abs(float(x.var()) - 1.0) < 4.0 * math.sqrt(2.0 / n)
    assert abs(float(x.mean())) < 4.0 / math.sqrt(n)
    if acceptance is not None:
        assert abs(float(accepted.mean()) - acceptance) < 0.005


@pytest.mark.parametrize(
    ("chain", "acceptance"),
    [
        # 0.92: the acceptance that the textbook formula has at this step
        (Mala(40, 0.5), 0.92),
        (Mala(40, 0.5, quadrature=0), 0.92),
        (Mala(40, 1.0), None),
        (Hmc(25, 0.5, 4), None),
        (Hmc(25, 0.4, 2, quadrature=1), None),
        (Hmc(60, 0.4, 1, persistence=0.7), None),
        (Hmc(60, 0.9, 2, persistence=0.5), None),
    ],
    ids=str,
)
def test_a_metropolis_chain_is_stationary_at_the_density_for_large_steps(chain, acceptance):
    check_stationary(chain, acceptance=acceptance)


@dataclass(frozen=True)
class Textbook:
    """MALA with its two proposal densities written out; ``spread`` is 4 in ``|x' - x - h s|^2 / (4 h)``."""

    n: int
    step: float
    spread: float = 4.0

    def bind(self, denoiser, times, cond=None):
        def correct(x, i, noise):
            evaluate, level = denoiser.bind(times), denoiser.bind_log_density(times)
            alpha, sigma = float(denoiser.schedule.alpha(times[i])), float(denoiser.schedule.sigma(times[i]))
            h = self.step * sigma**2

            def score(x):
                return (alpha * evaluate(x, i) - x) / sigma**2

            accepted = x.new_zeros(len(x))
            for _ in range(self.n):
                y = x + h * score(x) + math.sqrt(2.0 * h) * noise.normal(x.shape, x.dtype, x.device)
                forth = -(y - x - h * score(x)).square().sum(1) / (self.spread * h)
                back = -(x - y - h * score(y)).square().sum(1) / (self.spread * h)
                gain = level(y, i) - level(x, i) + back - forth
                yes = noise.uniform((len(x), 1), torch.float64, x.device)[:, 0].log() < gain
                x, accepted = torch.where(yes[:, None], y, x), accepted + yes
            return x, accepted / self.n

        return correct


def check_mala(chain: Corrector, textbook: Corrector) -> None:
    """Two chains with one noise make the same moves."""
    data, x = plane_mixture(Linear()), normal(200, 2)
    for t in (0.1, 0.5, 0.9):
        ours, theirs = (c.bind(data, at(t))(x, 0, shared(1)) for c in (chain, textbook))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_mala_is_the_textbook_formula():
    check_mala(Mala(10, 0.5), Textbook(10, 0.5))


def test_mala_is_hmc_with_one_step():
    check_mala(Mala(5, 0.3), Hmc(5, 0.3, 1))


@pytest.mark.parametrize("step", [0.05, 0.5, 1.2])
def test_ula_is_stationary_at_its_closed_form(step):
    schedule, t = Linear(), 0.4
    data = GaussianData(schedule, vector(0.0), vector(0.8))
    variance, sigma = float(data.marginal(t)[1]) ** 2, float(schedule.sigma(at(t)))
    correct = Ula(1, step).bind(data, at(t))
    x = torch.ones(1, 1, dtype=torch.float64)
    # x' = shrink x + spread z, both read off
    shrink = float(correct(x, 0, Fixed(0.0))[0])
    spread = float(correct(torch.zeros_like(x), 0, Fixed(1.0))[0])
    bias = 1.0 - step * sigma**2 / (2.0 * variance)
    assert spread**2 / (1.0 - shrink**2) == pytest.approx(variance / bias, rel=1e-12)


def check_energy() -> None:
    """The energy that a trajectory of fixed length gains falls with the square of the leapfrog's length."""
    data, x, gains = plane_mixture(Linear()), normal(300, 2), []
    original = module.accepts
    try:
        module.accepts = lambda gain, uniform: gains.append(gain) or original(gain, uniform)  # type: ignore[assignment]
        for leapfrog in (8, 16, 32):
            Hmc(1, 0.5 * (4.0 / leapfrog) ** 2 / 2.0, leapfrog).bind(data, at(0.6))(x, 0, shared())
    finally:
        module.accepts = original
    sizes = [float(gain.abs().mean()) for gain in gains]
    orders = [math.log2(sizes[k] / sizes[k + 1]) for k in range(2)]
    assert all(abs(order - 2.0) < 0.2 for order in orders), orders


def test_the_leapfrog_is_of_second_order_in_the_energy():
    check_energy()


# --- acceptance -----------------------------------------------------------------------------------------


def gains_of(chain: Corrector, denoiser, x: Tensor, t: float, patch: pytest.MonkeyPatch) -> Tensor:
    gains: list[Tensor] = []
    original = module.accepts
    with patch.context() as inner:
        inner.setattr(module, "accepts", lambda gain, uniform: gains.append(gain) or original(gain, uniform))
        chain.bind(denoiser, at(t))(x, 0, shared(3))
    return torch.stack(gains)


@pytest.mark.parametrize("make", [partial(Mala, 1, 0.3), partial(Hmc, 1, 0.1, 4)], ids=["mala", "hmc"])
def test_the_line_integral_is_the_difference_of_log_densities(make, monkeypatch):
    x = normal(400, 2)
    # exact for a linear score with the ends alone
    exact, trapezoid = (gains_of(make(quadrature=k), gaussian(Linear()), x, 0.3, monkeypatch) for k in (None, 0))
    torch.testing.assert_close(trapezoid, exact, rtol=0, atol=1e-12)
    data = plane_mixture(Linear())
    product = data**1.5 / gaussian(Linear()) ** 0.3
    for world in (data, product):
        exact, *integrals = (gains_of(make(quadrature=k), world, x, 0.3, monkeypatch) for k in (None, 0, 1, 2))
        errors = [float((integral - exact).abs().mean()) for integral in integrals]
        assert errors[0] > 5.0 * errors[1] > 25.0 * errors[2] and errors[2] < 1e-4, errors


@every_chain
def test_a_sample_with_its_own_seed_does_not_depend_on_its_batch(chain):
    check_own(chain)


def check_own(chain: Corrector) -> None:
    """Alone, in a batch and at another place of it: bitwise the same sample and acceptance."""
    data, seeds, x = plane_mixture(Linear()), [5, 3, 9, 1], normal(4, 2)
    run = chain.bind(data, at(0.3))
    whole, accepted = run(x, 0, PerSample.from_seeds(seeds))
    for k, seed in enumerate(seeds):
        alone, share = run(x[k : k + 1], 0, PerSample.from_seeds([seed]))
        assert torch.equal(alone[0], whole[k]) and torch.equal(share[0], accepted[k])
    turned, _ = run(x.flip(0), 0, PerSample.from_seeds(seeds[::-1]))
    assert torch.equal(turned.flip(0), whole)


def test_a_sample_that_fails_stays_and_harms_nobody():
    data, x = plane_mixture(Linear()), normal(4, 2)
    broken = x.clone()
    broken[2] = torch.nan
    run = Mala(4, 0.4).bind(data, at(0.3))
    (whole, accepted), (other, share) = (run(start, 0, PerSample.from_seeds(range(4))) for start in (x, broken))
    kept = torch.tensor([True, True, False, True])
    assert torch.equal(whole[kept], other[kept]) and torch.equal(accepted[kept], share[kept])
    assert share[2] == 0.0 and other[2].isnan().all()


def test_a_dimension_more_does_not_mix_samples():
    # an image: everything but the batch axis belongs to one sample
    schedule = Linear()
    x = normal(6, 2, 3, 4)

    run = Mala(3, 0.4, quadrature=0).bind(NetworkDenoiser(Shrunk(0.3), schedule, "x0"), at(0.4))
    moved, accepted = run(x, 0, shared())
    flat, share = run(x.flatten(1), 0, shared())
    assert accepted.shape == (6,) and torch.equal(moved.flatten(1), flat) and torch.equal(accepted, share)


# --- in the loop ----------------------------------------------------------------------------------------


def variance_of_run(denoiser, table) -> float:
    """Variance at the end of a run, exactly, for a denoiser ``x0_hat = gain x``: the table's rows propagate it."""
    one = torch.ones(1, 1, dtype=torch.float64)
    evaluate, variance = denoiser.bind(table.times), float(experts.start(denoiser, one)) ** 2
    rows = zip(table.x[:, 0].tolist(), table.estimate[:, 0].tolist(), table.noise.tolist(), strict=True)
    for i, (of_x, of_estimate, spread) in enumerate(rows):
        variance = (of_x + of_estimate * float(evaluate(one, i))) ** 2 * variance + spread**2
    return variance


@pytest.mark.parametrize("exponent", [1.5, 2.0, 4.0])
def test_the_naive_product_at_high_noise_is_stationary_at_the_wrong_variance(exponent):
    # unit data is N(0, 1) at every t of a variance-preserving schedule; its power N(0, 1 / W)
    data = GaussianData(Linear(), vector(0.0), vector(1.0)) ** exponent
    errors = []
    for n in (200, 400):
        table = ddpm(Linear(), grids.log_snr_uniform(Linear(), n, 0.999, 0.05)[:-1])
        errors.append(variance_of_run(data, table) - 1.0 / (2.0 * exponent - 1.0))
    # first order in the step, and gone in the limit
    assert abs(2.0 * errors[1] - errors[0]) < 0.02 * abs(errors[0]) + 1e-3
    assert abs(errors[1]) < 0.05


@pytest.mark.parametrize("exponent", [0.5, 2.0, 3.0])
def test_the_flow_of_a_product_contracts_or_explodes(exponent):
    # unit data to the power W: x' = 1/2 (W - 1) g^2 x, so that widths change by alpha^(W - 1)
    data, errors = GaussianData(Linear(), vector(0.0), vector(1.0)) ** exponent, []
    for n in (400, 800):
        grid = grids.log_snr_uniform(Linear(), n, 0.999, 0.002)[:-1]
        change = 0.5 * math.log(variance_of_run(data, ddim(Linear(), grid)) * exponent)
        alphas = Linear().alpha(grid[[0, -1]]).log()
        errors.append(change - (exponent - 1.0) * float(alphas[0] - alphas[1]))
    assert errors[1] == pytest.approx(0.5 * errors[0], rel=0.05) and abs(errors[1]) < 0.2


def test_a_corrector_makes_the_product_that_the_sampler_misses():
    schedule, n = Linear(), 4000
    product = GaussianData(schedule, vector(0.8), vector(0.6)) ** 2.0 * GaussianData(
        schedule, vector(-0.4), vector(0.9)
    )
    precision = 2.0 / 0.6**2 + 1.0 / 0.9**2
    mean = (2.0 * 0.8 / 0.6**2 - 0.4 / 0.9**2) / precision
    grid = grids.log_snr_uniform(schedule, 60, 0.99, 0.005)
    start = experts.start(product, normal(n, 1), 0.99)

    def error(corrector: Corrector | None) -> float:
        x = sample(product, ddpm(schedule, grid), start, noise=shared(2), corrector=corrector)
        assert abs(float(x.mean()) - mean) < 0.2
        return (float(x.var()) * precision - 1.0) / math.sqrt(2.0 / n)

    assert error(None) < -8.0
    assert abs(error(Hmc(2, 0.3, 5))) < 4.0


def test_the_trajectory_reports_the_acceptance():
    data, grid = plane_mixture(Linear()), grids.uniform(6, start=0.9)
    x = normal(5, 2)
    for solver in (ddim, ddpm, heun):
        states = list(trajectory(data, solver(Linear(), grid), x, noise=shared(), corrector=Mala(4, 0.5)))
        assert [state.t for state in states] == grid[1:].tolist()
        assert states[-1].accepted is None
        shares = torch.stack([state.accepted for state in states[:-1]])
        assert (
            shares.shape == (5, 5) and torch.equal((4.0 * shares).round(), 4.0 * shares) and 0.3 < shares.mean() < 1.0
        )
    assert all(state.accepted is None for state in trajectory(data, ddim(Linear(), grid), x))


def test_the_corrector_acts_at_the_time_that_was_reached():
    seen: list[float] = []

    class Spy:
        def bind(self, denoiser, times, cond=None):
            def correct(x, i, noise):
                seen.append(float(times[i]))
                return x, x.new_ones(len(x))

            return correct

    grid = grids.uniform(5)
    sample(plane_mixture(Linear()), heun(Linear(), grid), normal(2, 2), noise=shared(), corrector=Spy())
    assert seen == grid[1:-1].tolist()


@every_chain
def test_a_corrector_reads_no_value(chain):
    data, counts = plane_mixture(Linear()), []
    for n in (4, 8):
        table = ddim(Linear(), grids.uniform(n, start=0.9))
        with Operations() as operations:
            sample(data, table, normal(5, 2), noise=shared(), corrector=chain)
        counts.append(operations.counts)
    more = counts[1] - counts[0]
    assert not [name for name in ("_local_scalar_dense", "item", "nonzero") if more[name]]


# --- what is refused ------------------------------------------------------------------------------------


def test_mistakes_are_refused_with_what_to_do():
    data, x, table = plane_mixture(Linear()), normal(2, 2), ddim(Linear(), grids.uniform(3))
    network = NetworkDenoiser(torch.nn.Identity(), Linear(), "x0")
    known = data * Known(torch.tensor([True, False]), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(WorkbenchError, match="noise=None"):
        sample(data, table, x, corrector=Ula(1, 0.1))
    with pytest.raises(WorkbenchError, match="several times at once"):
        columns = torch.stack([grids.uniform(3)] * 2, 1)
        sample(data, ddim(Linear(), columns), x, noise=shared(), corrector=Ula(1, 0.1))
    with pytest.raises(WorkbenchError, match="NetworkDenoiser, which has none"):
        Mala(1, 0.1).bind(network, at(0.5))
    with pytest.raises(WorkbenchError, match="Mala, Hmc: got Known"):
        Mala(1, 0.1, quadrature=1).bind(known, at(0.5))
    with pytest.raises(WorkbenchError, match="parts with log-densities"):
        Ula(1, 0.1).bind((network | network) ** 2.0, at(0.5))
    with pytest.raises(WorkbenchError, match="times > 0"):
        Ula(1, 0.1).bind(data, at(0.0))
    for wrong in (partial(Ula, 0, 0.1), partial(Mala, 1, -0.1), partial(Hmc, 1, 0.1, 0), partial(Hmc, 1, 0.1, 1, 3)):
        with pytest.raises(WorkbenchError, match="expected"):
            wrong()
    with pytest.raises(WorkbenchError, match="persistence=1"):
        Hmc(1, 0.1, 1, persistence=1.0)
    Ula(1, 0.1).bind(known, at(0.5))


def test_a_cost_on_the_noisy_sample_is_part_of_the_density():
    # N(0, 1) exp(-x^2 / 2): variance one half
    schedule = RectifiedFlow()
    t = 0.5
    data = GaussianData(schedule, vector(0.0), vector(math.sqrt(3.0)))
    tilted = data * Energy(lambda x, t: 0.5 * x.square().sum(1), on="x_t")
    x, _ = Mala(60, 0.5).bind(tilted, at(t))(torch.zeros(10_000, 1, dtype=torch.float64), 0, shared())
    assert abs(2.0 * float(x.var()) - 1.0) < 4.0 * math.sqrt(2.0 / 10_000)


def test_modes_are_weighted_as_the_density_says():
    # two modes apart enough to notice, near enough to be mixed by HMC
    data = GaussianMixture(Linear(), vector(0.25, 0.75), vector(-1.0, 1.0)[:, None], vector(0.3, 0.3))
    t, n = 0.25, 6000
    x, _ = Hmc(40, 0.25, 4).bind(data, at(t))(normal(n, 1), 0, shared())
    share, expected = float((x[:, 0] > 0.0).double().mean()), 1.0 - float(data.cdf(vector(0.0), t))
    assert abs(share - expected) < 4.0 * math.sqrt(expected * (1.0 - expected) / n)


def test_a_cost_of_the_data_needs_no_log_density():
    # the score is the gradient of log p_t(x) - cost(x0_hat(x)), here a Gaussian's
    schedule, t, n = Linear(), 0.4, 10_000
    data = GaussianData(schedule, vector(0.0), vector(0.8))
    tilted = data * Energy(lambda x0: 2.0 * x0.square().sum(1))
    gain = float(data.bind(at(t))(torch.ones(1, 1, dtype=torch.float64), 0))
    variance = 1.0 / (1.0 / float(data.marginal(t)[1]) ** 2 + 4.0 * gain**2)
    x, accepted = Mala(60, 0.4, quadrature=0).bind(tilted, at(t))(torch.zeros(n, 1, dtype=torch.float64), 0, shared())
    assert abs(float(x.var()) / variance - 1.0) < 4.0 * math.sqrt(2.0 / n) and accepted.mean() < 0.99


@pytest.mark.parametrize("chain", [Ula(3, 0.2), Mala(3, 0.4, 1), Hmc(2, 0.2, 2, 0, persistence=0.5)], ids=str)
def test_single_precision_stays_single(chain):
    run = chain.bind(NetworkDenoiser(Shrunk(0.5), Linear(), "eps"), at(0.4))
    x = normal(5, 2).float()
    (single, accepted), (double, _) = (run(start, 0, PerSample.from_seeds(range(5))) for start in (x, x.double()))
    assert single.dtype == accepted.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Letters(Denoiser):
    """A number, an angle and a letter: letter k has the share p_k, a Gaussian number at m_k, the angle a_k; exact."""

    shares: tuple[float, ...]
    means: tuple[float, ...] = (-0.7, 0.9)
    angles: tuple[float, ...] = (0.2, 0.27)
    width: float = 0.6
    spread: float = 0.03

    @property
    def process(self) -> Joint:
        torus = Torus(GeometricVarianceExploding(0.01, 0.5))
        return Joint({"x": Gaussian(Linear()), "f": torus, "c": Absorbing(RectifiedFlow(), len(self.shares))})

    def bind(self, times, cond=None):
        fields = self.process.fields
        alpha, sigma = fields["x"].schedule.alpha(times["x"]), fields["x"].schedule.sigma(times["x"])
        noise = fields["f"].schedule.sigma(times["f"])
        means, angles, shares = vector(*self.means), vector(*self.angles), vector(*self.shares)

        def evaluate(state, i):
            x, f, c = state["x"], state["f"], state["c"]
            variance = alpha[i] ** 2 * self.width**2 + sigma[i] ** 2
            turn = torch.sqrt(noise[i] ** 2 + self.spread**2)
            images = torch.arange(-4.0, 5.0, dtype=torch.float64)
            away = f[:, :, None, None] - angles[:, None] - images
            kernels = torch.exp(-0.5 * (away / turn) ** 2)
            of_angle = kernels.sum(-1)
            log_p = shares.log() - 0.5 * (x - alpha[i] * means) ** 2 / variance + of_angle[:, 0].log()
            logits = log_p[:, None].clone()
            fixed = c < len(self.shares)
            letters = torch.where(fixed, c, 0)
            seen = torch.nn.functional.one_hot(letters[:, 0], len(self.shares)).bool()
            post = torch.where(fixed & ~seen, -torch.inf, log_p).softmax(-1)
            score = (post * (alpha[i] * means - x)).sum(1, keepdim=True) / variance
            slopes = (-away * kernels).sum(-1) / turn**2 / of_angle
            return {
                "x": (x + sigma[i] ** 2 * score) / alpha[i],
                "f": (post[:, None] * slopes).sum(-1),
                "c": logits,
            }

        return evaluate


def letters_at(first: Letters, second: Letters, t: float) -> tuple[Tensor, Tensor]:
    """Share of each letter, and the mean number of each, in the product of the two densities at t; on a grid."""
    x = torch.linspace(-5.0, 5.0, 2001, dtype=torch.float64)
    schedule = Linear()
    alpha, sigma = float(schedule.alpha(at(t))), float(schedule.sigma(at(t)))
    torus = GeometricVarianceExploding(0.01, 0.5)
    f = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)[:-1]
    shares, means = [], []
    for k in range(2):
        log_x, log_f = torch.zeros_like(x), torch.zeros_like(f)
        for one in (first, second):
            variance = (alpha * one.width) ** 2 + sigma**2
            log_x = log_x + math.log(one.shares[k]) - 0.5 * (x - alpha * one.means[k]) ** 2 / variance
            turn = math.hypot(float(torus.sigma(at(t))), one.spread)
            images = torch.arange(-4.0, 5.0, dtype=torch.float64)
            log_f = log_f + torch.exp(-0.5 * ((f[:, None] - one.angles[k] - images) / turn) ** 2).sum(-1).log()
        shares.append(log_x.exp().sum() * log_f.exp().sum())
        means.append((log_x.exp() * x).sum() / log_x.exp().sum())
    total = torch.stack(shares)
    return total / total.sum(), torch.stack(means)


def test_sweeps_end_at_the_product_of_the_densities_of_several_fields():
    first, second = Letters((0.3, 0.7)), Letters((0.6, 0.4), means=(-0.2, 0.4), angles=(0.22, 0.26))
    t, n = 0.35, 4000
    times = {name: at(t) for name in ("x", "f", "c")}
    x = {
        "x": normal(n, 1),
        "f": torch.rand(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        "c": torch.zeros(n, 1, dtype=torch.int64),
    }
    end, _ = Sweep(60, 0.1).bind(first * second, times)(x, 0, shared())
    shares, means = letters_at(first, second, t)
    share = float((end["c"] == 1).double().mean())
    assert abs(share - float(shares[1])) < 4.0 * math.sqrt(float(shares[1]) / n) + 0.01
    for k in range(2):
        of_letter = end["x"][end["c"] == k]
        assert abs(float(of_letter.mean() - means[k])) < 0.06
    # a Gibbs step of the letters alone would leave them where the first numbers had them
    assert abs(float(shares[1]) - 0.5) > 0.1


def test_sweeps_leave_masked_entries_and_refuse_other_processes():
    model = Letters((0.3, 0.7))
    times = {name: at(0.5) for name in ("x", "f", "c")}
    x = {"x": normal(5, 1), "f": torch.rand(5, 1, dtype=torch.float64), "c": torch.full((5, 1), 2)}
    end, _ = Sweep(3, 0.1).bind(model, times)(x, 0, shared())
    assert (end["c"] == 2).all() and (end["x"] != x["x"]).all() and ((end["f"] >= 0) & (end["f"] < 1)).all()
    with pytest.raises(WorkbenchError, match="use Ula"):
        Sweep(1, 0.1).bind(gaussian(Linear()), at(0.5))
    with pytest.raises(WorkbenchError, match="or Sweep"):
        Ula(1, 0.1).bind(model, times)


def test_sweeps_follow_a_sampler_of_several_fields():
    model = Letters((0.3, 0.7))
    grid, process = grids.uniform(6, 0.95), model.process
    plan = Together(
        {
            "x": ddpm(process.fields["x"].schedule, grid),
            "f": torus.ancestral(process.fields["f"], grid),
            "c": categorical.ancestral(process.fields["c"], torch.where(grid == grid[0], 1.0, grid)),
        }
    )
    n = 3000
    x = {"x": normal(n, 1), "f": torch.rand(n, 1, dtype=torch.float64), "c": torch.full((n, 1), 2)}
    end = sample(model, plan, x, noise=shared(), corrector=Sweep(2, 0.1))
    assert abs(float((end["c"] == 1).double().mean()) - 0.7) < 0.05
