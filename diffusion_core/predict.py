"""What a network predicts, and the one table that converts it.

Every target of the field is a linear combination of data and noise,

    prediction = k_x0(t) x0 + k_eps(t) eps,

and so is the sample, ``x_t = alpha_t x0 + sigma_t eps``. Two equations, two unknowns: whatever is predicted,

    x0 = (k_eps x_t - sigma_t prediction) / (alpha_t k_eps - sigma_t k_x0).

==========  ===============  ===============  =========================================================
kind        k_x0             k_eps            source
==========  ===============  ===============  =========================================================
x0          1                0                Ho et al. 2020 (arXiv 2006.11239), section 3.2
eps         0                1                Ho et al. 2020, eq. 12
v           -sigma           alpha            Salimans & Ho 2022 (arXiv 2202.00512), section 4
velocity    d alpha/dt       d sigma/dt       Lipman et al. 2023 (arXiv 2210.02747); ``dx_t/dt``
score       0                -1/sigma         Song et al. 2021 (arXiv 2011.13456)
==========  ===============  ===============  =========================================================
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Schedule, Times

Prediction = Literal["x0", "eps", "v", "velocity", "score"]
PREDICTIONS: tuple[Prediction, ...] = ("x0", "eps", "v", "velocity", "score")


def mixture(kind: Prediction, schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """``(k_x0, k_eps)`` at times ``t``: the row of the table above, float64, shape of ``t``.

    Raises:
        WorkbenchError: unknown kind.
    """
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    match kind:
        case "x0":
            return one, zero
        case "eps":
            return zero, one
        case "v":
            return -schedule.sigma(t), schedule.alpha(t)
        case "velocity":
            return schedule.d_alpha(t), schedule.d_sigma(t)
        case "score":
            return zero, -1.0 / schedule.sigma(t)
    raise WorkbenchError(f"prediction: got {kind!r}; expected one of {', '.join(PREDICTIONS)}.")


def to_x0(kind: Prediction, schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """Coefficients ``(c_x, c_p)`` with ``x0 = c_x x_t + c_p prediction``, float64, shape of ``t``.

    Raises:
        WorkbenchError: at one of the times the data cannot be recovered from this prediction, such as eps
            where there is no signal.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    k_x0, k_eps = mixture(kind, schedule, t)
    determinant = alpha * k_eps - sigma * k_x0
    size = determinant.abs()
    regular = (size > 1e-12) & (size < torch.inf)
    if not regular.all():
        raise WorkbenchError(
            f"{kind} prediction: at t={t[~regular].flatten()[0]:.6g} the schedule {schedule} leaves no way to get x0 "
            "from it (no signal, or a time at which the target is undefined); expected a grid that avoids this time, "
            "or a network that predicts x0 or v."
        )
    return k_eps / determinant, -sigma / determinant


def convert(
    prediction: Tensor, x_t: Tensor, source: Prediction, target: Prediction, schedule: Schedule, t: Times
) -> Tensor:
    """A prediction of one kind as another kind, elementwise at times ``t``.

    Args:
        prediction: (*t, ...) what was predicted.
        x_t: (*t, ...) the noisy sample it was predicted from.
        source: kind of ``prediction``.
        target: kind wanted.
        t: float64 times; leading axes of ``prediction``.
    """
    if source == target:
        return prediction
    c_x, c_p = (align(c, x_t) for c in to_x0(source, schedule, t))
    x0 = c_x * x_t + c_p * prediction
    alpha, sigma = align(schedule.alpha(t), x_t), align(schedule.sigma(t), x_t)
    eps = (x_t - alpha * x0) / sigma
    k_x0, k_eps = (align(k, x_t) for k in mixture(target, schedule, t))
    return k_x0 * x0 + k_eps * eps


def align(coefficient: Tensor, like: Tensor) -> Tensor:
    """Give a coefficient of shape (*t) the dtype of ``like`` and trailing axes that broadcast over it."""
    return coefficient.to(like.device, like.dtype).reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))
