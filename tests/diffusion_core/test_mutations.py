"""Does the suite see a defect? Classic ones are put back, and the check that guards each must fail.

Every check here is the body of a test elsewhere, where it passes on the code as it is.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_core import grid as grids
from diffusion_core import predict
from diffusion_core.denoise import network
from diffusion_core.ema import Ema
from diffusion_core.loss import Draws
from diffusion_core.normalize import MinMax
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Cosine, DiscreteBetas, Linear, RectifiedFlow, Schedule, cosine_betas
from diffusion_core.solvers import Solver, Table, ddim, ddpm, dpm_solver_pp_2m, euler, heun
from tests.diffusion_core import defects
from tests.diffusion_core.test_denoise import check_denoiser
from tests.diffusion_core.test_ema import check_average
from tests.diffusion_core.test_gaussian import check_posterior
from tests.diffusion_core.test_grid import check_trailing
from tests.diffusion_core.test_loss import check_draws, check_min_snr
from tests.diffusion_core.test_normalize import check_range
from tests.diffusion_core.test_predict import check_to_x0
from tests.diffusion_core.test_schedule import check_inverse, check_knots
from tests.diffusion_core.test_solvers import (
    check_2m_paper,
    check_ddpm_is_ddim,
    check_ddpm_paper,
    check_order,
    check_point_mass,
)
from tests.diffusion_core.worlds import vector

Patch = pytest.MonkeyPatch


def edited(solver: Solver, edit: Callable[[Table], Table]) -> Solver:
    return lambda schedule, grid: edit(solver(schedule, grid))


def second_order_term(factor: float) -> Solver:
    """DPM-Solver++(2M) with its ``g`` multiplied: 0.5 is the published third-order defect, -1 a lost sign."""

    def edit(table: Table) -> Table:
        older = factor * table.estimate[:, 1]
        return replace(table, estimate=torch.stack([table.estimate.sum(1) - older, older], 1))

    return edited(dpm_solver_pp_2m, edit)


def swapped_alphas(schedule: Schedule, grid: Tensor) -> Table:
    """DDIM(1) with ``alpha_s / alpha_t`` for ``alpha_t / alpha_s`` in the noise."""
    t, s = grid[:-1], grid[1:]
    alpha_t, alpha_s, sigma_t, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(t), schedule.sigma(s)
    variance = (sigma_t**2 - (alpha_s / alpha_t * sigma_s) ** 2).clamp(min=0.0)
    c = sigma_s / sigma_t * variance.sqrt()
    a = (sigma_s**2 - c**2).sqrt() / sigma_t
    return Table(t, s, a[:, None], (alpha_s - a * alpha_t)[:, None], c, *[torch.ones(len(t), dtype=torch.bool)] * 2)


def uncorrected(table: Table) -> Table:
    """Heun whose corrector forgets the slope at the end of the step."""
    last = table.ends_step
    previous = table.x[~last][:, 0] - 1.0, table.estimate[~last][:, 0]
    x, x0_hat = table.x.clone(), table.estimate.clone()
    x[last] = torch.stack([torch.zeros_like(previous[0]), 1.0 + previous[0]], 1)
    x0_hat[last] = torch.stack([torch.zeros_like(previous[1]), previous[1]], 1)
    return replace(table, x=x, estimate=x0_hat)


def posterior_with_sigma_t_for_sigma_s(patch: Patch) -> None:
    right = Gaussian.posterior

    def wrong(self: Gaussian, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, _ = right(self, t, s)
        return a, b, self.forward(t, s)[1].sqrt()

    patch.setattr(Gaussian, "posterior", wrong)


def v_without_its_factor_where_no_signal_is_left(patch: Patch) -> None:
    # a defect that this suite found: "x_t does not matter here" was taken for "the prediction is x0"
    def wrong(kind: predict.Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        c_x, c_p = predict.to_x0(kind, schedule, t)
        return c_x, torch.where(c_x == 0.0, 1.0, c_p)

    patch.setattr(network, "to_x0", wrong)


def x0_from_eps_without_dividing(kind: predict.Prediction, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    c_x, c_p = predict.to_x0(kind, schedule, t)
    return (c_x, c_p * schedule.alpha(t)) if kind == "eps" else (c_x, c_p)


def min_snr_not_rewritten(kind: predict.Prediction, schedule: Schedule, t: Tensor) -> Tensor:
    return schedule.log_snr(t).exp().clamp(max=5.0)


def every_process_its_own_draws(patch: Patch) -> None:
    def wrong(self: Draws, draw: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return draw(tuple(shape), generator=self.generator, dtype=dtype)

    patch.setattr(Draws, "_mine", wrong)


def half_range_is_the_range(patch: Patch) -> None:
    patch.setattr(MinMax, "_half_range", property(lambda self: self.high - self.low))


def decay_one_step_late(patch: Patch) -> None:
    right = Ema.decay
    patch.setattr(Ema, "decay", lambda self, step: right(self, step + 1))


def weights_and_average_swapped(patch: Patch) -> None:
    right = Ema.decay
    patch.setattr(Ema, "decay", lambda self, step: 1.0 - right(self, step))


def log_snr_of_amplitudes(patch: Patch) -> None:
    patch.setattr(Schedule, "log_snr", lambda self, t: self.alpha(t).log() - self.sigma(t).log())


def knots_rounded_up(patch: Patch) -> None:
    # (i / n) n is a little more than i for 5 of the 100 steps
    def wrong(self: DiscreteBetas, position: Tensor) -> Tensor:
        return position.ceil().long().clamp(1, len(self.betas)) - 1

    patch.setattr(DiscreteBetas, "_segment", wrong)


def none(patch: Patch) -> None:
    """The defect is in what the check is given."""


DEFECTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "2M: g halved, order": (none, lambda: check_order(second_order_term(0.5), Linear(), 2.0)),
    "2M: g halved, paper": (none, lambda: check_2m_paper(second_order_term(0.5))),
    "2M: g doubled": (none, lambda: check_order(second_order_term(2.0), Linear(), 2.0)),
    "2M: sign of g": (none, lambda: check_order(second_order_term(-1.0), Linear(), 2.0)),
    "2M: sign of g, paper": (none, lambda: check_2m_paper(second_order_term(-1.0))),
    "2M: first order": (none, lambda: check_order(ddim, Linear(), 2.0)),
    "Heun: no corrector": (none, lambda: check_order(edited(heun, uncorrected), Linear(), 2.0)),
    "Euler: noise level for time": (
        none,
        lambda: check_order(lambda schedule, grid: ddim(RectifiedFlow(), grid), Linear(), 1.0),
    ),
    "Euler is not exact on a point": (none, lambda: check_point_mass(euler, Linear(), grids.uniform(11))),
    "DDIM: alpha_s and alpha_t swapped": (none, lambda: check_ddpm_is_ddim(swapped_alphas, Linear())),
    "DDIM: eta ignored": (none, lambda: check_ddpm_is_ddim(ddim, Linear())),
    "DDPM: variance for its root": (
        none,
        lambda: check_ddpm_paper(edited(ddpm, lambda table: replace(table, noise=table.noise**2))),
    ),
    "DDPM: noise too large by a part in a million": (
        none,
        lambda: check_point_mass(
            edited(ddpm, lambda table: replace(table, noise=table.noise * 1.000001)), Linear(), grids.uniform(11)
        ),
    ),
    "posterior: sigma_t for sigma_s": (
        posterior_with_sigma_t_for_sigma_s,
        lambda: check_posterior(Gaussian(Linear())),
    ),
    "posterior: sigma_t for sigma_s, in DDPM": (posterior_with_sigma_t_for_sigma_s, lambda: check_ddpm_paper(ddpm)),
    "denoiser: v at zero terminal SNR": (
        v_without_its_factor_where_no_signal_is_left,
        lambda: check_denoiser(Cosine(), "v", vector(1.0, 0.5)),
    ),
    "predict: eps not divided by alpha": (none, lambda: check_to_x0(x0_from_eps_without_dividing)),
    "schedule: log-SNR of amplitudes": (log_snr_of_amplitudes, lambda: check_inverse(Linear())),
    "schedule: knots rounded up": (knots_rounded_up, lambda: check_knots(cosine_betas(100))),
    "grid: one step early": (none, lambda: check_trailing(lambda n_train, n: grids.trailing(n_train, n) - 1 / n_train)),
    "grid: leading for trailing": (none, lambda: check_trailing(grids.leading)),
    "loss: min-SNR not rewritten": (none, lambda: check_min_snr(min_snr_not_rewritten)),
    "loss: every process draws for itself": (every_process_its_own_draws, lambda: check_draws(Draws)),
    "normalizer: range for half range": (half_range_is_the_range, lambda: check_range(MinMax.fit)),
    "EMA: one step late": (decay_one_step_late, lambda: check_average(Ema())),
    "EMA: weights and average swapped": (weights_and_average_swapped, lambda: check_average(Ema())),
}


for module in pkgutil.iter_modules(defects.__path__):
    of_module = importlib.import_module(f"{defects.__name__}.{module.name}").DEFECTS
    DEFECTS |= {f"{module.name}: {name}": pair for name, pair in of_module.items()}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_suite_sees_the_defect(name, monkeypatch):
    defect, check = DEFECTS[name]
    defect(monkeypatch)
    with pytest.raises(AssertionError):
        check()
