"""Correctors: Markov chains that make a sample at time t one of the density that its denoiser stands for.

A sampler with the score of ``pi_t = prod_k p_k,t^w_k`` does not arrive at ``pi_s``: the noised product is another
density. A corrector has ``pi_s`` as its stationary law, so some of its steps after every step of the sampler remove
what that step did wrong. A proposal is a step of Langevin dynamics,

    x' = x + h s(x) + sqrt(2 h) z,        h = step sigma_t^2,        s = grad log pi_t = (alpha x0_hat - x) / sigma_t^2.

``step`` is without unit and the same at all noise levels, since sigma_t is the width of what is still unknown at t.
Where exponents sum to W the width is ``sigma_t / sqrt(W)``: choose ``step < 1 / W``.

`Ula` accepts every proposal and is stationary at a density that is off by O(step); `Mala` and `Hmc` accept with the
Metropolis probability of ``pi_t`` and are exact. A sample's acceptance is its own: it never depends on its batch.

Source: Du et al. 2023, "Reduce, Reuse, Recycle" (arXiv 2302.11552); Roberts & Tweedie 1996
(doi 10.2307/3318418); Neal 2011, "MCMC using Hamiltonian dynamics" (arXiv 1206.1901).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Product, Union
from diffusion_core.experts.factors import has_log_density, log_density
from diffusion_core.noise import Noise
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.categorical.kernel import inverse_cdf
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.process.torus import Torus
from diffusion_core.process.wrapped_normal import wrap
from diffusion_core.sample import Correct, Corrector
from diffusion_core.solvers.table import Learned

LOBATTO: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    0: ((), (0.5,)),
    1: ((0.5,), (1.0 / 6.0, 2.0 / 3.0)),
    2: ((0.5 - math.sqrt(0.05), 0.5 + math.sqrt(0.05)), (1.0 / 12.0, 5.0 / 12.0, 5.0 / 12.0)),
}
"""Gauss-Lobatto rules on [0, 1]: inner nodes; weight of each end, then of each inner node."""


@dataclass(frozen=True)
class Ula:
    """``n`` unadjusted Langevin steps: n evaluations.

    As ``sigma^2 s = alpha x0_hat - x``, a step is linear in the sample and the estimate::

        x' = (1 - step) x + step alpha x0_hat + sqrt(2 step) sigma z

    Where ``pi_t`` is a Gaussian of variance v it is stationary at ``v / (1 - step sigma^2 / (2 v))``.
    """

    n: int
    step: float

    def __post_init__(self) -> None:
        _check_numbers(self, n=self.n, step=self.step)

    def bind(self, denoiser: Denoiser, times: Any, cond: Any = None) -> Correct:
        pull, sigmas = bind_pull(denoiser, times, cond)
        n, step = self.n, self.step

        def correct(x: Tensor, i: int, noise: Noise) -> tuple[Tensor, Tensor]:
            for _ in range(n):
                z = noise.normal(x.shape, x.dtype, x.device)
                x = x.add(pull(x, i), alpha=step).add_(z, alpha=math.sqrt(2.0 * step) * sigmas[i])
            return x, x.new_ones(x.shape[0])

        return correct


@dataclass(frozen=True)
class Hmc:
    """``n`` trajectories of Hamiltonian dynamics, ``leapfrog`` steps each, accepted with the Metropolis probability.

    In units in which the momentum p is standard normal, with ``length = sqrt(2 step)`` and ``g = sigma s``, a leapfrog
    step is

        p <- p + length/2 g(x);    x <- x + length sigma p;    p <- p + length/2 g(x)

    and the end is accepted with probability ``min(1, exp(log pi(x') - log pi(x) + |p|^2/2 - |p'|^2/2))``.

    Args:
        n: trajectories.
        step: of one leapfrog step, in units of sigma_t^2: the Langevin step with the same noise.
        leapfrog: steps of a trajectory. In a Gaussian of width ``sigma_t / sqrt(W)`` they turn x by an angle
            ``leapfrog sqrt(2 W step)``: near pi, that only mirrors it, so stay near pi / 2.
        quadrature: None takes ``log pi(x') - log pi(x)`` from the denoiser's own log-density. A number k integrates the
            score along the trajectory, with k evaluations inside of each leapfrog step, by the Gauss-Lobatto rule
            that is exact for cubic (k = 1, Simpson) or quintic (k = 2) scores; k = 0, the trapezoid, costs nothing and
            is exact for linear scores, Gaussian densities. The score must be a gradient.
        persistence: share of the momentum that a trajectory inherits from the one before (0: none).

    It costs ``n leapfrog (1 + k) + 1`` evaluations of the denoiser, and n + 1 of the log-density for None.

    Source: Neal 2011 (arXiv 1206.1901); partial refreshment: Horowitz 1991 (doi 10.1016/0370-2693(91)90812-5).
    """

    n: int
    step: float
    leapfrog: int
    quadrature: int | None = None
    persistence: float = 0.0

    def __post_init__(self) -> None:
        _check_numbers(self, n=self.n, step=self.step, leapfrog=self.leapfrog)
        if self.quadrature is not None and self.quadrature not in LOBATTO:
            raise WorkbenchError(f"Hmc: got quadrature={self.quadrature}; expected None, 0, 1 or 2 inner nodes.")
        if not 0.0 <= self.persistence < 1.0:
            raise WorkbenchError(f"Hmc: got persistence={self.persistence}; expected a number in [0, 1).")

    def bind(self, denoiser: Denoiser, times: Any, cond: Any = None) -> Correct:
        pull, sigmas = bind_pull(denoiser, times, cond)
        _check_conservative(denoiser)
        of_x = None if self.quadrature is not None else log_density(denoiser, times, cond)
        nodes, weights = LOBATTO[self.quadrature or 0]
        n, leapfrog, length, persistence = self.n, self.leapfrog, math.sqrt(2.0 * self.step), self.persistence

        def along(x: Tensor, move: Tensor, ends: Tensor, i: int) -> Tensor:
            """``log pi(x + move) - log pi(x)``: the integral of the score; ``ends`` is g at one end plus the other."""
            mean = ends * weights[0]
            for node, weight in zip(nodes, weights[1:], strict=True):
                mean = mean.add_(pull(x.add(move, alpha=node), i), alpha=weight / sigmas[i])
            return _dot(mean, move) / sigmas[i]

        def correct(x: Tensor, i: int, noise: Noise) -> tuple[Tensor, Tensor]:
            g, p = pull(x, i) / sigmas[i], None
            level = None if of_x is None else of_x(x, i)
            accepted = x.new_zeros(x.shape[0])
            for _ in range(n):
                z = noise.normal(x.shape, x.dtype, x.device)
                p = z if p is None or persistence == 0.0 else persistence * p + math.sqrt(1.0 - persistence**2) * z
                x_end, p_end, g_end, gain = x, p, g, x.new_zeros(x.shape[0])
                for _ in range(leapfrog):
                    p_half = p_end.add(g_end, alpha=0.5 * length)
                    move = p_half * (length * sigmas[i])
                    start, ends = x_end, g_end
                    x_end = start + move
                    g_end = pull(x_end, i) / sigmas[i]
                    p_end = p_half.add(g_end, alpha=0.5 * length)
                    if of_x is None:
                        gain = gain + along(start, move, ends + g_end, i)
                if of_x is not None and level is not None:
                    level_end = of_x(x_end, i)
                    gain = level_end - level
                gain = gain + kinetic(p) - kinetic(p_end)
                yes = accepts(gain, noise.uniform((x.shape[0], 1), torch.float64, x.device)[:, 0])
                if of_x is not None and level is not None:
                    level = torch.where(yes, level_end, level)
                accepted = accepted + yes
                each = yes.reshape(-1, *[1] * (x.ndim - 1))
                x, g = torch.where(each, x_end, x), torch.where(each, g_end, g)
                # a refusal turns back: without the sign the chain with persistence would not be stationary
                p = torch.where(each, p_end, -p)
            return x, accepted / n

        return correct


@dataclass(frozen=True)
class Mala:
    """``n`` Metropolis-adjusted Langevin steps: `Hmc` with one leapfrog step, which is the same chain.

    The leapfrog's ``x + length sigma (z + length/2 g)`` is the Langevin proposal, and its two kinetic energies are
    minus the logarithms of the proposal's density forth and back.

    Args:
        n, step, quadrature: as in `Hmc`; n (1 + k) + 1 evaluations.

    Source: Roberts & Tweedie 1996 (doi 10.2307/3318418).
    """

    n: int
    step: float
    quadrature: int | None = None

    def __post_init__(self) -> None:
        Hmc(self.n, self.step, 1, self.quadrature)

    def bind(self, denoiser: Denoiser, times: Any, cond: Any = None) -> Correct:
        return Hmc(self.n, self.step, 1, self.quadrature).bind(denoiser, times, cond)


@dataclass(frozen=True)
class Sweep:
    """For states of several fields, ``n`` times: a Langevin step of the continuous, a Gibbs step of the masked ones.

    A Gaussian field moves as in `Ula`; one on a torus by ``x' = x + h s(x) + sqrt(2 h) z``, ``h = step min(sigma^2,
    period^2 / 12)``, the variance of what is spread over the whole circle. Of an absorbing field one entry that is not
    MASK is picked for each sample, hidden, and drawn from what the denoiser makes of it. That is its conditional given
    all else in the density at that time, in a product, too: a product of conditionals, normalised. But for the error of
    Langevin steps the density at that time is stationary. It costs n evaluations, and n more for each absorbing field.

    Args:
        n: sweeps.
        step: as in `Ula`.

    Source: Langevin: Song et al. 2021, algorithm 4 (arXiv 2011.13456); Gibbs sampling: Geman & Geman 1984 (doi
    10.1109/TPAMI.1984.4767596). That hiding one entry gives its conditional holds for absorbing states alone.
    """

    n: int
    step: float

    def __post_init__(self) -> None:
        _check_numbers(self, n=self.n, step=self.step)

    def bind(self, denoiser: Denoiser, times: Any, cond: Any = None) -> Correct:
        process = denoiser.process
        if not isinstance(process, Joint) or not isinstance(times, Mapping):
            raise WorkbenchError(f"Sweep: got the process {process}; expected a Joint one: use Ula for one field.")
        check_shares(denoiser)
        evaluate = denoiser.bind(times, cond)
        langevin = {
            name: _move(f, times[name]) for name, f in process.fields.items() if isinstance(f, Gaussian | Torus)
        }
        masks = {name: f.mask for name, f in process.fields.items() if isinstance(f, Absorbing)}
        if rest := process.fields.keys() - langevin.keys() - masks.keys():
            raise WorkbenchError(
                f"Sweep: got the fields {sorted(rest)}; expected Gaussian ones, on a torus, or absorbing classes."
            )
        n, step = self.n, self.step

        def correct(x: dict[str, Tensor], i: int, noise: Noise) -> tuple[dict[str, Tensor], Tensor]:
            for _ in range(n):
                estimate = evaluate(x, i)
                x = {f: langevin[f](v, estimate[f], i, step, noise) if f in langevin else v for f, v in x.items()}
                for name, mask in masks.items():
                    hidden = _one_of(x[name] != mask, noise)
                    logits = evaluate({**x, name: x[name].masked_fill(hidden, mask)}, i)[name]
                    u = noise.uniform(x[name].shape, torch.float64, x[name].device)
                    drawn = inverse_cdf(logits.double().softmax(-1), u)
                    x = {**x, name: torch.where(hidden, drawn, x[name])}
            first = next(iter(x.values()))
            return x, torch.ones(len(first), device=first.device)

        return correct


Move = Callable[[Tensor, Tensor, int, float, Noise], Tensor]
"""``move(x, estimate, i, step, noise) -> x``."""


def _move(process: Gaussian | Torus, times: Float64[Tensor, " n"]) -> Move:
    """A Langevin step of one field."""
    sigmas = process.schedule.sigma(times)
    if isinstance(process, Gaussian):
        alphas, widths = process.schedule.alpha(times).tolist(), sigmas.tolist()

        def move(x: Tensor, x0_hat: Tensor, i: int, step: float, noise: Noise) -> Tensor:
            x0_hat = x0_hat.x0_hat if isinstance(x0_hat, Learned) else x0_hat
            z = noise.normal(x.shape, x.dtype, x.device)
            pull = (x0_hat * alphas[i]).sub_(x)
            return x.add(pull, alpha=step).add_(z, alpha=math.sqrt(2.0 * step) * widths[i])

        return move
    variances = (sigmas**2).clamp(max=process.period**2 / 12.0).tolist()

    def turn(x: Tensor, score: Tensor, i: int, step: float, noise: Noise) -> Tensor:
        h = step * variances[i]
        z = noise.normal(x.shape, x.dtype, x.device)
        return wrap(x.add(score.to(x.dtype), alpha=h).add_(z, alpha=math.sqrt(2.0 * h)), process.period)

    return turn


def _one_of(candidates: Bool[Tensor, "batch ..."], noise: Noise) -> Bool[Tensor, "batch ..."]:
    """One True of each sample's candidates, all alike; none where there are none."""
    u = noise.uniform(candidates.shape, torch.float64, candidates.device)
    picked = torch.where(candidates, u, -1.0).flatten(1).argmax(1)
    one = torch.zeros_like(candidates).flatten(1).scatter_(1, picked[:, None], True)
    return one.reshape(candidates.shape) & candidates


def bind_pull(denoiser: Denoiser, times: Any, cond: Any) -> tuple[Callable[[Tensor, int], Tensor], list[float]]:
    """``pull(x, i) = sigma^2 grad log pi(x) = alpha x0_hat - x``, and sigma, at each of ``times``.

    Raises:
        WorkbenchError: there is no such thing for this denoiser at these times.
    """
    process = denoiser.process
    many = isinstance(times, Tensor) and times.ndim > 1
    if not isinstance(process, Gaussian) or many:
        raise WorkbenchError(
            f"corrector: got the process {process} and {'a time for each sample' if many else 'one time'}; "
            "expected a Gaussian field with one time for all samples, or Sweep for a state of several fields."
        )
    if bool((times <= 0.0).any()):
        raise WorkbenchError("corrector: got a time t=0, where there is no noise to mix by; expected times > 0.")
    check_shares(denoiser)
    evaluate = denoiser.bind(times, cond)
    alphas, sigmas = process.schedule.alpha(times).tolist(), process.schedule.sigma(times).tolist()

    def pull(x: Tensor, i: int) -> Tensor:
        estimate = evaluate(x, i)
        x0_hat = estimate.x0_hat if isinstance(estimate, Learned) else estimate
        return (x0_hat * alphas[i]).sub_(x)

    return pull, sigmas


def check_shares(denoiser: Denoiser) -> None:
    """Refuse mixtures whose shares come from the path of one sampler: correctors and resampling leave it.

    Raises:
        WorkbenchError: there is one.
    """
    parts = [part for part, _ in denoiser.denoisers] if isinstance(denoiser, Product) else [denoiser]
    if any(isinstance(part, Union) and not has_log_density(part) for part in parts):
        raise WorkbenchError(
            "correctors, particles: got a mixture whose shares come from the path of the sampler, which they leave; "
            "expected parts with log-densities."
        )


def kinetic(p: Tensor) -> Tensor:
    """``|p|^2 / 2`` of each sample."""
    return 0.5 * _dot(p, p)


def accepts(gain: Tensor, uniform: Tensor) -> Tensor:
    """Whether each sample moves: with probability ``min(1, exp(gain))``; never where the gain is not a number."""
    return uniform.log() < gain


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _check_conservative(denoiser: Denoiser) -> None:
    if isinstance(denoiser, Product) and denoiser.known:
        raise WorkbenchError(
            "Mala, Hmc: got Known values, whose score is no gradient, so that there is no density to accept by; "
            "expected Ula."
        )


def _check_numbers(corrector: Corrector, step: float, **counts: int) -> None:
    if step <= 0.0 or min(counts.values()) < 1:
        got = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise WorkbenchError(
            f"{type(corrector).__name__}: got step={step}, {got}; expected a step > 0 (in units of sigma_t^2) and "
            "counts of at least 1."
        )
