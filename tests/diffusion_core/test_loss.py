"""Losses against their closed-form minimum, weights against their definition, draws against one process's."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import (
    Draws,
    LearnedWeights,
    denoising_loss,
    edm,
    importance_loss,
    min_snr,
    p2,
    sigmoid,
    simple,
    snr,
)
from diffusion_core.predict import PREDICTIONS, F, convert, mixture
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Cosine, Linear, RectifiedFlow, Schedule, Shifted, VarianceExploding
from diffusion_core.times import Importance
from tests.diffusion_core.test_denoise import ExactNetwork
from tests.diffusion_core.worlds import EVERY_SCHEDULE, SMOOTH, gaussian, vector


def draws(seed: int = 0, rank: int = 0, world: int = 1) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), rank, world)


def at(t: float):
    return lambda draws, batch: torch.full((batch,), t, dtype=torch.float64)


def clean(schedule, n: int) -> Tensor:
    data = gaussian(schedule)
    return data.mean + data.std * torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Biased(nn.Module):
    """A network that is wrong by a constant."""

    def __init__(self, network: nn.Module, shift: float) -> None:
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        return self.network(x, t, cond) + self.shift


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", SMOOTH.values(), ids=SMOOTH.keys())
def test_the_loss_of_the_exact_prediction_is_the_variance_of_its_target(schedule, kind, shift):
    # target given x_t: variance (k_x0 - k_eps alpha / sigma)^2 var(x0 | x_t); a bias adds its square
    n, t = 20_000, 0.4
    alpha, sigma, d_alpha, d_sigma = (
        float(f(vector(t))) for f in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma)
    )
    k_x0, k_eps = {
        "x0": (1.0, 0.0), "eps": (0.0, 1.0), "v": (-sigma, alpha),
        "velocity": (d_alpha, d_sigma), "score": (0.0, -1.0 / sigma),
        "F": (2.0 * sigma / math.hypot(alpha / 2.0, sigma), -0.5 * alpha / math.hypot(alpha / 2.0, sigma)),
    }[kind]  # fmt: skip
    variance = gaussian(schedule).std ** 2
    posterior = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    expected = float(((k_x0 - k_eps * alpha / sigma) ** 2 * posterior).mean()) + shift**2

    denoiser = NetworkDenoiser(Biased(ExactNetwork(schedule, kind), shift), schedule, kind)
    loss = denoising_loss(denoiser, clean(schedule, n), None, draws(), times=at(t))
    assert loss.shape == (n,)
    assert abs(float(loss.mean()) - expected) < 4.0 * float(loss.std()) / math.sqrt(n)


def check_min_snr(weighting) -> None:
    """Written for any prediction, the weighted error is ``min(SNR, 5) |x0_hat - x0|^2``."""
    for schedule in SMOOTH.values():
        t = vector(0.05, 0.3, 0.6, 0.95)
        x0, eps, wrong = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x_t = Gaussian(schedule).corrupt(x0, t, eps)
        snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
        expected = snr.clamp(max=5.0)[:, None] * (wrong - x0) ** 2
        for kind in PREDICTIONS:
            target = NetworkDenoiser(nn.Identity(), schedule, kind).target(x0, eps, t)
            error = (convert(wrong, x_t, "x0", kind, schedule, t) - target) ** 2
            torch.testing.assert_close(weighting(kind, schedule, t)[:, None] * error, expected, rtol=1e-7, atol=1e-9)


def test_min_snr_is_one_loss_in_whatever_way_the_network_predicts():
    check_min_snr(min_snr)


def test_min_snr_of_eps_is_the_published_ratio():
    # Hang et al. 2023, section 3.4: min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v
    schedule, t = Linear(), vector(0.02, 0.3, 0.8)
    snr = schedule.log_snr(t).exp()
    torch.testing.assert_close(min_snr("eps", schedule, t), snr.clamp(max=5.0) / snr)
    torch.testing.assert_close(min_snr("v", schedule, t), snr.clamp(max=5.0) / (snr + 1.0))
    torch.testing.assert_close(min_snr("x0", schedule, t, gamma=1.0), snr.clamp(max=1.0))


@pytest.mark.parametrize("weighting", [simple, min_snr], ids=["simple", "min_snr"])
def test_each_sample_is_weighted_at_its_own_time(weighting):
    schedule, times = Linear(), vector(0.1, 0.5, 0.9)
    denoiser = NetworkDenoiser(ExactNetwork(schedule, "v"), schedule, "v")
    x0 = clean(schedule, 3)
    noise = draws().normal((3, 2), torch.float64)
    loss = denoising_loss(denoiser, x0, None, draws(), times=lambda draws, batch: times, weighting=weighting)
    for i, t in enumerate(times):
        x_t = schedule.alpha(t) * x0[i] + schedule.sigma(t) * noise[i]
        target = schedule.alpha(t) * noise[i] - schedule.sigma(t) * x0[i]
        error = (denoiser(x_t[None], t[None])[0] - target).square().mean()
        torch.testing.assert_close(loss[i], weighting("v", schedule, t) * error, rtol=1e-10, atol=0)


# --- random numbers -------------------------------------------------------------------------------------


def check_draws(make) -> None:
    """The shards of ``world`` processes, interleaved, are one process's draws; and every draw is fresh."""
    for world in (2, 3):
        one = make(torch.Generator().manual_seed(3), 0, 1)
        shards = [make(torch.Generator().manual_seed(3), rank, world) for rank in range(world)]
        for draw in ("uniform", "normal", "normal"):
            whole = getattr(one, draw)((6, 2))
            parts = [getattr(shard, draw)((6 // world, 2)) for shard in shards]
            assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_processes_together_draw_what_one_process_draws():
    check_draws(Draws)


def test_two_processes_together_have_the_losses_of_one():
    schedule = Linear()
    denoiser = NetworkDenoiser(ExactNetwork(schedule, "eps"), schedule, "eps")
    x0 = clean(schedule, 8)
    whole = denoising_loss(denoiser, x0, None, draws())
    parts = [denoising_loss(denoiser, x0[rank::2], None, draws(rank=rank, world=2)) for rank in range(2)]
    torch.testing.assert_close(torch.stack(parts, 1).flatten(), whole, rtol=1e-12, atol=0)


def test_the_loss_reaches_the_network_with_a_gradient():
    schedule = RectifiedFlow()
    network = Biased(ExactNetwork(schedule, "velocity"), 0.0)
    network.shift = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    n = 4000
    loss = denoising_loss(NetworkDenoiser(network, schedule, "velocity"), clean(schedule, n), None, draws())
    loss.mean().backward()
    # d/dshift E|error + shift|^2 = 2 shift
    assert abs(float(network.shift.grad) - 0.6) < 4.0 * 2.0 * float(loss.detach().mean().sqrt()) / math.sqrt(2 * n)


# --- weightings --------------------------------------------------------------------------------------------


def slope(schedule: Schedule, t: Tensor) -> Tensor:
    """``dlog_snr/dt`` by autograd."""
    u = t.clone().requires_grad_(True)
    return torch.autograd.grad(schedule.log_snr(u).sum(), u)[0]


# published weights on the error of x0 or of eps
PUBLISHED = {
    "snr": (snr, "eps", lambda schedule, t, ratio: torch.ones_like(t)),
    "snr of x0": (partial(snr, power=0.0), "x0", lambda schedule, t, ratio: torch.ones_like(t)),
    "snr + 1": (partial(snr, offset=1.0), "x0", lambda schedule, t, ratio: ratio + 1.0),
    "min_snr": (min_snr, "x0", lambda schedule, t, ratio: ratio.clamp(max=5.0)),
    "soft min_snr": (partial(min_snr, soft=True), "x0", lambda schedule, t, ratio: 5.0 * ratio / (5.0 + ratio)),
    "p2": (partial(p2, k=2.0, gamma=0.5), "eps", lambda schedule, t, ratio: (2.0 + ratio) ** -0.5),
    "edm": (edm, "x0", lambda schedule, t, ratio: (1.0 / ratio + 0.25) / (0.25 / ratio)),
    "sigmoid": (
        sigmoid, "eps", lambda schedule, t, ratio: -0.5 * slope(schedule, t) * torch.sigmoid(-3.0 - ratio.log())
    ),
}  # fmt: skip
every_weighting = pytest.mark.parametrize("name", PUBLISHED)


def check_weighting(weighting, known: str, published) -> None:
    """The weighted error of one and the same estimate is what is published, in whatever way it is predicted."""
    for schedule in EVERY_SCHEDULE.values():
        t = vector(0.05, 0.3, 0.6, 0.95)
        x0, eps, wrong = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x_t = Gaussian(schedule).corrupt(x0, t, eps)
        error = (convert(wrong, x_t, "x0", known, schedule, t) - {"x0": x0, "eps": eps}[known]) ** 2
        expected = published(schedule, t, schedule.log_snr(t).exp())[:, None] * error
        for kind in (*PREDICTIONS, F(1.3)):
            k_x0, k_eps = (k[:, None] for k in mixture(kind, schedule, t))
            error = (convert(wrong, x_t, "x0", kind, schedule, t) - k_x0 * x0 - k_eps * eps) ** 2
            got = weighting(kind, schedule, t)[:, None] * error
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8 * float(expected.max()))


@every_weighting
def test_a_weighting_is_one_loss_in_whatever_way_the_network_predicts(name):
    check_weighting(*PUBLISHED[name])


def test_edm_weights_its_own_prediction_with_one():
    for schedule in SMOOTH.values():
        t = vector(0.0, 0.01, 0.5, 1.0)
        torch.testing.assert_close(edm(F(0.7), schedule, t, 0.7), torch.ones_like(t), rtol=1e-9, atol=0)


def test_snr_plus_one_is_the_loss_of_v_under_a_preserving_schedule():
    t = vector(0.0, 0.3, 1.0)
    torch.testing.assert_close(snr("v", Cosine(), t, offset=1.0), torch.ones_like(t), rtol=1e-9, atol=0)


# (weighting, kind, at t = 0, at t = 1) under RectifiedFlow, by hand
LIMITS = [
    (min_snr, "x0", 5.0, 0.0),
    (min_snr, "eps", 0.0, 1.0),
    (min_snr, "v", 0.0, 0.0),
    (min_snr, "velocity", 0.0, 0.0),
    (min_snr, "F", 0.0, 0.0),
    (min_snr, "score", 0.0, 1.0),
    (partial(min_snr, soft=True), "x0", 5.0, 0.0),
    (partial(min_snr, soft=True), "eps", 0.0, 1.0),
    (snr, "eps", 1.0, 1.0),
    (snr, "velocity", 1.0, 0.0),
    (p2, "eps", 0.0, 1.0),
    (p2, "x0", 1.0, 0.0),
    (edm, "velocity", 1.0, 4.0),
    (edm, "F", 1.0, 1.0),
    (sigmoid, "velocity", 0.0, 0.0),
]


@pytest.mark.parametrize(("weighting", "kind", "clean", "noise"), LIMITS)
def test_a_weight_at_the_ends_is_its_limit(weighting, kind, clean, noise):
    got = weighting(kind, RectifiedFlow(), vector(0.0, 1.0)).tolist()
    assert got == pytest.approx([clean, noise], rel=1e-6, abs=1e-6)


@every_weighting
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "F"])
@pytest.mark.parametrize("schedule", EVERY_SCHEDULE.values(), ids=EVERY_SCHEDULE.keys())
def test_no_weight_is_not_a_number(name, kind, schedule):
    assert not bool(PUBLISHED[name][0](kind, schedule, vector(0.0, 0.5, 1.0)).isnan().any())


def test_the_sigmoid_loss_is_the_same_under_every_schedule():
    # the integral over t of the weight on eps, for an error that depends on log-SNR alone
    def integral(schedule: Schedule) -> float:
        t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        return float((sigmoid("eps", schedule, t, 1.0) * torch.exp(-((schedule.log_snr(t) / 3.0) ** 2))).mean())

    values = [integral(s) for s in (Cosine(), RectifiedFlow(), Shifted(Cosine(), 2.0), VarianceExploding(200.0))]
    assert values == pytest.approx([values[0]] * 4, rel=1e-4)


@pytest.mark.parametrize(
    "weigh", [partial(min_snr, gamma=0.0), partial(p2, k=0.0), partial(edm, sigma_data=0.0)], ids=["gamma", "k", "data"]
)
def test_impossible_weightings_are_refused(weigh):
    with pytest.raises(WorkbenchError, match=r"got .*expected"):
        weigh("x0", Linear(), vector(0.5))


# --- learned weights ---------------------------------------------------------------------------------------


def check_learned_weights(make) -> None:
    """``u`` becomes the logarithm of the expected loss, whose noise is much larger than its differences."""
    schedule, learned = Linear(), make()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(learned.parameters(), 0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        t = torch.rand(256, generator=generator, dtype=torch.float64)
        chi_squared = torch.randn(256, generator=generator, dtype=torch.float64) ** 2
        loss = learned(chi_squared / (0.1 + schedule.sigma(t)), schedule, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    expected = -(0.1 + schedule.sigma(t)).log().float()
    assert float(expected.max() - expected.min()) > 1.0
    assert float((learned.log_loss(schedule, t).detach() - expected).abs().max()) < 0.15


def test_learned_weights_are_the_logarithm_of_the_expected_loss():
    check_learned_weights(lambda: LearnedWeights(12))


def test_learned_weights_change_nothing_at_first_and_are_finite_at_the_ends():
    t, loss = vector(0.0, 0.5, 1.0), vector(1.0, 2.0, 3.0)
    assert torch.equal(LearnedWeights()(loss, RectifiedFlow(), t), loss)


# --- importance --------------------------------------------------------------------------------------------


def test_the_importance_loss_has_the_mean_of_the_plain_one_and_remembers():
    schedule = Linear()
    denoiser = NetworkDenoiser(ExactNetwork(schedule, "x0"), schedule, "x0")
    importance, n = Importance(8), 4000
    for seed in range(3):
        importance_loss(denoiser, clean(schedule, n), None, draws(seed), importance)
    assert bool((importance.seen > 400).all()) and float(importance.probabilities().max()) > 1.2 / 8
    one = importance_loss(denoiser, clean(schedule, n), None, draws(7), importance).detach()
    other = denoising_loss(denoiser, clean(schedule, n), None, draws(8)).detach()
    assert abs(float(one.mean() - other.mean())) < 4.0 * math.sqrt((float(one.var()) + float(other.var())) / n)


def test_known_entries_are_shown_clean_and_do_not_count():
    x0 = torch.randn(64, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    known = torch.rand(64, 5, 1, generator=torch.Generator().manual_seed(2)).expand(-1, -1, 2) < 0.4
    known[0] = True
    seen = []

    class Recording(nn.Module):
        def forward(self, x, t, cond):
            seen.append(x)
            return torch.zeros_like(x)

    denoiser = NetworkDenoiser(Recording(), Cosine(), "x0")
    loss = denoising_loss(denoiser, x0, None, draws(3), known=known)
    assert (seen[0] == x0)[known].all() and (seen[0] != x0)[~known].all()
    expected = torch.stack([(row**2)[~free].mean() for row, free in zip(x0[1:], known[1:], strict=True)])
    torch.testing.assert_close(loss[1:], expected)
    assert float(loss[0]) == 0.0
