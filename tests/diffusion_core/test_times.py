"""Laws of training times against their distributions, slices, and what makes importance sampling unbiased."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Cosine, Laplace, Linear, RectifiedFlow, VarianceExploding
from diffusion_core.times import (
    Importance,
    levels,
    log_normal_times,
    logit_normal_times,
    times_as_under,
    uniform_times,
)
from tests.diffusion_core.worlds import vector


def draws(seed: int = 0, rank: int = 0, world: int = 1) -> Draws:
    return Draws(torch.Generator().manual_seed(seed), rank, world)


def distance(level: Tensor) -> float:
    """Kolmogorov's distance of ``level`` (n,) from the uniform distribution."""
    n, level = len(level), level.sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((steps[1:] - level).abs(), (level - steps[:-1]).abs()).max())


def test_continuous_times_are_uniform():
    n = 50_000
    t = uniform_times(draws(), n, 0.2, 0.7).sort().values
    assert float(t[0]) >= 0.2 and float(t[-1]) <= 0.7
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    level = (t - 0.2) / 0.5
    distance = float(torch.maximum((steps[1:] - level).abs(), (level - steps[:-1]).abs()).max())
    assert distance < 1.95 / math.sqrt(n)


def test_discrete_times_are_the_points_of_the_training_grid_and_equally_frequent():
    n, n_train = 50_000, 10
    times, counts = uniform_times(draws(), n, n_train=n_train).unique(return_counts=True)
    assert torch.equal(times, grids.trailing(n_train, n_train).flip(0)[1:])
    assert bool(((counts - n / n_train).abs() < 4.5 * math.sqrt(n * 0.1 * 0.9)).all())


N = 20_000
EXPLODING = VarianceExploding(80.0)
# each law, and the distribution function of what it draws
LAWS = {
    "logit-normal": (
        partial(logit_normal_times, mean=0.3, std=0.8),
        lambda t: torch.special.ndtr((torch.logit(t) - 0.3) / 0.8),
    ),
    "log-normal": (
        partial(log_normal_times, schedule=EXPLODING),
        lambda t: torch.special.ndtr((EXPLODING.sigma(t).log() + 1.2) / 1.2),
    ),
    "log-normal, cosine": (
        partial(log_normal_times, schedule=Cosine(), mean=0.4),
        lambda t: torch.special.ndtr((-0.5 * Cosine().log_snr(t) - 0.4) / 1.2),
    ),
    "laplace": (
        partial(times_as_under, schedule=RectifiedFlow(), law=Laplace(0.5, 1.0)),
        lambda t: 1.0 - torch.distributions.Laplace(vector(0.5), vector(1.0)).cdf(RectifiedFlow().log_snr(t)),
    ),
    "cosine under a flow": (
        partial(times_as_under, schedule=RectifiedFlow(), law=Cosine()),
        lambda t: Cosine().t_of_log_snr(RectifiedFlow().log_snr(t)),
    ),
}


def check_law(times, cdf) -> None:
    """Kolmogorov-Smirnov at one in a thousand; stratified, every slice has one: the distance is at most 1 / n."""
    assert distance(cdf(times(draws(), N))) < 1.95 / math.sqrt(N)
    assert distance(cdf(times(draws(), N, stratified=True))) < 1.0001 / N


@pytest.mark.parametrize("name", LAWS)
def test_a_law_has_its_distribution(name):
    check_law(*LAWS[name])


def check_strata(stratified) -> None:
    """Together the processes have one number in each of as many slices as samples."""
    for world in (1, 2, 3):
        parts = [stratified(draws(3, rank, world), 12 // world) for rank in range(world)]
        whole = torch.stack(parts, 1).flatten()
        assert (whole * 12).floor().tolist() == list(range(12))
        # and each is free in its slice
        assert len(((whole * 12) % 1.0).unique()) == 12


def test_strata_are_shared_by_all_processes():
    check_strata(partial(levels, stratified=True))


def test_stratified_steps_of_a_discrete_model_are_equally_many():
    assert torch.equal(uniform_times(draws(), 30, n_train=10, stratified=True).unique(return_counts=True)[1],
        torch.full((10,), 3))  # fmt: skip


def test_times_stay_inside_the_schedule():
    for schedule in (VarianceExploding(0.5), Linear(), RectifiedFlow()):
        t = log_normal_times(draws(), 2000, schedule, mean=0.0, std=30.0)
        assert float(t.min()) >= 0.0 and float(t.max()) <= 1.0
    assert float(t.max()) > 0.999


# --- importance --------------------------------------------------------------------------------------------


def warm(bins: int = 5, **options) -> Importance:
    """Told losses that grow with time."""
    importance = Importance(bins, **options)
    t = (torch.arange(40 * bins, dtype=torch.float64) + 0.5) / (40 * bins)
    importance.record(t, 0.1 + t**2)
    return importance


class Ramp(Draws):
    """Not random: the middles of equal slices, so that a mean over them is an integral."""

    def uniform(self, shape, dtype=torch.float64) -> Tensor:
        return (torch.arange(shape[0], dtype=dtype) + 0.5) / shape[0]


def check_unbiased(importance) -> None:
    """``E[weight f(t)]`` is the mean of f over uniform times."""
    t, weight = importance(Ramp(torch.Generator()), 200_000)
    assert float(weight.max() / weight.min()) > 2.0
    for f in (torch.ones_like, torch.sin, lambda t: (5.0 * t).exp()):
        u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        assert float((weight * f(t)).mean()) == pytest.approx(float(f(u).mean()), rel=1e-4)


def test_importance_sampling_is_unbiased():
    check_unbiased(warm())


def check_probabilities(importance) -> None:
    """``p ~ sqrt(mean of the last ten squared losses)`` in each bin, but for the floor."""
    t = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    root = (0.1 + t.reshape(5, 40)[:, -10:] ** 2).square().mean(1).sqrt()
    expected = 0.999 * root / root.sum() + 0.001 / 5
    torch.testing.assert_close(importance.probabilities(), expected, rtol=1e-12, atol=0)


def test_probabilities_are_those_of_nichol_and_dhariwal():
    check_probabilities(warm())


def test_times_are_uniform_until_every_bin_is_known():
    importance = Importance(4)
    importance.record(vector(*[0.1] * 50, *[0.4] * 50, *[0.6] * 50, *[0.9] * 9), torch.rand(159).double())
    t, weight = importance(draws(), 100)
    assert torch.equal(weight, torch.ones(100, dtype=torch.float64)) and torch.equal(t, uniform_times(draws(), 100))
    importance.record(vector(0.9), vector(2.0))
    assert float(importance.probabilities().max()) > 0.26


@pytest.mark.parametrize("sizes", [(200,), (1,) * 200, (7, 93, 100)], ids=str)
def test_the_history_does_not_depend_on_how_losses_arrive(sizes):
    generator = torch.Generator().manual_seed(0)
    t, loss = torch.rand(2, 200, generator=generator, dtype=torch.float64)
    importance, last = Importance(6, history=4), {k: [] for k in range(6)}
    for part_t, part_loss in zip(t.split(list(sizes)), loss.split(list(sizes)), strict=True):
        importance.record(part_t, part_loss)
    for time, value in zip(t.tolist(), loss.tolist(), strict=True):
        last[int(time * 6)].append(value)
    for k in range(6):
        assert sorted(importance.losses[k].tolist()) == sorted(last[k][-4:])
        assert int(importance.seen[k]) == len(last[k])


def test_the_steps_of_a_discrete_model_are_the_bins():
    importance = Importance(n_train=7)
    steps = grids.trailing(7, 7)[:-1]
    for step in steps:
        importance.record(step.expand(10), 1.0 + step.expand(10))
    assert importance.losses[:, 0].tolist() == pytest.approx((1.0 + steps.flip(0)).tolist())
    t, _ = importance(draws(), 500)
    assert torch.equal(t.unique(), steps.flip(0))


def test_the_history_is_in_the_checkpoint():
    one, other = warm(), Importance(5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.probabilities(), other.probabilities())


@pytest.mark.parametrize("options", [{"bins": 0}, {"history": 0}, {"floor": 0.0}])
def test_impossible_importance_is_refused(options):
    with pytest.raises(WorkbenchError, match=r"got .*expected"):
        Importance(**options)
