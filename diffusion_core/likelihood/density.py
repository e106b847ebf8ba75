"""The density along the probability flow: ``log p(x)`` by the instantaneous change of variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.likelihood.decode import normal, total
from diffusion_core.noise import On, Shared
from diffusion_core.ode import Integrator, check_span, in_angle, integrate, probability_flow, schedule_of
from diffusion_core.predict import align

Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]
"""``divergence(f, x) -> f(x), div f(x)``: (batch, ...) and (batch,)."""


def exact_divergence(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_d df_d / dx_d``: one backward pass per element of a sample."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = f(x)
        outputs, trace = y.flatten(1), torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
        for d in range(outputs.shape[1]):
            # the sum over the batch is one backward pass: samples do not see each other
            (gradient,) = torch.autograd.grad(outputs[:, d].sum(), x, retain_graph=True)
            trace = trace + gradient.flatten(1)[:, d]
    return y.detach(), trace


def probes(
    x: Tensor, generator: torch.Generator, n: int = 1, kind: Literal["rademacher", "gaussian"] = "rademacher"
) -> Tensor:
    """(n, *x.shape) random directions of mean 0 and covariance 1 for `hutchinson`.

    Signs have the smaller variance of the two: they are exact on the diagonal.
    """
    source = On(Shared(generator), x.device)
    drawn = source.normal((n, *x.shape), x.dtype)
    match kind:
        case "gaussian":
            return drawn
        case "rademacher":
            return torch.where(drawn < 0.0, -1.0, 1.0).to(x.dtype)
    raise WorkbenchError(f"probes: got kind={kind!r}; expected rademacher or gaussian.")


def hutchinson(directions: Float[Tensor, "n batch ..."]) -> Divergence:
    """``E[e^T (df/dx) e]`` over the n ``directions`` of `probes`: one backward pass for each.

    The directions stay the same along the trajectory: an integrand with fresh noise at every time would not be
    a function that an ODE solver can integrate.

    Source: Grathwohl et al. 2019, section 3.1 (arXiv 1810.01367).
    """

    def divergence(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            y = f(x)
            trace = torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)
            for e in directions:
                (gradient,) = torch.autograd.grad(y, x, e, retain_graph=True)
                trace = trace + total(gradient * e)
        return y.detach(), trace / len(directions)

    return divergence


class Likelihood(NamedTuple):
    """``nats`` (batch,): log-density; ``x`` the sample's place at the noise end; ``evaluations`` of the denoiser."""

    nats: Tensor
    x: Tensor
    evaluations: int


@torch.no_grad()
def log_likelihood(
    denoiser: Denoiser,
    x: Float[Tensor, "batch ..."],
    start: float = 1e-4,
    end: float = 1.0,
    divergence: Divergence = exact_divergence,
    prior: Callable[[Tensor], Tensor] | None = None,
    solve: Integrator = integrate,
    cond: Any = None,
) -> Likelihood:
    """``log p_start(x) = log p_end(x_end) + integral of div dx/dt from start to end`` along the probability flow.

    Args:
        denoiser: what gives x0_hat; differentiable in x.
        x: data; it is taken as a sample at time ``start``, whose density is that of the data blurred by
            ``sigma_start``.
        start: first time, > 0: without noise the velocity is not defined.
        end: time at which the prior's density is known.
        divergence: `exact_divergence`, or ``hutchinson(probes(x, generator))``.
        prior: log-density (batch,) of x_end in nats; None for ``N(0, sigma_end^2)``, from which samples are drawn.
        solve: `ode.integrate` (``partial(integrate, rtol=...)``), or ``ode.evenly(n, RK4)`` for fixed steps; in the
            angle of `ode.in_angle`.
        cond: passed to the denoiser.

    Raises:
        WorkbenchError: a time without noise, or from the integrator.

    Source: Song et al. 2021, section D.2 (arXiv 2011.13456); Chen et al. 2018 (arXiv 1806.07366).
    """
    schedule = schedule_of(denoiser)
    check_span(schedule, start, end)
    velocity = probability_flow(denoiser, cond)

    def slope(state: dict[str, Tensor], t: float) -> dict[str, Tensor]:
        value, change = divergence(lambda x: velocity(x, t), state["x"])
        return {"x": value, "gain": change}

    state = {"x": x, "gain": torch.zeros(x.shape[0], dtype=x.dtype, device=x.device)}
    solution = in_angle(solve, schedule)(slope, state, start, end)
    x_end = solution.x["x"]
    if prior is None:
        log_variance = align(2.0 * schedule.sigma(torch.tensor(end, dtype=torch.float64)).log(), x_end)
        log_prior = total(normal(x_end, torch.zeros_like(x_end), log_variance))
    else:
        log_prior = prior(x_end)
    return Likelihood(log_prior + solution.x["gain"], x_end, solution.evaluations)
