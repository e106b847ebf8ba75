"""Guidance on closed-form densities, and what is done to estimates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import given
from diffusion_core.guidance import (
    Inflated,
    Interval,
    Rescaled,
    Thresholded,
    autoguidance,
    classifier,
    classifier_free,
    measurement,
    negative,
    perturbed_attention,
    similarity,
)
from diffusion_core.nn.attention import Attention
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.sample import sample
from diffusion_core.schedule import Linear, RectifiedFlow, Schedule
from diffusion_core.solvers import ddim
from tests.diffusion_core.test_experts import TIMES, Counted, every_smooth, points, score
from tests.diffusion_core.worlds import gaussian, plane_mixture, vector


class Shift(nn.Module):
    """A network with a condition: it predicts the condition plus a little of x."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.weight = nn.Parameter(torch.full((1,), 0.1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.calls.append(len(x))
        return cond + self.weight * x


def conditional(batch: int = 7) -> tuple[NetworkDenoiser, Shift, Tensor, Tensor]:
    network = Shift()
    cond, null = torch.full((batch, 2), 2.0, dtype=torch.float64), torch.zeros(batch, 2, dtype=torch.float64)
    return NetworkDenoiser(network, Linear(), "x0"), network, cond, null


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5])
def test_classifier_free_guidance_is_its_formula_in_one_call_and_in_one_branch_where_one_is_enough(scale):
    model, network, cond, null = conditional()
    x = points()
    uncond, plain = (given(model, c).bind(TIMES)(x, 1) for c in (null, cond))
    network.calls.clear()
    guided = classifier_free(model, null, scale).bind(TIMES, cond)(x, 1)
    torch.testing.assert_close(guided, uncond + scale * (plain - uncond), rtol=1e-12, atol=1e-12)
    assert network.calls == ([7] if scale in (0.0, 1.0) else [14])
    for same in (classifier_free(model, null, scale, cond), classifier_free(model, null[:1], scale, cond)):
        torch.testing.assert_close(same.bind(TIMES)(x, 1), guided, rtol=0, atol=0)


def test_outside_its_interval_guidance_evaluates_the_conditional_branch_alone():
    model, network, cond, null = conditional()
    guided = classifier_free(model, null, Interval(4.0, 0.3, 0.7))
    evaluate, x = guided.bind(TIMES, cond), points()
    full = classifier_free(model, null, 4.0).bind(TIMES, cond)(x, 1)
    plain = model.bind(TIMES, cond)
    network.calls.clear()
    values = [evaluate(x, i) for i in range(3)]
    assert network.calls == [7, 14, 7]
    torch.testing.assert_close(values[1], full, rtol=0, atol=0)
    for i in (0, 2):
        torch.testing.assert_close(values[i], plain(x, i), rtol=0, atol=0)


def test_an_interval_keeps_the_digits_of_its_scales():
    assert Interval(1.3, 0.3, 0.7, 0.1)(TIMES).tolist() == [0.1, 1.3, 0.1]


def test_an_empty_interval_is_refused():
    with pytest.raises(WorkbenchError, match=r"got low=0.7, high=0.3"):
        Interval(2.0, 0.7, 0.3)


@every_smooth
def test_guided_gaussians_have_the_score_of_the_tempered_ratio(schedule):
    # p_u (p_c / p_u)^w of Gaussians of one mean is Gaussian with precision (1 - w) / v_u + w / v_c
    w, uncond, cond = (
        3.0,
        GaussianData(schedule, vector(0.4), vector(2.0)),
        GaussianData(schedule, vector(0.4), vector(0.8)),
    )
    x = points(5, 1)
    for t in TIMES.tolist():
        (mean, wide), (_, narrow) = uncond.marginal(t), cond.marginal(t)
        precision = (1.0 - w) / wide**2 + w / narrow**2
        for guided in (uncond * (cond / uncond) ** w, autoguidance(cond, uncond, w), negative(cond, uncond, w - 1.0)):
            torch.testing.assert_close(score(guided, schedule, x, t), precision * (mean - x), rtol=1e-9, atol=1e-9)


@every_smooth
def test_an_exact_classifier_turns_the_prior_into_the_posterior(schedule):
    # two classes, each a Gaussian: p(x_t) p(y | x_t) = p(x_t | y)
    mixture = GaussianMixture(schedule, vector(0.3, 0.7), vector(-1.0, 1.5)[:, None], vector(0.6, 0.6))
    one = GaussianMixture(schedule, vector(1.0), vector(-1.0)[:, None], vector(0.6))

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        return one.log_density(x, float(t)) - mixture.log_density(x, float(t))

    x = points(5, 1)
    for t in TIMES.tolist():
        guided = mixture * classifier(log_prob, 1.0)
        torch.testing.assert_close(score(guided, schedule, x, t), one.score(x, t), rtol=1e-8, atol=1e-8)


def test_a_measurement_of_half_of_a_gaussian_is_its_posterior():
    # observed: the first of two independent unit features; the other must stay as it is
    schedule, std = Linear(), 0.3
    prior = GaussianData(schedule, vector(0.0, 0.0), vector(1.0, 1.0))
    y = torch.full((4000, 1), -0.8, dtype=torch.float64)
    posterior = prior * measurement(lambda x0: x0[:, :1], y, Inflated(schedule, std))
    end = sample(posterior, ddim(schedule, grids.uniform(300)), points(4000))
    assert float(end[:, 0].mean()) == pytest.approx(-0.8 / (1.0 + std**2), abs=0.02)
    assert float(end[:, 0].std()) == pytest.approx(std / math.sqrt(1.0 + std**2), abs=0.02)
    assert float(end[:, 1].mean()) == pytest.approx(0.0, abs=4.0 / math.sqrt(4000))
    assert float(end[:, 1].std()) == pytest.approx(1.0, abs=4.0 / math.sqrt(8000))


def test_the_plain_norm_of_a_measurement_has_a_gradient_of_unit_length_in_the_estimate():
    schedule, y = Linear(), torch.zeros(7, 2, dtype=torch.float64)
    unit = GaussianData(schedule, vector(3.0, 4.0), vector(1.0, 1.0))
    evaluate, x = unit.bind(TIMES), points()
    guided = (unit * measurement(lambda x0: x0, y, 1.0, norm="plain")).bind(TIMES)(x, 1)
    x0_hat, alpha, sigma = evaluate(x, 1), schedule.alpha(TIMES[1]), schedule.sigma(TIMES[1])
    direction = x0_hat / x0_hat.norm(dim=1, keepdim=True)
    step = sigma**2 / (alpha**2 + sigma**2)
    torch.testing.assert_close(guided, x0_hat - step * direction, rtol=1e-10, atol=1e-10)


def test_guidance_by_similarity_turns_the_embedding_towards_the_target():
    schedule, target = Linear(), vector(1.0, 1.0, 0.0)
    encoder = torch.tensor([[1.0, 0.0, 1.0], [0.5, -1.0, 0.0]], dtype=torch.float64)
    data = gaussian(schedule)

    def cosine(denoiser) -> float:
        end = sample(denoiser, ddim(schedule, grids.uniform(40)), points(200))
        return float(nn.functional.cosine_similarity(end @ encoder, target[None]).mean())

    scales = [cosine(data), cosine(data * similarity(lambda x0: x0 @ encoder, target, 10.0))]
    assert scales[1] > scales[0] + 0.2
    # where the two agree the cost is flat, and its gradient a number
    aligned = target.clone().requires_grad_()
    cost = similarity(lambda x0: x0, target, 1.0).energies[0][0].cost(aligned[None] * 2.0)
    (gradient,) = torch.autograd.grad(cost.sum(), aligned)
    assert float(cost) == pytest.approx(0.0, abs=1e-12) and bool(torch.isfinite(gradient).all())


def test_the_squared_angle_of_similarity_is_the_angle():
    a, b = vector(1.0, 0.0), vector(math.cos(0.9), math.sin(0.9))
    cost = similarity(lambda x0: x0, b, 1.0).energies[0][0].cost(a[None])
    assert float(cost) == pytest.approx(0.9**2 / 2.0, rel=1e-10)


# --- what is done to the estimate -----------------------------------------------------------------------


def test_rescaling_gives_the_guided_estimate_the_spread_of_the_conditional_one():
    model, _, cond, null = conditional()
    cond = cond + torch.tensor([1.0, -1.0], dtype=torch.float64)
    x = points()
    plain = given(model, cond).bind(TIMES)(x, 1)
    guided = classifier_free(model, null, 5.0, cond).bind(TIMES)(x, 1)
    for phi in (0.0, 0.4, 1.0):
        rescaled = Rescaled(given(model, cond), given(model, null), 5.0, phi).bind(TIMES)(x, 1)
        factor = phi * plain.std(1, keepdim=True) / guided.std(1, keepdim=True) + 1.0 - phi
        torch.testing.assert_close(rescaled, factor * guided, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rescaled.std(1), plain.std(1), rtol=1e-10, atol=1e-10)


def test_a_threshold_clips_at_the_quantile_and_rescales_and_leaves_small_estimates_alone():
    class Fixed(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return cond

    values = torch.stack([torch.linspace(-4.0, 4.0, 101), torch.linspace(-0.5, 0.5, 101)]).double()
    thresholded = Thresholded(NetworkDenoiser(Fixed(), Linear(), "x0"), 0.9).bind(TIMES, values)(torch.zeros(2, 101), 0)
    limit = float(values[0].abs().quantile(0.9))
    torch.testing.assert_close(thresholded[0], values[0].clamp(-limit, limit) / limit, rtol=1e-12, atol=1e-12)
    assert torch.equal(thresholded[1], values[1])


@pytest.mark.parametrize("bad", [-0.1, 0.0, 1.1])
def test_impossible_quantiles_and_shares_are_refused(bad):
    with pytest.raises(WorkbenchError, match="percentile"):
        Thresholded(gaussian(Linear()), bad)
    if bad != 0.0:
        with pytest.raises(WorkbenchError, match="phi"):
            Rescaled(gaussian(Linear()), gaussian(Linear()), 2.0, bad)


# --- attention ------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Two attention layers over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = Attention(8, 2), Attention(8, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.second(x + self.first(x))


def sequences() -> Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


def test_a_perturbed_layer_sees_each_token_alone_and_the_others_as_before():
    model = NetworkDenoiser(Tokens(), Linear(), "x0")
    x = sequences()
    x_changed = x.clone()
    x_changed[:, 2] += 1.0
    for layers, local in ((None, True), (["first"], False)):
        twin = perturbed_attention(model, layers)
        a, b = (twin.network(v, None, None) for v in (x, x_changed))
        same = torch.isclose(a, b, atol=1e-6).all(-1)
        assert bool(same[:, [0, 1, 3, 4]].all()) == local and not bool(same[:, 2].any())
    assert not model.network.first.perturbed and not model.network.second.perturbed


def test_the_perturbed_twin_shares_its_weights_and_its_process():
    model = NetworkDenoiser(Tokens(), Linear(), "x0")
    twin = perturbed_attention(model, ["second"])
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    guided = autoguidance(model, twin, 2.0).bind(TIMES)(sequences(), 1)
    good, bad = (m.bind(TIMES)(sequences(), 1) for m in (model, twin))
    torch.testing.assert_close(guided, bad + 2.0 * (good - bad), rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(WorkbenchError, match=r"got layers=\['third'\]; expected .*first.*second"):
        perturbed_attention(NetworkDenoiser(Tokens(), Linear(), "x0"), ["third"])
    with pytest.raises(WorkbenchError, match="which are none"):
        perturbed_attention(NetworkDenoiser(nn.Linear(2, 2), Linear(), "x0"))


def test_a_hook_sees_the_map_and_replaces_it():
    attention = Tokens().first
    x, seen = sequences(), []
    plain = attention(x)
    attention.hook = lambda weights: seen.append(weights) or weights
    torch.testing.assert_close(attention(x), plain, rtol=1e-5, atol=1e-6)
    assert seen[0].shape == (3, 2, 5, 5)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(3, 2, 5), rtol=1e-5, atol=1e-6)
    attention.hook = lambda weights: torch.eye(5).expand_as(weights)
    replaced = attention(x)
    attention.hook, attention.perturbed = None, True
    torch.testing.assert_close(attention(x), replaced, rtol=1e-5, atol=1e-6)


def test_attention_to_a_context_reads_the_context():
    attention = Attention(8, 2, context_dim=3)
    context = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(2))
    out = attention(sequences(), context)
    torch.testing.assert_close(attention(sequences(), context[:, [2, 0, 3, 1]]), out, rtol=1e-5, atol=1e-6)
    assert float((attention(sequences(), context * 2.0) - out).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("schedule", [Linear(), RectifiedFlow()], ids=str)
def test_guidance_moves_mass_to_where_the_condition_is_likelier(schedule: Schedule):
    # the figure of classifier-free guidance: one class of a mixture, pushed away from the other
    everything = plane_mixture(schedule)
    one = GaussianMixture(schedule, vector(1.0), everything.means[:1], everything.stds[:1])
    table, x = ddim(schedule, grids.uniform(60, 0.98)), points(2000)
    away = everything.means[0] - everything.means[1]
    means = [float((sample(everything * (one / everything) ** w, table, x) @ away).mean()) for w in (1.0, 2.0, 4.0)]
    assert means[0] + 0.05 < means[1] and means[1] + 0.05 < means[2]


def test_counted_denoisers_are_called_once_for_each_side_of_autoguidance():
    good, bad = Counted(plane_mixture(Linear())), Counted(gaussian(Linear()))
    autoguidance(good, bad, 1.0).bind(TIMES)(points(), 0)
    assert len(good.calls) == 1 and not bad.calls
