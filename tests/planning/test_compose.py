"""Compositions of priors, costs and known places: laws known in closed form, units, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_core import sample
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Product, start
from diffusion_core.grid import log_snr_uniform
from diffusion_core.noise import Shared
from diffusion_core.normalize import MinMax
from diffusion_core.particles import sample_particles
from diffusion_core.schedule import Cosine, Linear
from diffusion_core.solvers import ddim, ddpm
from envs.maze2d import MAPS, Maze
from planning.compose import Described, InMetres, Robots, composed, stitched
from planning.energies import Goal, Length, Separation, Value, Walls, checked
from planning.prior import CONDITIONS, TrajectoryPrior
from tests.planning.chains import Chain, walk

SCHEDULE = Cosine()
HORIZON = 6
NORMALIZER = MinMax(torch.tensor([-1.0, 0.0]), torch.tensor([5.0, 8.0])).double()
HALF = torch.tensor([3.0, 4.0], dtype=torch.float64)
"""Of the normalizer's range, m."""
GOAL = (4.5, 7.5)


def described(chain: Chain, **changes) -> Described:
    return replace(Described(chain, NORMALIZER, HORIZON, 0.12), **changes)


def chain(tie: float = 0.9, shift: float = 0.0) -> Chain:
    """Places of the unit of the normalizer, +-0.4."""
    one = walk(SCHEDULE, HORIZON, tie)
    return Chain(SCHEDULE, 0.3 * one.mean + shift, 0.16 * one.covariance)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(n: int) -> Tensor:
    return log_snr_uniform(SCHEDULE, n, 0.99, 0.002)


def tilted_mean(prior: Chain, slope: Tensor) -> Tensor:
    """Of ``prior exp(-sum slope x)``, slope (horizon, 2): the mean moves by ``-covariance slope``."""
    return prior.mean - prior.covariance @ slope


def goal_posterior(prior: Chain, goal: Tensor, step: int, strength: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviations of ``prior exp(-strength |m (x_step - goal)|^2)``, m = HALF, in normalised units."""
    means, stds = [], []
    for axis in range(2):
        precision = torch.linalg.inv(prior.covariance)
        pull = precision @ prior.mean[:, axis]
        precision[step, step] += 2.0 * strength * HALF[axis] ** 2
        pull[step] += 2.0 * strength * HALF[axis] ** 2 * goal[axis]
        covariance = torch.linalg.inv(precision)
        means.append(covariance @ pull)
        stds.append(covariance.diagonal().sqrt())
    return torch.stack(means, 1), torch.stack(stds, 1)


def check_linear_cost_is_exact(make) -> None:
    """On Gaussian data, posterior sampling with a cost that is linear in the data is exact at every t.

    So whoever starts at the mean stays there: no noise, no tolerance but rounding's.
    """
    prior, strength = chain(), 0.7
    slope = torch.randn(HORIZON, 2, generator=seeded(), dtype=torch.float64)
    cost = Value(lambda xy: -(slope * xy).sum((-1, -2)))
    expression = make({"chain": described(prior)}, [cost], [strength])
    expected = tilted_mean(prior, strength * slope * HALF)
    times = grid(15)
    x = (SCHEDULE.alpha(times[0]) * expected)[None]
    found = sample.sample(expression, ddim(SCHEDULE, times), x)[0]
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(expected, prior.mean, atol=0.1)


def test_a_linear_cost_in_metres_moves_the_mean_as_it_must():
    check_linear_cost_is_exact(composed)
    with pytest.raises(AssertionError):
        # as if a cost were one of normalised places
        check_linear_cost_is_exact(
            lambda priors, energies, strengths: composed(
                {"chain": described(chain(), normalizer=MinMax(-torch.ones(2), torch.ones(2)))}, energies, strengths
            )
        )


def test_ancestral_samples_of_a_linear_tilt():
    """Mean and spread of all nodes within 4.5 standard errors."""
    prior, n, slope = chain(), 1500, torch.full((HORIZON, 2), 0.2, dtype=torch.float64)
    expression = composed({"chain": described(prior)}, [Value(lambda xy: -(slope * xy).sum((-1, -2)))])
    noise, times = Shared(seeded()), grid(40)
    z = noise.normal((n, HORIZON, 2), torch.float64, torch.device("cpu"))
    x = sample.sample(expression, ddpm(SCHEDULE, times, "large"), start(expression, z, float(times[0])), noise=noise)
    std = prior.covariance.diagonal().sqrt()[:, None]
    off = (x.mean(0) - tilted_mean(prior, slope * HALF)) / (std / n**0.5)
    assert off.abs().max() < 4.5
    assert (x.std(0) / std - 1.0).abs().max() < 4.5 / (2 * n) ** 0.5 + 0.03


def test_a_goal_tilts_the_score_as_it_must_without_noise():
    """``score = score of the prior - strength grad cost + O(sigma^2)``: the product itself in the limit t -> 0."""
    prior, strength = chain(), 0.3
    expression = composed({"chain": described(prior)}, [Goal(GOAL, step=2)], [strength])
    x0 = prior.sample(50, seeded())
    cost = InMetres(Goal(GOAL, step=2), NORMALIZER)
    leaf = x0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(leaf).sum(), leaf)
    precision = torch.linalg.inv(prior.covariance)
    expected = -precision @ (x0 - prior.mean) - strength * gradient
    errors = []
    for variance in (4e-6, 1e-6):
        ratio = torch.tensor([(1.0 - variance) / variance], dtype=torch.float64)
        t = SCHEDULE.t_of_log_snr(ratio.log())
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        x = alpha * x0
        score = (alpha * expression.bind(t)(x, 0) - x) / sigma**2
        errors.append(float((score - expected).abs().max() / expected.abs().max()))
    assert errors[1] < 2e-3 and errors[0] / errors[1] == pytest.approx(4.0, rel=0.2)


def test_weighted_samples_of_a_goal_have_the_posteriors_mean():
    """Within 4.5 standard errors over groups; with the small variance, 40 steps are off by 10 % of the pull."""
    prior, groups, k, strength = chain(), 16, 150, 0.1
    expression = composed({"chain": described(prior)}, [Goal(GOAL, step=4)], [strength])
    noise, times = Shared(seeded(3)), grid(80)[:-1]
    z = noise.normal((groups * k, HORIZON, 2), torch.float64, torch.device("cpu"))
    particles = sample_particles(expression, times, start(expression, z, float(times[0])), noise, groups=groups)
    means = particles.mean(particles.x / float(SCHEDULE.alpha(times[-1])))
    goal = NORMALIZER.normalize(torch.tensor(GOAL, dtype=torch.float64))
    expected, std = goal_posterior(prior, goal, 4, strength)
    error = means.std(0) / groups**0.5
    assert ((means.mean(0) - expected).abs() < 4.5 * error).all()
    assert (error < 0.03 * std).all() and ((prior.mean - expected).abs()[4] > 12.0 * error[4]).all()


@pytest.mark.parametrize(("space", "through"), [("x_t", "denoiser"), ("x0_hat", "estimate"), ("x0_hat", "denoiser")])
def test_where_the_cost_is_taken_and_how_its_gradient_goes_back(space, through):
    prior, t = chain(), torch.tensor([0.4], dtype=torch.float64)
    expression = composed({"chain": described(prior)}, [Length()], [0.6], space=space, through=through)
    x = prior.sample(5, seeded())
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    evaluate = prior.bind(t)
    leaf = x.clone().requires_grad_()
    place = leaf if space == "x_t" else evaluate(leaf, 0)
    by = leaf if through == "denoiser" else place
    (gradient,) = torch.autograd.grad(Length()(NORMALIZER.unnormalize(place)).sum(), by)
    factor = sigma**2 / alpha if through == "denoiser" else sigma**2 / (alpha**2 + sigma**2)
    expected = evaluate(x, 0) - factor * 0.6 * gradient
    assert torch.allclose(expression.bind(t)(x, 0), expected, rtol=1e-10)


def test_priors_are_multiplied_with_their_weights():
    a, b = chain(), chain(0.5, 0.2)
    priors = {"a": described(a), "b": described(b)}
    t, x = torch.tensor([0.3], dtype=torch.float64), a.sample(5, seeded())
    found = composed(priors, weights={"b": 0.5}).bind(t)(x, 0)
    assert torch.allclose(found, (a * b**0.5).bind(t)(x, 0), rtol=1e-12)
    later = composed(priors, [Length()], [lambda t: torch.where(t < 0.2, 1.0, 0.0)], weights={"a": 0.0})
    assert torch.allclose(later.bind(t)(x, 0), b.bind(t)(x, 0), rtol=1e-12)


def test_known_places_are_exact_in_every_sample():
    mask = torch.zeros(HORIZON, 2, dtype=torch.bool)
    mask[0] = mask[-1] = True
    values = torch.tensor([0.3, 1.7], dtype=torch.float64).repeat(HORIZON, 1)
    maze = Maze(MAPS["medium"])
    for mode in ("clean", "renoised"):
        expression = composed({"chain": described(chain())}, [Walls(maze, 0.2)], [0.05], (mask, values), mode=mode)
        noise, times = Shared(seeded()), grid(10)
        x = start(expression, noise.normal((20, HORIZON, 2), torch.float64, torch.device("cpu")), float(times[0]))
        cost = checked(Walls(maze, 0.2))
        cost(NORMALIZER.unnormalize(x))
        x = sample.sample(expression, ddpm(SCHEDULE, times), x, noise=noise)
        known = NORMALIZER.normalize(values).expand_as(x)
        assert torch.equal(x[:, mask], known[:, mask])
        assert not torch.isclose(x[:, ~mask], known[:, ~mask]).any()
        assert torch.isfinite(cost(NORMALIZER.unnormalize(x))).all()


def test_a_limit_shortens_the_gradient_of_each_sample_by_itself():
    cost, x = Value(lambda xy: (xy**3).sum((-1, -2))), chain().sample(30, seeded()).requires_grad_()

    def gradient(limit: float | None, factor: float = 1.0) -> Tensor:
        value = InMetres(cost, NORMALIZER, limit)(x)
        assert torch.equal(value, InMetres(cost, NORMALIZER)(x))
        return torch.autograd.grad(factor * value.sum(), x)[0]

    free = gradient(None)
    norms = free.flatten(1).norm(dim=1)
    limit = float(norms.median())
    found = gradient(limit)
    assert torch.allclose(found.flatten(1).norm(dim=1), norms.clamp(max=limit), rtol=1e-12)
    assert torch.allclose(found, free * (norms.clamp(max=limit) / norms)[:, None, None], rtol=1e-12)
    # a strength scales what is left, and is not limited itself
    assert torch.allclose(gradient(limit, 5.0), 5.0 * found, rtol=1e-12)
    assert torch.equal(gradient(1e9), free)
    # nothing is nothing, and no nan
    still = InMetres(0.0 * Length(), NORMALIZER, 1.0)
    assert torch.autograd.grad(still(x).sum(), x)[0].abs().max() == 0.0


def test_the_limit_reaches_through_the_denoiser():
    prior, t = chain(), torch.tensor([0.3], dtype=torch.float64)
    x = prior.sample(5, seeded())
    cost = Value(lambda xy: 100.0 * xy.sum((-1, -2)))
    pulled = composed({"chain": described(prior)}, [cost], [2.0], through="estimate", limit=0.5).bind(t)(x, 0)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    norm = (pulled - prior.bind(t)(x, 0)).flatten(1).norm(dim=1)
    assert torch.allclose(norm, 2.0 * 0.5 * sigma**2 / (alpha**2 + sigma**2), rtol=1e-12)


class Recording(torch.nn.Module):
    """Answers zero, and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.seen.append(cond)
        return torch.zeros_like(x)


def paced(paces=(0.03, 0.12), horizon: int = HORIZON) -> TrajectoryPrior:
    normalizer = MinMax(torch.tensor([-1.0, 0.0]), torch.tensor([5.0, 8.0]))
    return TrajectoryPrior(NetworkDenoiser(Recording(), SCHEDULE, "x0"), normalizer, horizon, paces)


def told(prior: TrajectoryPrior) -> Tensor:
    return prior.denoiser.network.seen[-1]


def test_paced_priors_are_told_the_pace_and_which_ends_are_known():
    a, b = paced(), paced((0.06, 0.24))
    mask = torch.zeros(HORIZON, 2, dtype=torch.bool)
    mask[0] = True
    dt, t = torch.tensor([0.06, 0.12]), torch.tensor([0.5], dtype=torch.float64)
    x = torch.zeros(2, HORIZON, 2)
    expression = composed({"a": a, "b": b}, known=(mask, torch.zeros(HORIZON, 2)), dt=dt, weights={"a": 0.5, "b": 0.5})
    assert expression.bind(t)(x, 0).dtype == torch.float32
    assert torch.allclose(told(a), torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), atol=1e-6)
    assert torch.allclose(told(b), torch.tensor([[-1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), atol=1e-6)
    assert told(a).shape[1] == CONDITIONS
    # what is renoised is not clean
    composed({"a": a}, known=(mask, torch.zeros(HORIZON, 2)), dt=dt, mode="renoised").bind(t)(x, 0)
    assert told(a)[:, 1:].abs().max() == 0.0
    half = mask.clone()
    half[-1, 0] = True
    with pytest.raises(WorkbenchError, match="last node known in part"):
        composed({"a": a}, known=(half, torch.zeros(HORIZON, 2)), dt=dt)
    with pytest.raises(WorkbenchError, match="duration"):
        composed({"a": a}, dt=dt * 4.0)


def test_robots_are_independent_but_for_what_ties_them():
    prior = chain()
    t, x = torch.tensor([0.3], dtype=torch.float64), prior.sample(12, seeded()).unflatten(0, (4, 3))
    free = composed({"chain": described(prior)}, robots=True).bind(t)(x, 0)
    assert torch.allclose(free, prior.bind(t)(x.flatten(0, 1), 0).unflatten(0, (4, 3)), rtol=1e-12)
    assert torch.equal(free, Robots(prior).bind(t)(x, 0))
    tied = composed({"chain": described(prior)}, [Separation(1.0, ((0, 1),))], [0.05], robots=True).bind(t)(x, 0)
    assert torch.equal(tied[:, 2], free[:, 2])

    def apart(x: Tensor) -> Tensor:
        return Separation(1.0, ((0, 1),))(NORMALIZER.unnormalize(x)).sum()

    assert apart(tied) < apart(free)


def test_stitched_priors_are_a_prior_themselves():
    whole = walk(SCHEDULE, 11)
    ends, middle = described(whole.part(0, 6)), described(whole.part(5, 6), horizon=1)
    windows = ((0, 6), (5, 11))
    long = stitched({"part": ends, "node": middle}, windows, ["part", "part"], "bethe", ["node"])
    assert (long.horizon, long.dt, long.normalizer) == (11, 0.12, NORMALIZER)
    expression = composed({"long": long}, [Length()], [0.1])
    t, x = torch.tensor([0.3], dtype=torch.float64), whole.sample(3, seeded())
    assert expression.bind(t)(x, 0).shape == x.shape
    with pytest.raises(WorkbenchError, match="prior 'node' of 1 nodes for 6"):
        stitched({"part": ends, "node": middle}, windows, ["part", "node"])
    with pytest.raises(WorkbenchError, match="got the priors other"):
        stitched({"part": ends}, windows, ["part", "other"])
    with pytest.raises(WorkbenchError, match="priors 'long' and 'part': got the horizon 11 and 6"):
        composed({"long": long, "part": ends})


def test_only_the_outer_segments_are_told_of_clean_ends():
    prior = paced()
    windows = ((0, 6), (5, 11), (10, 16))
    dt = torch.tensor([0.12, 0.12])
    long = stitched({"part": prior}, windows, ["part"] * 3, dt=dt, ends=(True, True))
    long.denoiser.bind(torch.tensor([0.5], dtype=torch.float64))(torch.zeros(2, 16, 2), 0)
    assert len(prior.denoiser.network.seen) == 1
    assert told(prior)[::2, 1:].tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": 0.24}, r"priors 'a' and 'b': got the dt \(s\) 0.12 and 0.24"),
        ({"horizon": 7}, "priors 'a' and 'b': got the horizon 6 and 7"),
        (
            {"normalizer": MinMax(torch.tensor([-1.0, 0.0]), torch.tensor([5.0, 9.0]))},
            r"'a' and 'b': got the normalizer \(low, high, m\) .*\[5.0, 8.0\]\) and .*\[5.0, 9.0\]",
        ),
        (
            {"denoiser": Chain(Linear(), chain().mean, chain().covariance)},
            "'a' and 'b': got the schedule Cosine.*Linear",
        ),
    ],
)
def test_priors_that_mean_something_else_by_a_number_are_refused(change, message):
    with pytest.raises(WorkbenchError, match=message):
        composed({"a": described(chain()), "b": described(chain(), **change)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: composed({}), "got none"),
        (lambda: composed({"a": described(chain())}, [Length()], [1.0, 2.0]), "2 strengths for 1"),
        (lambda: composed({"a": described(chain())}, weights={"c": 1.0}), "weights of c"),
        (lambda: composed({"a": described(chain())}, dt=torch.tensor([0.24])), "prior 'a': got the dt"),
        (lambda: composed({"a": described(chain())}, [Length()], limit=0.0), "limit of the gradient of length"),
    ],
)
def test_mistakes_are_refused(make, message):
    with pytest.raises(WorkbenchError, match=message):
        make()


def test_a_composition_is_an_expression_of_the_core():
    expression = composed({"a": described(chain()), "b": described(chain())}, [Length()], [0.5])
    assert isinstance(expression, Product) and expression.exponent(0.5) == 2.0
    assert len(expression.energies) == 1 and not expression.known
