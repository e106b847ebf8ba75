"""Defects of schedules, grids, training times, predictions and weightings."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import grid as grids
from diffusion_core import predict
from diffusion_core.draws import Draws
from diffusion_core.loss import LearnedWeights, edm, min_snr, p2, sigmoid
from diffusion_core.predict import F
from diffusion_core.schedule import (
    Laplace,
    LearnedLogSnr,
    Linear,
    Schedule,
    Shifted,
    SubVariancePreserving,
    ZeroTerminal,
)
from diffusion_core.times import Importance, logit_normal_times
from tests.diffusion_core.test_grid import check_beta, check_shifted
from tests.diffusion_core.test_loss import PUBLISHED, check_learned_weights, check_weighting
from tests.diffusion_core.test_predict import check_f, check_undefined
from tests.diffusion_core.test_schedule import check_inverse, check_shift, check_tiny_noise, check_zero_terminal
from tests.diffusion_core.test_times import LAWS, check_law, check_probabilities, check_strata, check_unbiased, warm

Patch = pytest.MonkeyPatch


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


def inverse_not_shifted(patch: Patch) -> None:
    patch.setattr(Shifted, "t_of_log_snr", lambda self, log_snr: self.schedule.t_of_log_snr(log_snr))


def inverse_shifted_the_other_way(patch: Patch) -> None:
    def wrong(self: Shifted, log_snr: Tensor) -> Tensor:
        return self.schedule.t_of_log_snr(log_snr - 2.0 * math.log(self.factor))

    patch.setattr(Shifted, "t_of_log_snr", wrong)


def amplitudes_not_renormalised(patch: Patch) -> None:
    patch.setattr(Shifted, "_norm", lambda self, t: torch.ones_like(t))


def too_few_bisections(patch: Patch) -> None:
    def wrong(self: LearnedLogSnr, log_snr: Tensor) -> Tensor:
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(12):
            middle = 0.5 * (low + high)
            above = self.log_snr(middle) > log_snr
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return 0.5 * (low + high)

    patch.setattr(LearnedLogSnr, "t_of_log_snr", wrong)


def sub_vp_inverted_in_alpha_alone(patch: Patch) -> None:
    def wrong(self: SubVariancePreserving, log_snr: Tensor) -> Tensor:
        ratio = torch.exp(0.5 * log_snr)
        alpha = 2.0 * ratio / (1.0 + torch.sqrt(1.0 + 4.0 * ratio**2))
        return Linear(self.beta_min, self.beta_max).t_of_integrated_beta(-2.0 * alpha.log())

    patch.setattr(SubVariancePreserving, "t_of_log_snr", wrong)


def laplace_upside_down(patch: Patch) -> None:
    right = Laplace.t_of_log_snr
    patch.setattr(Laplace, "t_of_log_snr", lambda self, log_snr: 1.0 - right(self, log_snr))


class AlphaBarRescaled(ZeroTerminal):
    """alpha^2 shifted and scaled in place of alpha."""

    def alpha(self, t: Tensor) -> Tensor:
        last = self.schedule.alpha(torch.ones(1, dtype=torch.float64)) ** 2
        return ((self.schedule.alpha(t) ** 2 - last) / (1.0 - last)).sqrt()


def beta_in_reading_order(n: int, a: float, b: float) -> Tensor:
    return grids.beta(n, b, a)


def shift_twice(grid: Tensor, factor: float) -> Tensor:
    return grids.shifted(grids.shifted(grid, factor), factor)


def f_with_one_for_sigma_data(kind: F, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    return predict.mixture(F(1.0), schedule, t)


def convert_through_eps(
    prediction: Tensor,
    x_t: Tensor,
    source: predict.Prediction,
    target: predict.Prediction,
    schedule: Schedule,
    t: Tensor,
) -> Tensor:
    """What this project did: 0 / 0 where the target is undefined."""
    c_x, c_p = predict.to_x0(source, schedule, t) if source != "x0" else (torch.zeros_like(t), torch.ones_like(t))
    x0 = c_x[:, None] * x_t + c_p[:, None] * prediction
    eps = (x_t - schedule.alpha(t)[:, None] * x0) / schedule.sigma(t)[:, None]
    k_x0, k_eps = (k[:, None] for k in predict.mixture(target, schedule, t))
    return k_x0 * x0 + k_eps * eps


def undefined_targets_are_nan() -> None:
    # pytest.raises fails with its own exception, which is no AssertionError
    try:
        check_undefined(convert_through_eps)
    except pytest.fail.Exception as error:
        raise AssertionError from error


def not_rewritten(weighting: str) -> Callable[[predict.Prediction, Schedule, Tensor], Tensor]:
    """The weight on one kind's error used for all."""
    right, known, _ = PUBLISHED[weighting]
    return lambda prediction, schedule, t: right(known, schedule, t)


class WithoutItsLogarithm(nn.Module):
    """``loss / exp(u) + exp(u)``: the minimum is at half the logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.right = LearnedWeights(12)
        self.log_loss = self.right.log_loss

    def forward(self, loss: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        u = self.log_loss(schedule, t).to(loss)
        return loss * torch.exp(-u) + torch.exp(u)


def strata_of_one_process(draws: Draws, batch: int) -> Tensor:
    return (torch.arange(batch, dtype=torch.float64) + draws.uniform((batch,))) / batch


def weights_forgotten(patch: Patch) -> None:
    right = Importance.forward

    def wrong(self: Importance, draws: Draws, batch: int, stratified: bool = False) -> tuple[Tensor, Tensor]:
        t, weight = right(self, draws, batch, stratified)
        return t, weight / weight.mean() if bool((weight == 1.0).all()) else weight**0.5

    patch.setattr(Importance, "forward", wrong)


def mean_without_square(patch: Patch) -> None:
    def wrong(self: Importance) -> Tensor:
        mean = self.losses.mean(1)
        return 0.999 * mean / mean.sum() + 0.001 / len(mean)

    patch.setattr(Importance, "probabilities", wrong)


def without_the_slope(prediction: predict.Prediction, schedule: Schedule, t: Tensor) -> Tensor:
    ratio = schedule.log_snr(t).exp()
    return sigmoid(prediction, schedule, t) / (schedule.d_sigma(t) / schedule.sigma(t)) + 0.0 * ratio


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "shift: inverse not shifted": (inverse_not_shifted, lambda: check_inverse(Shifted(Linear(), 2.0))),
    "shift: inverse the other way": (inverse_shifted_the_other_way, lambda: check_inverse(Shifted(Linear(), 2.0))),
    "shift: not renormalised": (amplitudes_not_renormalised, lambda: check_shift(Shifted)),
    "shift: noisier for cleaner": (none, lambda: check_shift(lambda schedule, m: Shifted(schedule, 1.0 / m))),
    "shift: SNR for its root": (none, lambda: check_shift(lambda schedule, m: Shifted(schedule, m**0.5))),
    "zero terminal SNR: of alpha squared": (none, lambda: check_zero_terminal(AlphaBarRescaled, Linear())),
    "learned schedule: rough inverse": (
        too_few_bisections,
        lambda: check_inverse(LearnedLogSnr().requires_grad_(False)),
    ),
    "sub-VP: inverse in alpha alone": (
        sub_vp_inverted_in_alpha_alone,
        lambda: check_tiny_noise(SubVariancePreserving()),
    ),
    "Laplace: upside down": (laplace_upside_down, lambda: check_inverse(Laplace())),
    "grid: beta's parameters swapped": (none, lambda: check_beta(beta_in_reading_order)),
    "grid: shifted twice": (none, lambda: check_shifted(shift_twice)),
    "predict: F of unit data": (none, lambda: check_f(f_with_one_for_sigma_data)),
    "predict: NaN for an undefined target": (none, undefined_targets_are_nan),
    **{
        f"weighting: {name} not rewritten": (
            none,
            partial(check_weighting, not_rewritten(name), *PUBLISHED[name][1:]),
        )
        for name in PUBLISHED
    },
    "weighting: p2 with gamma of one": (none, lambda: check_weighting(partial(p2, k=2.0), *PUBLISHED["p2"][1:])),
    "weighting: hard for soft min-SNR": (none, lambda: check_weighting(min_snr, *PUBLISHED["soft min_snr"][1:])),
    "weighting: EDM of unit data": (none, lambda: check_weighting(partial(edm, sigma_data=1.0), *PUBLISHED["edm"][1:])),
    "weighting: sigmoid without its slope": (
        none,
        lambda: check_weighting(without_the_slope, *PUBLISHED["sigmoid"][1:]),
    ),
    "learned weights: exp(u) for u": (none, lambda: check_learned_weights(WithoutItsLogarithm)),
    "times: variance for standard deviation": (
        none,
        lambda: check_law(partial(logit_normal_times, mean=0.3, std=0.64), LAWS["logit-normal"][1]),
    ),
    "times: every process its own strata": (none, lambda: check_strata(strata_of_one_process)),
    "importance: root of the weight": (weights_forgotten, lambda: check_unbiased(warm())),
    "importance: mean loss for its root mean square": (mean_without_square, lambda: check_probabilities(warm())),
    "importance: a longer history": (none, lambda: check_probabilities(warm(history=20))),
}
