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
F           sigma / (s n)    -s alpha / n     Karras et al. 2022 (arXiv 2206.00364), section 5 and table 1
==========  ===============  ===============  =========================================================

with ``s`` the width of the data and ``n = sqrt(alpha^2 s^2 + sigma^2)`` that of the sample. F is EDM's
``(x0 - c_skip x) / c_out`` with x = x_t / alpha at the noise level sigma / alpha; under a variance-preserving
schedule and s = 1 it is -v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Schedule, Times


@dataclass(frozen=True)
class F:
    """EDM's network output, of unit variance at every noise level; the word "F" stands for ``F(0.5)``.

    Args:
        sigma_data: width of the data, in the units of x0.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_data < torch.inf:
            raise WorkbenchError(f"F prediction: got sigma_data={self.sigma_data}; expected a number > 0.")

    def width(self, schedule: Schedule, t: Times) -> Times:
        """``sqrt(alpha^2 sigma_data^2 + sigma^2)``, the standard deviation of ``x_t``."""
        return torch.hypot(schedule.alpha(t) * self.sigma_data, schedule.sigma(t))


Kind = Literal["x0", "eps", "v", "velocity", "score", "F"]
Prediction = Kind | F
PREDICTIONS: tuple[Kind, ...] = ("x0", "eps", "v", "velocity", "score", "F")


def mixture(kind: Prediction, schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """``(k_x0, k_eps)`` at times ``t``: the row of the table above, float64, shape of ``t``.

    Raises:
        WorkbenchError: unknown kind.
    """
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    match _named(kind):
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
        case F(s) as edm:
            n = edm.width(schedule, t)
            return schedule.sigma(t) / (s * n), -s * schedule.alpha(t) / n
    raise WorkbenchError(f"prediction: got {kind!r}; expected one of {', '.join(PREDICTIONS)}.")


def coefficients(source: Prediction, target: Prediction, schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """``(c_x, c_p)`` with ``target = c_x x_t + c_p source``, float64, shape of ``t``.

    With ``(k_x0, k_eps)`` of the source, ``(l_x0, l_eps)`` of the target and ``d = alpha k_eps - sigma k_x0``::

        c_x = (l_x0 k_eps - l_eps k_x0) / d,    c_p = (alpha l_eps - sigma l_x0) / d

    Args:
        source: kind of what is known besides ``x_t``.
        target: kind wanted.
        t: float64 times.

    Raises:
        WorkbenchError: at one of the times the target does not follow from the source, such as x0 from eps where
            there is no signal, or is not defined itself, such as the score where there is no noise.
    """
    k_x0, k_eps = mixture(source, schedule, t)
    if _named(source) == _named(target):
        return torch.zeros_like(t), torch.ones_like(t)
    l_x0, l_eps = mixture(target, schedule, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    determinant = alpha * k_eps - sigma * k_x0
    size = determinant.abs()
    regular = (size > 1e-12) & (size < torch.inf) & (l_x0.abs() < torch.inf) & (l_eps.abs() < torch.inf)
    if not regular.all():
        raise WorkbenchError(
            f"{source} prediction: at t={t[~regular].flatten()[0]:.6g} the schedule {schedule} leaves no way to get "
            f"{target} from it (no signal, no noise, or a time at which one of the two is undefined); expected a grid "
            "that avoids this time, or a network that predicts x0 or v."
        )
    return (l_x0 * k_eps - l_eps * k_x0) / determinant, (alpha * l_eps - sigma * l_x0) / determinant


def to_x0(kind: Prediction, schedule: Schedule, t: Times) -> tuple[Times, Times]:
    """Coefficients ``(c_x, c_p)`` with ``x0 = c_x x_t + c_p prediction``, float64, shape of ``t``.

    Raises:
        WorkbenchError: at one of the times the data cannot be recovered from this prediction, such as eps
            where there is no signal.
    """
    return coefficients(kind, "x0", schedule, t)


def convert(
    prediction: Tensor, x_t: Tensor, source: Prediction, target: Prediction, schedule: Schedule, t: Times
) -> Tensor:
    """A prediction of one kind as another kind, elementwise at times ``t``.

    Args:
        prediction: (*t, ...) what was predicted.
        x_t: (*t, ...) the noisy sample it was predicted from.
        source: kind of ``prediction``.
        target: kind wanted.
        schedule: under which ``x_t`` was noised.
        t: float64 times; leading axes of ``prediction``.

    Returns:
        (*t, ...) the same estimate as a ``target``.

    Raises:
        WorkbenchError: see `coefficients`.
    """
    if _named(source) == _named(target):
        return prediction
    c_x, c_p = (align(c, x_t) for c in coefficients(source, target, schedule, t))
    return c_x * x_t + c_p * prediction


def input_scale(kind: Prediction, schedule: Schedule, t: Times) -> Times:
    """What ``x_t`` is multiplied by before the network sees it: ``1 / sqrt(alpha^2 s^2 + sigma^2)`` for F, else 1.

    EDM's ``c_in``, for ``x_t`` rather than ``x_t / alpha``: data of width s enter the network with unit variance.

    Source: Karras et al. 2022, table 1 (arXiv 2206.00364).
    """
    named = _named(kind)
    return 1.0 / named.width(schedule, t) if isinstance(named, F) else torch.ones_like(t)


def noise_label(kind: Prediction, schedule: Schedule, t: Times) -> Times:
    """What the network is told instead of the time: ``log(sigma / alpha) / 4`` for F, else ``t`` itself.

    Raises:
        WorkbenchError: for F, at a time without noise or without signal: the label would be infinite.

    Source: Karras et al. 2022, table 1, ``c_noise`` (arXiv 2206.00364).
    """
    if not isinstance(_named(kind), F):
        return t
    label = -schedule.log_snr(t) / 8.0
    finite = label.isfinite()
    if not finite.all():
        raise WorkbenchError(
            f"F prediction: at t={t[~finite].flatten()[0]:.6g} the schedule {schedule} has no noise or no signal: the "
            "label log(sigma / alpha) / 4 is infinite; expected times between: start the grid a little below 1 (for "
            "example at 0.99), or use a variance-exploding schedule."
        )
    return label


def _named(kind: Any) -> Any:
    return F() if kind == "F" else kind


def factor(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient of one time (0-dim) or of several as a factor of ``like``, to be used in a loop.

    A 0-dim one stays on the host: a kernel takes it as an argument, while moving it would be a copy that waits, and
    that no CUDA graph may contain.
    """
    return coefficient.to(like.dtype) if coefficient.ndim == 0 else align(coefficient, like)


def align(coefficient: Tensor, like: Tensor) -> Tensor:
    """Give a coefficient of shape (*t) the dtype of ``like`` and trailing axes that broadcast over it."""
    return coefficient.to(like.device, like.dtype).reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))
