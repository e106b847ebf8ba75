"""Ordinary differential equations: Runge-Kutta methods, and the probability flow that they solve.

The solvers of ``diffusion_core.solvers`` use the linear part of the probability flow and take a fixed list of
times. Here the flow is an equation like any other, ``dx/dt = f(x, t)``: the step adapts to a tolerance, and the
state may carry more than the sample (a log-density: ``diffusion_core.likelihood``). The price is one host read
per step, and times that no denoiser can know beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule
from diffusion_core.solvers import flow_coefficients

State = Tensor | dict[str, Tensor]
Slope = Callable[[Any, float], Any]
"""``slope(x, t) -> dx/dt``, a state like ``x``."""

SAFETY, SLOWEST, FASTEST = 0.9, 0.2, 10.0
DAMPING = 0.04


class Solution(NamedTuple):
    """The state at the end, and what it cost.

    ``evaluations`` counts calls of the slope, ``steps`` the accepted steps, ``rejected`` the repeated ones.
    """

    x: Any
    evaluations: int
    steps: int
    rejected: int


Integrator = Callable[[Slope, Any, float, float], Solution]
"""``solve(slope, x, start, end)``: `integrate`, one of its partials, or `evenly` (...)."""


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    ``k_j = f(x + h sum_l stages[j][l] k_l, t + nodes[j] h)``, ``x_new = x + h sum_j weights[j] k_j``; ``error`` are
    the weights of the difference to a second result of lower order (empty if there is none).
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()


EULER = Tableau((0.0,), ((),), (1.0,))
HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
RK4 = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

_FIFTH = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_FOURTH = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
DORMAND_PRINCE = Tableau(
    nodes=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    stages=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _FIFTH,
    ),
    weights=(*_FIFTH, 0.0),
    error=tuple(b - c for b, c in zip((*_FIFTH, 0.0), _FOURTH, strict=True)),
)
"""Fifth order with an embedded fourth. Source: Dormand & Prince 1980, J. Comput. Appl. Math. 6, RK5(4)7M."""


def integrate(
    slope: Slope,
    x: State,
    start: float,
    end: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Solution:
    """Solve ``dx/dt = slope(x, t)`` with Dormand-Prince 5(4) and steps that keep the local error in tolerance.

    A step is accepted if its error, in units of ``atol + rtol |x|``, is at most 1. The error is the root mean square
    over the elements of one sample of one field, then the largest over samples and fields: a field of one number
    (a log-density) beside one of thousands would be lost in a common mean. After an error e and, before it, e',
    the next step is ``h 0.9 e^-a e'^b`` (PI control) with b = 0.04 and a = 1/5 - 3b/4, and between 0.2 and 10 times h;
    it does not grow after a rejection.

    Args:
        slope: f; called as ``slope(x, t)`` with t a Python float.
        x: state at ``start``, a tensor or a dict of tensors, batch axis first; not modified.
        start: first time.
        end: last time, before or after ``start``.
        rtol: tolerance relative to the state.
        atol: absolute tolerance, in units of the state.
        max_steps: bound on accepted and rejected steps together.

    Raises:
        WorkbenchError: ``max_steps`` did not suffice, or the step became too small to tell times apart (the slope
            is not finite or not smooth there).

    Source: Hairer, Nørsett & Wanner 1993, Solving Ordinary Differential Equations I, section II.4; the control
    with two errors: Hairer & Wanner 1996, part II, section IV.2.
    """
    if not (rtol >= 0.0 and atol >= 0.0 and rtol + atol > 0.0 and max_steps >= 1):
        raise WorkbenchError(
            f"ODE: got rtol={rtol}, atol={atol}, max_steps={max_steps}; expected tolerances >= 0, one of them "
            "positive, and at least one step."
        )
    state, f, restore = _leaves(slope, x)
    if start == end:
        return Solution(x, 0, 0, 0)
    t, span = start, end - start
    smallest = 16.0 * torch.finfo(torch.float64).eps * max(abs(start), abs(end))
    first = f(state, t)
    h = _first_step(f, state, t, span, first, rtol, atol)
    evaluations, steps, rejected, before, may_grow = 2, 0, 0, 1e-4, True
    while True:
        # a last sliver of a step would be wasted: stretch this one by up to a hundredth instead
        last = abs(1.01 * h) >= abs(end - t)
        h = end - t if last else h
        slopes = _stages(DORMAND_PRINCE, f, state, t, h, first)
        evaluations += len(slopes) - 1
        new = _advance(state, h, DORMAND_PRINCE.weights, slopes)
        wrong = _advance([torch.zeros_like(leaf) for leaf in state], h, DORMAND_PRINCE.error, slopes)
        error = _size(wrong, state, new, rtol, atol)
        if error <= 1.0:
            steps += 1
            t, state = (end if last else t + h), new
            if last:
                return Solution(restore(state), evaluations, steps, rejected)
            # the last stage is the slope at the new point
            first = slopes[-1]
            error = max(error, 1e-10)
            factor = SAFETY * error ** -(0.2 - 0.75 * DAMPING) * before**DAMPING
            h *= min(FASTEST if may_grow else 1.0, max(SLOWEST, factor))
            before, may_grow = max(error, 1e-4), True
        else:
            rejected += 1
            # not (error > 1): an error that is not a number lands here, too
            h *= max(SLOWEST, SAFETY * error**-0.2) if math.isfinite(error) else SLOWEST
            may_grow = False
        if abs(h) < smallest and abs(end - t) > smallest:
            raise WorkbenchError(
                f"ODE: at t={t:.6g} the step fell to {abs(h):.2g} (error {error:.3g} of the tolerance rtol={rtol}, "
                f"atol={atol}); expected a finite, smooth slope: stop before a singular time, or loosen the tolerance."
            )
        if steps + rejected >= max_steps:
            raise WorkbenchError(
                f"ODE: got to t={t:.6g} on the way from {start:.6g} to {end:.6g} in max_steps={max_steps} steps "
                f"({rejected} rejected); expected to arrive: loosen rtol={rtol}, atol={atol} or raise max_steps."
            )


def integrate_on(slope: Slope, x: State, times: Grid, tableau: Tableau = RK4) -> Solution:
    """Solve ``dx/dt = slope(x, t)`` with one step of ``tableau`` between any two neighbours of ``times``.

    Args:
        slope: f; called as ``slope(x, t)`` with t a Python float.
        x: state at ``times[0]``, a tensor or a dict of tensors; not modified.
        times: (n + 1,) float64.
        tableau: the method.
    """
    state, f, restore = _leaves(slope, x)
    points = times.tolist()
    for t, s in pairwise(points):
        slopes = _stages(tableau, f, state, t, s - t, f(state, t))
        state = _advance(state, s - t, tableau.weights, slopes)
    n = len(points) - 1
    return Solution(restore(state), n * len(tableau.nodes), n, 0)


def evenly(n: int, tableau: Tableau = RK4) -> Integrator:
    """`integrate_on` with ``n`` equal steps, for whoever takes an integrator."""

    def solve(slope: Slope, x: Any, start: float, end: float) -> Solution:
        return integrate_on(slope, x, torch.linspace(start, end, n + 1, dtype=torch.float64), tableau)

    return solve


def in_angle(solve: Integrator, schedule: Schedule) -> Integrator:
    """``solve`` in the angle ``phi = atan2(sigma_t, alpha_t)`` between signal and noise, for the same solution.

    ``dx/dphi = dx/dt dt/dphi``, ``dt/dphi = (alpha^2 + sigma^2) / (alpha d_sigma - sigma d_alpha)``.

    In t no method keeps its order: a variance-preserving schedule has ``sigma ~ sqrt(t)`` near the data, and one from
    a table of betas has a velocity that jumps at every entry. In phi both are ``alpha = cos phi``, ``sigma = sin phi``,
    and phi is finite where there is no signal, which the log-SNR is not.

    Source: the angle is that of Salimans & Ho 2022 (arXiv 2202.00512).
    """

    def angle(t: float) -> float:
        u = torch.tensor(t, dtype=torch.float64)
        return math.atan2(float(schedule.sigma(u)), float(schedule.alpha(u)))

    def solved(slope: Slope, x: Any, start: float, end: float) -> Solution:
        low, high = min(start, end), max(start, end)

        def in_phi(x: Any, phi: float) -> Any:
            log_snr = torch.tensor(-2.0 * math.log(math.tan(phi)), dtype=torch.float64)
            # the way to the angle and back rounds: no time may leave the span
            t = schedule.t_of_log_snr(log_snr).clamp(low, high)
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            rate = float((alpha**2 + sigma**2) / (alpha * schedule.d_sigma(t) - sigma * schedule.d_alpha(t)))
            return pytree.tree_map(lambda leaf: rate * leaf, slope(x, float(t)))

        return solve(in_phi, x, angle(start), angle(end))

    return solved


def probability_flow(denoiser: Denoiser, cond: Any = None) -> Slope:
    """The velocity ``dx/dt = p x + q x0_hat`` as a function of ``(x, t)``.

    The times are not known beforehand, so the denoiser is bound to each of them as it comes: what `Denoiser.bind`
    prepares is paid for at every evaluation, and none of it can be captured in a graph.

    Raises:
        WorkbenchError: the denoiser is not one of a Gaussian field.
    """
    schedule = schedule_of(denoiser)

    def velocity(x: Tensor, t: float) -> Tensor:
        times = torch.tensor([t], dtype=torch.float64)
        p, q = (float(c) for c in flow_coefficients(schedule, times))
        return p * x + q * denoiser.bind(times, cond)(x, 0)

    return velocity


@torch.no_grad()
def sample_adaptive(
    denoiser: Denoiser,
    x: Tensor,
    start: float = 1.0,
    end: float = 1e-4,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    cond: Any = None,
    max_steps: int = 10_000,
) -> Solution:
    """Follow the probability flow from ``start`` to ``end`` with steps that adapt; rising times invert.

    The steps are those of the batch: a sample depends, within the tolerance, on who shares it.

    Args:
        denoiser: what gives x0_hat.
        x: (batch, ...) sample at ``start``; not modified.
        start: first time, in (0, 1].
        end: last time, in (0, 1]. The sample still has noise ``sigma(end)``: a last denoiser evaluation removes it.
        rtol, atol: tolerances of `integrate`.
        cond: passed to the denoiser.
        max_steps: bound on the steps.

    Raises:
        WorkbenchError: a time without noise, where the velocity is not defined; or from `integrate`.

    Source: Song et al. 2021, section 4.3 (arXiv 2011.13456). They integrate in t, we in the angle (`in_angle`).
    """
    schedule = schedule_of(denoiser)
    check_span(schedule, start, end)

    def solve(slope: Slope, x: Any, start: float, end: float) -> Solution:
        return integrate(slope, x, start, end, rtol, atol, max_steps)

    return in_angle(solve, schedule)(probability_flow(denoiser, cond), x, start, end)


def schedule_of(denoiser: Denoiser) -> Schedule:
    """The schedule of a denoiser of one Gaussian field.

    Raises:
        WorkbenchError: its field is of another kind, for which x0_hat and its flow mean something else.
    """
    process = denoiser.process
    if not isinstance(process, Gaussian):
        raise WorkbenchError(
            f"probability flow: got a denoiser of the process {type(process).__name__}; expected Gaussian, whose "
            "estimate is x0_hat: take the flow of its Gaussian fields alone."
        )
    return process.schedule


def check_span(schedule: Schedule, start: float, end: float) -> None:
    """Refuse times between which the probability flow is not defined.

    Raises:
        WorkbenchError: a time outside (0, 1], or without noise.
    """
    for t in (start, end):
        if not 0.0 < t <= 1.0 or not float(schedule.sigma(torch.tensor(t, dtype=torch.float64))) > 0.0:
            raise WorkbenchError(
                f"probability flow: got the time {t}; expected times in (0, 1] at which there is noise: the velocity "
                "is not defined where there is none, so stop at a small one, for example 1e-4."
            )


def _leaves(
    slope: Slope, x: State
) -> tuple[list[Tensor], Callable[[list[Tensor], float], list[Tensor]], Callable[[list[Tensor]], Any]]:
    """The state as a list, the slope on lists, and the way back."""
    leaves, spec = pytree.tree_flatten(x)

    def restore(leaves: list[Tensor]) -> Any:
        return pytree.tree_unflatten(leaves, spec)

    def f(leaves: list[Tensor], t: float) -> list[Tensor]:
        slopes, got = pytree.tree_flatten(slope(restore(leaves), t))
        if got != spec:
            raise WorkbenchError(f"ODE: got a slope of the structure {got}; expected that of the state, {spec}.")
        return slopes

    return leaves, f, restore


def _stages(
    tableau: Tableau, f: Callable[..., list[Tensor]], x: list[Tensor], t: float, h: float, first: list[Tensor]
) -> list[list[Tensor]]:
    slopes = [first]
    for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
        slopes.append(f(_advance(x, h, row, slopes), t + node * h))
    return slopes


def _advance(x: list[Tensor], h: float, row: tuple[float, ...], slopes: list[list[Tensor]]) -> list[Tensor]:
    new = [leaf.clone() for leaf in x]
    for factor, slope in zip(row, slopes, strict=True):
        if factor != 0.0:
            for leaf, change in zip(new, slope, strict=True):
                leaf.add_(change, alpha=h * factor)
    return new


def _size(values: list[Tensor], x: list[Tensor], y: list[Tensor], rtol: float, atol: float) -> float:
    """The largest root mean square of a sample of a field, in units of the tolerance; one host read."""
    sizes = []
    for value, a, b in zip(values, x, y, strict=True):
        scaled = value / (atol + rtol * torch.maximum(a.abs(), b.abs()))
        rows = scaled.reshape(scaled.shape[0], -1) if scaled.ndim else scaled.reshape(1, 1)
        sizes.append(rows.to(torch.float64).square().mean(1).max().sqrt())
    # max() of Python would drop a nan, torch's keeps it
    return float(torch.stack([size.to(sizes[0].device) for size in sizes]).max())


def _first_step(
    f: Callable[..., list[Tensor]],
    x: list[Tensor],
    t: float,
    span: float,
    first: list[Tensor],
    rtol: float,
    atol: float,
) -> float:
    """A step whose Euler step changes little, then one that makes ``h^5`` times the second derivative 0.01."""
    size, slope = _size(x, x, x, rtol, atol), _size(first, x, x, rtol, atol)
    h = 0.01 * size / slope if min(size, slope) > 1e-5 else 1e-6
    h = math.copysign(min(h, abs(span)) if math.isfinite(h) else 1e-6 * abs(span), span)
    second = f(_advance(x, h, (1.0,), [first]), t + h)
    change = _size([b - a for a, b in zip(first, second, strict=True)], x, x, rtol, atol) / abs(h)
    steepest = max(slope, change)
    if not math.isfinite(steepest):
        return h
    guess = (0.01 / steepest) ** 0.2 if steepest > 1e-15 else max(1e-6, 1e-3 * abs(h))
    return math.copysign(min(100.0 * abs(h), guess, abs(span)), span)
