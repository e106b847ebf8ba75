"""What all categorical processes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.process import Process, Source
from diffusion_core.process.categorical.kernel import Kernel, inverse_cdf, one_hot, trailing
from diffusion_core.process.categorical.reverse import Reverse, log_x0
from diffusion_core.schedule import Times


class Categorical(Process):
    """Noising of class indices 0 .. classes - 1, with ``states`` >= classes (the rest, such as MASK, not in data)."""

    classes: int
    states: int

    @abstractmethod
    def kernel(self, t: Times, s: Times) -> Kernel:
        """``q(x_t | x_s)`` for ``s <= t``, elementwise."""

    @abstractmethod
    def rates(self, x_t: Int64[Tensor, "*x"], t: Times) -> Float64[Tensor, "*x s"]:
        """Forward jump rates ``R_t(y -> x_t)`` per unit of time, from every other state y; 0 at ``y = x_t``.

        Args:
            x_t: (*t, ...).
            t: times in (0, 1); their shape is the leading axes of ``x_t``.

        Raises:
            WorkbenchError: the process is defined at discrete times only.
        """

    def reverse(self, t: Times, s: Times) -> Reverse:
        """The reverse kernel from ``t`` to ``s < t``, for any estimate."""
        zero = torch.zeros_like(t)
        return Reverse(self.kernel(t, zero), self.kernel(s, zero), self.kernel(t, s))

    def noise(self, x0: Tensor, source: Source) -> Tensor:
        """One float64 uniform per entry."""
        return source.uniform(x0.shape, torch.float64)

    def corrupt(self, x0: Tensor, t: Times, noise: Tensor) -> Tensor:
        """``x_t ~ q(x_t | x0)`` by the inverse of its cumulative distribution.

        The same noise at growing times keeps each entry until its time has come, where classes are kept or redrawn.
        """
        return self.kernel(t, torch.zeros_like(t)).draw(x0, noise)

    def prior(self, noise: Tensor, t: float = 1.0, exponent: float = 1.0) -> Tensor:
        """A draw of `prior_probabilities`, whatever the ``exponent``.

        `combine` gives the estimate of the noised product, not of a product of noised densities, and the noised product
        ends where every process of this kind ends.
        """
        return inverse_cdf(self.prior_probabilities(t).to(noise.device), noise)

    def prior_probabilities(self, t: float = 1.0) -> Float64[Tensor, " s"]:
        """Distribution of ``x_t`` for data spread evenly over the classes: the stationary one, once all is noise."""
        even = torch.zeros(self.states, dtype=torch.float64)
        even[: self.classes] = 1.0 / self.classes
        u = torch.tensor(t, dtype=torch.float64)
        return self.kernel(u, torch.zeros_like(u)).push(even)

    def combine(
        self, weights: Tensor, times: Times
    ) -> Callable[[Tensor, Sequence[Tensor], int], Float64[Tensor, "*x k"]]:
        """``log p(x0 | x_t) = sum_k w_k log p_k(x0 | x_t) + (1 - sum_k w_k) log q(x_t | x0) + constant``, by entry.

        This is the posterior of ``prod_k p_k(x0)^w_k`` exactly, at every t, where the entries of x0 are independent
        (one entry is). The last term takes back the likelihood that is counted ``sum_k w_k`` times: for absorbing
        states it is constant, for uniform noise it is not, and without it a product is too sure of ``x_t``.
        Where entries depend on one another the sum is normalised entry by entry and is exact only for the last
        masked entry (its full conditional); what is not known yet is averaged by each expert alone, as the sum of
        scores does in a Gaussian process. With two experts of weights w and 1 - w this is discrete classifier-free
        guidance, with the jump rates of the process kept; guidance of rates also changes how fast entries jump.

        Source: Schiff et al. 2024 (arXiv 2412.10193); of rates, Nisonoff et al. 2024 (arXiv 2406.01572).
        """
        rest = 1.0 - weights.sum(1)
        rest = torch.where(rest.abs() < 1e-12, 0.0, rest)

        @lru_cache(maxsize=1)
        def on(device: torch.device) -> tuple[Tensor, Tensor, list[Kernel]]:
            zero = torch.zeros_like(times[0], device=device)
            return weights.to(device), rest.to(device), [self.kernel(t, zero) for t in times.to(device)]

        def combined(x: Tensor, estimates: Sequence[Tensor], i: int) -> Tensor:
            w, left, kernels = on(x.device)
            likelihood = kernels[i].column(x)
            of_class = likelihood[..., : self.classes]
            total = _scaled(left[i], of_class.log())
            ruled_out = (of_class <= 0.0) & (of_class > 0.0).any(-1, keepdim=True)
            for k, estimate in enumerate(estimates):
                log_p = log_x0(likelihood, estimate)
                total = total + _scaled(w[i, k], log_p)
                # what one factor excludes stays excluded, whatever infinity a negative exponent makes of another
                ruled_out = ruled_out | (_scaled(w[i, k], log_p) == -torch.inf)
            return total.masked_fill(ruled_out, -torch.inf)

        return combined

    def mix(self, times: Times) -> Callable[[Tensor, Sequence[Tensor], Tensor, int], Float64[Tensor, "*x k"]]:
        """``log p(x0 | x_t) = log sum_k share_k p_k(x0 | x_t)``, by entry."""

        def mixed(x: Tensor, estimates: Sequence[Tensor], shares: Tensor, i: int) -> Tensor:
            likelihood = self.kernel(times[i], torch.zeros_like(times[i])).column(x)
            log_p = torch.stack([log_x0(likelihood, estimate) for estimate in estimates], 1)
            return (shares.log().reshape(*shares.shape, *[1] * x.ndim) + log_p).logsumexp(1)

        return mixed

    def clean(self, times: Times) -> Callable[[Tensor, Tensor, int], Float64[Tensor, "*x k"]]:
        """The probabilities ``p(x0 | x_t)``, on a last axis: what a cost of the data is a function of."""
        return lambda x, logits, i: logits.double().softmax(-1)

    def tilt(self, times: Times, of: Literal["x_t", "x0_hat"]) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
        """``log p(x0 = k | x_t) + gradient_k``: the estimate times ``exp(f)``, f taken linear in the probabilities.

        Exact for a cost that is a sum over entries, of data with independent entries.

        Raises:
            WorkbenchError: a gradient in ``x_t`` is asked for: a class index has none.
        """
        if of == "x_t":
            raise WorkbenchError(
                "energy: got a gradient in x_t for class indices, which have none; expected Energy(cost, on='x0_hat', "
                "through='estimate'), with a cost of the class probabilities."
            )
        return lambda x, logits, gradient, i: logits + gradient

    def pin(self, times: Times) -> Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]:
        """Logits that are 0 at the known class and -inf elsewhere."""

        def pinned(x: Tensor, logits: Tensor, mask: Tensor, values: Tensor, i: int) -> Tensor:
            known = one_hot(values, self.classes).log().to(logits.dtype)
            return torch.where(mask[..., None], known, logits)

        return pinned


def _scaled(weight: Tensor, log_p: Tensor) -> Tensor:
    """``weight log_p`` with ``0 (-inf) = 0``: a factor to the power 0 excludes nothing."""
    weight = trailing(weight, log_p.ndim)
    return torch.where(weight == 0.0, 0.0, weight * log_p)
