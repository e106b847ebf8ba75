"""Defects of the adaptive integrator, of the bound and of the density along the flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_core import ode
from diffusion_core.likelihood import (
    Likelihood,
    Steps,
    bound,
    continuous_bound,
    density,
    discretised,
    exact_divergence,
    hutchinson,
    hybrid_loss,
    interpolated_log_variance,
    log_likelihood,
    normal_kl,
    prior_kl,
    probes,
    variational_bound,
    vlb_loss,
)
from diffusion_core.ode import DORMAND_PRINCE, RK4, Tableau, evenly, integrate, sample_adaptive
from diffusion_core.schedule import Linear, Schedule, VarianceExploding, linear_betas
from tests.diffusion_core.test_likelihood import (
    check_continuous,
    check_decoder,
    check_density,
    check_divergence,
    check_exact_chain,
    check_hutchinson,
    check_hybrid,
    check_interpolation,
    check_kl,
    check_prior,
    check_prior_kl,
    check_probes,
    check_terms,
    check_vlb_loss,
    mostly_early,
)
from tests.diffusion_core.test_ode import check_flow, check_tableau, check_worst_sample_counts

Patch = pytest.MonkeyPatch
quick = partial(log_likelihood, solve=evenly(40, RK4))


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


# --- ode


def tableau_with(row: int, column: int, value: float) -> Tableau:
    rows = [list(stage) for stage in DORMAND_PRINCE.stages]
    rows[row][column] = value
    return replace(DORMAND_PRINCE, stages=tuple(tuple(stage) for stage in rows))


def use_tableau(tableau: Tableau) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(ode, "DORMAND_PRINCE", tableau)


def common_mean(patch: Patch) -> None:
    def wrong(values: list[Tensor], x: list[Tensor], y: list[Tensor], rtol: float, atol: float) -> float:
        scaled = [v / (atol + rtol * torch.maximum(a.abs(), b.abs())) for v, a, b in zip(values, x, y, strict=True)]
        return float(torch.cat([s.flatten() for s in scaled]).square().mean().sqrt())

    patch.setattr(ode, "_size", wrong)


def every_step_accepted(patch: Patch) -> None:
    right = ode._size

    def wrong(values: list[Tensor], x: list[Tensor], y: list[Tensor], rtol: float, atol: float) -> float:
        return min(1.0, right(values, x, y, rtol, atol))

    patch.setattr(ode, "_size", wrong)


def in_time_and_not_in_the_angle(patch: Patch) -> None:
    patch.setattr(ode, "in_angle", lambda solve, schedule: solve)


def velocity_with_plus(patch: Patch) -> None:
    def wrong(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        p = schedule.d_sigma(t) / schedule.sigma(t)
        return p, schedule.d_alpha(t) + schedule.alpha(t) * p

    patch.setattr(ode, "flow_coefficients", wrong)


# --- the density


def minus_the_divergence(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    value, divergence = exact_divergence(f, x)
    return value, -divergence


def summed_over_the_batch(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    value, divergence = exact_divergence(f, x)
    return value, divergence.sum().expand_as(divergence)


def without_prior(*args: object, **keywords: object) -> Likelihood:
    keywords["prior"] = lambda x: torch.zeros(len(x), dtype=x.dtype)
    return quick(*args, **keywords)


def prior_of_unit_width(patch: Patch) -> None:
    right = density.normal
    patch.setattr(density, "normal", lambda x, mean, log_variance: right(x, mean, torch.zeros_like(log_variance)))


def prior_of_the_root(patch: Patch) -> None:
    right = density.normal
    patch.setattr(density, "normal", lambda x, mean, log_variance: right(x, mean, 0.5 * log_variance))


def uniform_probes(x: Tensor, generator: torch.Generator, n: int = 1, kind: str = "rademacher") -> Tensor:
    return torch.rand(n, *x.shape, generator=generator, dtype=x.dtype) * 2.0 - 1.0


def one_sign_for_all_elements(x: Tensor, generator: torch.Generator, n: int = 1, kind: str = "rademacher") -> Tensor:
    return probes(x, generator, n, kind)[..., :1].expand(n, *x.shape).contiguous()


def norm_of_the_product(directions: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """``e . f`` for ``e . (df/dx) e``."""

    def wrong(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        value, _ = exact_divergence(f, x)
        return value, (directions * value).flatten(2).sum(2).mean(0)

    return wrong


# --- the bound


def kl_reversed(mean: Tensor, log_variance: Tensor, other: Tensor, other_log_variance: Tensor) -> Tensor:
    return normal_kl(other, other_log_variance, mean, log_variance)


def kl_without_half(*args: Tensor) -> Tensor:
    return 2.0 * normal_kl(*args)


def kl_of_standard_deviations(mean: Tensor, log_variance: Tensor, other: Tensor, other_log_variance: Tensor) -> Tensor:
    return normal_kl(mean, 0.5 * log_variance, other, 0.5 * other_log_variance)


def use_kl(kl: Callable[..., Tensor]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(bound, "normal_kl", kl)


def use_interpolation(interpolated: Callable[..., Tensor]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(bound, "interpolated_log_variance", interpolated)


def clamped(fraction: Tensor, small: Tensor, large: Tensor) -> Tensor:
    return interpolated_log_variance(fraction.clamp(0.0, 1.0), small, large)


def inverted(fraction: Tensor, small: Tensor, large: Tensor) -> Tensor:
    return interpolated_log_variance(fraction, large, small)


def of_variances(fraction: Tensor, small: Tensor, large: Tensor) -> Tensor:
    return (fraction * large.exp() + (1.0 - fraction) * small.exp()).clamp(min=1e-30).log()


def no_prior_term(patch: Patch) -> None:
    patch.setattr(bound, "prior_kl", lambda schedule, x0, t=1.0: torch.zeros(len(x0), dtype=x0.dtype))


def last_row_is_a_divergence(steps: Steps, rows: Tensor, x0: Tensor, x0_hat: Tensor, fraction: Tensor | None) -> Tensor:
    """The decoder's term left out."""
    return torch.where(rows == len(steps) - 1, 0.0, Steps.term(steps, rows, x0, x0_hat, fraction))


def one_estimate_for_two(*args: object, **keywords: object) -> Tensor:
    """The probability of the row forgotten: always 1/n."""
    draw = keywords.pop("rows")

    def forgotten(draws: object, batch: int, n: int) -> tuple[Tensor, Tensor]:
        rows, probability = draw(draws, batch, n)
        return rows, torch.full_like(probability, 1.0 / n)

    return vlb_loss(*args, rows=forgotten, **keywords)


def mean_learns_from_the_bound(*args: object) -> Tensor:
    simple, vlb = bound._losses(*args, rows=bound.uniform_rows, stop_mean=False)
    return simple + 0.001 * vlb


def half_the_rate(patch: Patch) -> None:
    right = bound.continuous_term
    patch.setattr(bound, "continuous_term", lambda *args: 2.0 * right(*args))


def bins_of_whole_width(x0: Tensor, mean: Tensor, log_variance: Tensor, levels: int = 256) -> Tensor:
    return discretised(x0, mean, log_variance, levels // 2 + 1)


def standard_deviation_for_variance(x0: Tensor, mean: Tensor, log_variance: Tensor, levels: int = 256) -> Tensor:
    return discretised(x0, mean, 0.5 * log_variance, levels)


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "RK: a stage's coefficient": (none, lambda: check_tableau(tableau_with(4, 1, -25360 / 2178), 5, 4)),
    "RK: a stage's sign": (none, lambda: check_tableau(tableau_with(3, 1, 56 / 15), 5, 4)),
    "RK: a weight": (
        none,
        lambda: check_tableau(
            replace(DORMAND_PRINCE, weights=(*DORMAND_PRINCE.weights[:3], 125 / 129, *DORMAND_PRINCE.weights[4:])), 5, 4
        ),
    ),
    "RK: error weights are the weights": (
        none,
        lambda: check_tableau(replace(DORMAND_PRINCE, error=DORMAND_PRINCE.weights), 5, 4),
    ),
    "RK: a stage's coefficient, flow": (
        use_tableau(tableau_with(4, 1, -25360 / 2178)),
        lambda: check_flow(sample_adaptive, Linear()),
    ),
    "ODE: one mean for all samples and fields": (common_mean, lambda: check_worst_sample_counts(integrate)),
    "ODE: no step rejected": (every_step_accepted, lambda: check_flow(sample_adaptive, VarianceExploding(20.0))),
    "ODE: in t, across a table of betas": (
        in_time_and_not_in_the_angle,
        lambda: check_flow(sample_adaptive, linear_betas()),
    ),
    "flow: sign in the velocity": (velocity_with_plus, lambda: check_flow(sample_adaptive, Linear())),
    "density: sign of the divergence": (
        none,
        lambda: check_density(partial(quick, divergence=minus_the_divergence), Linear()),
    ),
    "density: divergence of the whole batch": (none, lambda: check_divergence(summed_over_the_batch)),
    "density: no prior": (none, lambda: check_density(without_prior, Linear())),
    "density: prior of width 1": (prior_of_unit_width, lambda: check_prior(log_likelihood, VarianceExploding(20.0))),
    "density: prior's std for its variance": (
        prior_of_the_root,
        lambda: check_prior(log_likelihood, VarianceExploding(20.0)),
    ),
    "Hutchinson: probes of variance 1/3": (none, lambda: check_probes(uniform_probes)),
    "Hutchinson: probes of variance 1/3, density": (none, lambda: check_hutchinson(uniform_probes, "rademacher")),
    "Hutchinson: one sign for all elements": (none, lambda: check_probes(one_sign_for_all_elements)),
    "Hutchinson: no Jacobian": (
        none,
        lambda: check_divergence(norm_of_the_product(torch.ones(1, 4, 2, 3, dtype=torch.float64))),
    ),
    "Hutchinson: one probe for six elements is not exact": (
        none,
        lambda: check_divergence(hutchinson(torch.ones(1, 4, 2, 3, dtype=torch.float64))),
    ),
    "KL: reversed": (none, lambda: check_kl(kl_reversed)),
    "KL: factor 2": (none, lambda: check_kl(kl_without_half)),
    "KL: standard deviation for variance": (none, lambda: check_kl(kl_of_standard_deviations)),
    "bound: KL reversed": (use_kl(kl_reversed), lambda: check_terms(Steps.term, Linear())),
    "bound: KL factor 2": (use_kl(kl_without_half), lambda: check_terms(Steps.term, Linear())),
    "bound: KL factor 2, likelihood": (
        use_kl(kl_without_half),
        lambda: check_exact_chain(variational_bound, Linear()),
    ),
    "bound: standard deviation for variance": (
        use_kl(kl_of_standard_deviations),
        lambda: check_terms(Steps.term, Linear()),
    ),
    "bound: no decoder": (none, lambda: check_terms(last_row_is_a_divergence, Linear())),
    "bound: no prior term": (no_prior_term, lambda: check_exact_chain(variational_bound, VarianceExploding(2.0))),
    "bound: prior term doubled": (
        none,
        lambda: check_prior_kl(lambda schedule, x0, t: 2.0 * prior_kl(schedule, x0, t), Linear()),
    ),
    "bound: continuous rate doubled": (half_the_rate, lambda: check_continuous(continuous_bound, Linear())),
    "bound: no prior term, continuous": (
        no_prior_term,
        lambda: check_continuous(continuous_bound, VarianceExploding(20.0)),
    ),
    "learned variance: clamped": (none, lambda: check_interpolation(clamped)),
    "learned variance: inverted": (none, lambda: check_interpolation(inverted)),
    "learned variance: of variances": (none, lambda: check_interpolation(of_variances)),
    "learned variance: clamped, bound": (use_interpolation(clamped), lambda: check_terms(Steps.term, Linear())),
    "learned variance: inverted, likelihood": (
        use_interpolation(inverted),
        lambda: check_exact_chain(variational_bound, Linear()),
    ),
    "decoder: bins twice as wide": (none, lambda: check_decoder(bins_of_whole_width)),
    "decoder: standard deviation for variance": (none, lambda: check_decoder(standard_deviation_for_variance)),
    "VLB loss: importance forgotten": (none, lambda: check_vlb_loss(one_estimate_for_two, mostly_early)),
    "hybrid: the mean learns from the bound": (none, lambda: check_hybrid(mean_learns_from_the_bound)),
    "hybrid: weight 1": (none, lambda: check_hybrid(partial(hybrid_loss, vlb_weight=1.0))),
}
