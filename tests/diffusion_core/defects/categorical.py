"""Defects of the categorical process: each put back, and the check that must see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_core.process.categorical import Absorbing, Categorical, Rates, Reverse, process, redraw, reverse, uniform
from diffusion_core.process.categorical.elbo import masked_weight
from diffusion_core.process.categorical.kernel import Kernel, Matrix, Redraw, trailing
from diffusion_core.schedule import Schedule
from diffusion_core.solvers.categorical import ancestral
from tests.diffusion_core import test_categorical as checks

Patch = pytest.MonkeyPatch
FLOW, K = checks.FLOW, checks.K


def transposed_column(patch: Patch) -> None:
    """The likelihood read along a row of the matrix for a column."""
    patch.setattr(Matrix, "column", lambda self, x_t: self._rows(self.matrix, x_t))


def transposed_push(patch: Patch) -> None:
    patch.setattr(Matrix, "push", lambda self, w: (self._flat(w, 1) @ self.matrix.mT).reshape(w.shape))


def survival_inverted(patch: Patch) -> None:
    """``alpha_s / alpha_t`` for ``alpha_t / alpha_s``, clamped as a probability must be."""

    def wrong(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        return (schedule.alpha(s) / schedule.alpha(t)).clamp(max=1.0)

    patch.setattr(redraw, "survival", wrong)


def survival_squared(patch: Patch) -> None:
    """The Gaussian's alpha^2."""
    right = redraw.survival
    patch.setattr(redraw, "survival", lambda schedule, t, s: right(schedule, t, s) ** 2)


def posterior_of_the_paper(patch: Patch) -> None:
    """The sum over x0 without the division by ``q(x_t | x0)``, normalised."""

    def wrong(self: Reverse, logits: Tensor, x_t: Tensor) -> Tensor:
        column = self.s_to_t.column(x_t)
        p_x0 = reverse.log_x0(self.data_to_t.column(x_t), logits).exp()
        joint = column * self.data_to_s.push(torch.nn.functional.pad(p_x0, (0, column.shape[-1] - p_x0.shape[-1])))
        return joint / joint.sum(-1, keepdim=True)

    patch.setattr(Reverse, "probabilities", wrong)


def wrong_kernel_in_the_posterior(patch: Patch) -> None:
    """``q(x_s | x0)`` at t for s."""
    right = Categorical.reverse

    def wrong(self: Categorical, t: Tensor, s: Tensor) -> Reverse:
        exact = right(self, t, s)
        return replace(exact, data_to_s=exact.data_to_t)

    patch.setattr(Categorical, "reverse", wrong)


def likelihood_counted_twice(patch: Patch) -> None:
    """A product that adds logits and forgets that every expert has already seen ``x_t``."""
    right = process.Categorical.combine

    def wrong(self: Categorical, weights: Tensor, times: Tensor) -> Callable[..., Tensor]:
        rest = (1.0 - weights.sum(1, keepdim=True)).abs() < 1e-12
        if bool(rest.all()):
            return right(self, weights, times)
        return lambda x, estimates, i: sum(w * e for w, e in zip(weights[i].tolist(), estimates, strict=True))

    patch.setattr(process.Categorical, "combine", wrong)


def redraw_always_changes(patch: Patch) -> None:
    """Uniform noise that never draws the class that was there: a different chain from the one of the posterior."""

    def wrong(self: Redraw, x_s: Tensor, noise: Tensor) -> Tensor:
        a = trailing(self.survival, x_s.ndim)
        k = len(self.stationary)
        other = (x_s + 1 + (noise / (1.0 - a) * (k - 1)).long().clamp(max=k - 2)) % k
        return torch.where(1.0 - noise <= a, x_s, other)

    patch.setattr(Redraw, "draw", wrong)


def single_precision(probabilities: Tensor, noise: Tensor) -> Tensor:
    cumulative = probabilities.float().cumsum(-1)
    return (cumulative >= (1.0 - noise.float())[..., None]).to(torch.uint8).argmax(-1)


def single_precision_gumbel(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Gumbel noise in float32: its largest value is 16.6, so nothing rarer than 6e-8 of the likeliest is drawn."""
    seed = torch.Generator().manual_seed(0)
    u = torch.rand(*noise.shape, probabilities.shape[-1], generator=seed, dtype=torch.float32)
    return (probabilities.float().log() - (-u.log()).log()).argmax(-1)


def textbook_inverse_cdf(probabilities: Tensor, noise: Tensor) -> Tensor:
    """``cumulative <= noise``, counted, of probabilities that sum to 1 but for rounding."""
    cumulative = (probabilities / probabilities.sum(-1, keepdim=True)).cumsum(-1)
    return (cumulative <= noise[..., None]).sum(-1).clamp(max=probabilities.shape[-1] - 1)


def mask_left(patch: Patch) -> None:
    """The last step ends a little above t = 0, as a grid with a floor would: MASK has probability there."""

    def wrong(self: Absorbing, t: Tensor, s: Tensor) -> Kernel:
        return Redraw(redraw.survival(self.schedule, t.clamp(min=1e-3), s), self._stationary)

    patch.setattr(Absorbing, "kernel", wrong)


def even_rates() -> Tensor:
    return torch.full((K, K), 1.0 / K, dtype=torch.float64) - torch.eye(K, dtype=torch.float64)


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "posterior: column transposed": (transposed_column, lambda: checks.check_posterior(checks.PROCESSES["rates"])),
    "posterior: column transposed, D3PM": (
        transposed_column,
        lambda: checks.check_posterior(checks.PROCESSES["steps"]),
    ),
    "posterior: push transposed": (
        transposed_push,
        lambda: checks.check_closed_form(Absorbing(FLOW, K), Rates(FLOW, checks.absorbing_rates(K), K)),
    ),
    "posterior: not divided by q(x_t | x0)": (
        posterior_of_the_paper,
        lambda: checks.check_posterior(uniform(FLOW, K)),
    ),
    "posterior: q(x_t | x0) for q(x_s | x0)": (
        wrong_kernel_in_the_posterior,
        lambda: checks.check_posterior(Absorbing(FLOW, K)),
    ),
    "posterior: q(x_t | x0) for q(x_s | x0), bound": (
        wrong_kernel_in_the_posterior,
        lambda: checks.check_bound_is_tight(uniform(FLOW, K)),
    ),
    "survival: inverted": (
        survival_inverted,
        lambda: checks.check_closed_form(uniform(FLOW, K), Rates(FLOW, even_rates(), K)),
    ),
    "survival: squared": (
        survival_squared,
        lambda: checks.check_closed_form(uniform(FLOW, K), Rates(FLOW, even_rates(), K)),
    ),
    "bound: no weight": (none, lambda: checks.check_masked_weight(lambda p, t: torch.ones_like(t))),
    "bound: weight of alpha for 1 - alpha": (
        none,
        lambda: checks.check_masked_weight(lambda p, t: -p.schedule.d_alpha(t) / p.schedule.alpha(t)),
    ),
    "any order: no weight": (none, lambda: checks.check_any_order(lambda p, t: torch.ones_like(t))),
    "any order: weight halved": (none, lambda: checks.check_any_order(lambda p, t: 0.5 * masked_weight(p, t))),
    "losses: weight of the squared survival": (
        none,
        lambda: checks.check_losses(lambda *a: 2.0 * checks.continuous_loss(*a)),
    ),
    "product: likelihood counted twice": (likelihood_counted_twice, lambda: checks.check_product(uniform(FLOW, K))),
    "corruption: always another class": (
        redraw_always_changes,
        lambda: checks.check_corruption(uniform(FLOW, K)),
    ),
    "draw: float32": (none, lambda: checks.check_rare_classes(single_precision)),
    "draw: float32 Gumbel": (none, lambda: checks.check_rare_classes(single_precision_gumbel)),
    "draw: impossible states": (none, lambda: checks.check_impossible(textbook_inverse_cdf)),
    "sampler: MASK left": (mask_left, lambda: checks.check_sampler(Absorbing(FLOW, K), ancestral, 1, 3)),
    "remasking: none": (none, lambda: checks.check_remasking(lambda p, grid, churn: ancestral(p, grid))),
    "remasking: of s for r": (
        none,
        lambda: checks.check_remasking(lambda p, grid, churn: ancestral(p, grid, churn=1.0 - churn)),
    ),
}
