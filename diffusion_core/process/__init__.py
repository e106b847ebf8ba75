"""How one field of a state is noised: its forward kernel, its prior, and how its estimates combine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Source(Protocol):
    """Where base randomness comes from: `loss.Draws` in training, a `noise.Noise` bound to a device in sampling."""

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...

    def uniform(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor: ...


class Process(ABC):
    """Noising of one kind of field (or of a dict of fields) in time ``t`` in [0, 1].

    All randomness enters as *base noise*, a tensor drawn by `noise`, so that `corrupt` is a pure function.
    """

    @abstractmethod
    def noise(self, x0: Any, source: Source) -> Any:
        """Base noise for `corrupt` and `prior`, for a state like ``x0``."""

    @abstractmethod
    def corrupt(self, x0: Any, t: Any, noise: Any) -> Any:
        """``x_t ~ q(x_t | x0)``.

        Args:
            x0: (*t, ...) clean data.
            t: float64 times; their shape is the leading axes of ``x0``.
            noise: base noise.
        """

    @abstractmethod
    def prior(self, noise: Any, t: float = 1.0, exponent: float = 1.0) -> Any:
        """Base ``noise`` made a sample of ``x_t`` where nothing is left of the data.

        ``exponent`` is the sum of the exponents of a product of experts: its start is the prior to that power.
        """

    @abstractmethod
    def combine(self, weights: Tensor, times: Any) -> Callable[[Any, Sequence[Any], int], Any]:
        """The product ``prod_k p_k(x_t)^w_k`` of densities, given each one's estimate.

        Args:
            weights: (n, K, *extra) float64, the exponents at each of the n times.
            times: (n, *extra) float64.

        Returns:
            ``combined(x_t, estimates, i)``: the product's estimate from the K estimates at time i.
        """

    @abstractmethod
    def mix(self, times: Any) -> Callable[[Any, Sequence[Any], Tensor, int], Any]:
        """``mixed(x_t, estimates, shares, i)``: the estimate of ``sum_k p_k``, given how likely each made ``x_t``.

        ``shares`` (batch, K) sum to 1: ``p_k(x_t) / sum_j p_j(x_t)``.
        """

    @abstractmethod
    def clean(self, times: Any) -> Callable[[Any, Any, int], Any]:
        """The point estimate of the data that a cost looks at: ``clean(x_t, estimate, i) -> x0_hat``."""

    @abstractmethod
    def tilt(self, times: Any, of: Literal["x_t", "x0_hat"]) -> Callable[[Any, Any, Any, int], Any]:
        """``tilted(x_t, estimate, gradient, i)``: the estimate of ``p(x_t) exp(f)``.

        ``gradient`` is that of ``f`` with respect to ``x_t``, or (``of="x0_hat"``) to what `clean` returns, which is
        then carried to ``x_t`` by a stand-in for the Jacobian of the estimate.
        """

    @abstractmethod
    def pin(self, times: Any) -> Callable[[Any, Any, Tensor, Any, int], Any]:
        """``pinned(x_t, estimate, mask, values, i)``: the estimate of data known to be ``values`` at ``mask``."""


def mean_by_shares(x: Tensor, estimates: Sequence[Tensor], shares: Tensor, i: int) -> Tensor:
    """``sum_k share_k estimate_k``: how posterior means, and how scores, of a mixture go together."""
    shares = shares.to(estimates[0].dtype).reshape(*shares.shape, *[1] * (estimates[0].ndim - 1))
    return (shares * torch.stack(list(estimates), 1)).sum(1)
