"""Correctors: Markov chains that make a sample at time t one of the density that its denoiser stands for.

A sampler with the score of ``pi_t = prod_k p_k,t^w_k`` does not arrive at ``pi_t``: the noised product is another
density. A corrector has ``pi_t`` as its stationary law, so some of its steps after every step of the sampler remove
what that step did wrong. Each proposal is a step of Langevin or Hamiltonian dynamics,

    x' = x + h s(x) + sqrt(2 h) z,        h = step sigma_t^2,        s = grad log pi_t = (alpha x0_hat - x) / sigma_t^2.

``step`` is without unit and the same at all noise levels, since sigma_t is the width of what is still unknown at t.
Where exponents sum to W the width is ``sigma_t / sqrt(W)``: choose ``step < 1 / W``.

`Ula` accepts every proposal and is stationary at a density that is off by O(step); `Mala` and `Hmc` accept with the
Metropolis probability of ``pi_t`` and are exact. A sample's acceptance is its own: it never depends on its batch.

Source: Du et al. 2023, "Reduce, Reuse, Recycle", section 4 and appendix (arXiv 2302.11552); Roberts & Tweedie 1996
(doi 10.2307/3318418); Neal 2011, "MCMC using Hamiltonian dynamics" (arXiv 1206.1901).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Product, Union
from diffusion_core.experts.factors import has_log_density, log_density
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.solvers.table import Learned

Correct = Callable[[Tensor, int, Noise], tuple[Tensor, Tensor]]
"""``correct(x, i, noise) -> (x, accepted)``: at the i-th bound time; ``accepted`` (batch,) is the share of proposals."""

LOBATTO: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    0: ((), (0.5,)),
    1: ((0.5,), (1.0 / 6.0, 2.0 / 3.0)),
    2: ((0.5 - math.sqrt(0.05), 0.5 + math.sqrt(0.05)), (1.0 / 12.0, 5.0 / 12.0, 5.0 / 12.0)),
}
"""Gauss-Lobatto rules on [0, 1]: inner nodes; weight of each end, then of each inner node."""


class Corrector(ABC):
    """Some steps of a Markov chain at one time."""

    @abstractmethod
    def bind(self, denoiser: Denoiser, times: Float64[Tensor, " n"], cond: Any = None) -> Correct:
        """Prepare corrections at ``times`` (n,), all > 0.

        Raises:
            WorkbenchError: the field is not Gaussian, has a time for each sample, or has no score at x_t.
        """


@dataclass(frozen=True)
class Ula(Corrector):
    """``n`` unadjusted Langevin steps: n evaluations; stationary variance of a unit Gaussian ``1 / (1 - step / 2)``.

    With ``h = step sigma^2`` and ``sigma^2 s = alpha x0_hat - x`` the proposal is linear in x and x0_hat::

        x' = (1 - step) x + step alpha x0_hat + sqrt(2 step) sigma z
    """

    n: int
    step: float

    def __post_init__(self) -> None:
        _check(self.n, self.step)

    def bind(self, denoiser: Denoiser, times: Float64[Tensor, " n"], cond: Any = None) -> Correct:
        pull = scaled_score(denoiser, times, cond)
        sigmas = Gaussian.schedule_of(denoiser).sigma(times).tolist()

        def correct(x: Tensor, i: int, noise: Noise) -> tuple[Tensor, Tensor]:
            for _ in range(self.n):
                z = noise.normal(x.shape, x.dtype, x.device)
                x = x.add(pull(x, i), alpha=self.step).add_(z, alpha=math.sqrt(2.0 * self.step) * sigmas[i])
            return x, x.new_ones(x.shape[0])

        return correct
