"""How one field of a state is noised: its forward kernel, its prior, and how its estimates combine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

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
    def prior(self, noise: Any, t: float = 1.0) -> Any:
        """Base ``noise`` made a sample of ``x_t`` where nothing is left of the data."""

    @abstractmethod
    def combine(self, weights: Tensor, times: Any) -> Callable[[Any, Sequence[Any], int], Any]:
        """The product ``prod_k p_k(x_t)^w_k`` of densities, given each one's estimate.

        Args:
            weights: (n, K, *extra) float64, the exponents at each of the n times.
            times: (n, *extra) float64.

        Returns:
            ``combined(x_t, estimates, i)``: the product's estimate from the K estimates at time i.
        """
