"""The contract: what a solver calls, and what can be multiplied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diffusion_core.process import Process

if TYPE_CHECKING:
    from diffusion_core.experts import Product, Strength, Union

Evaluate = Callable[[Any, int], Any]
"""``evaluate(x, i) -> estimate``: for a Gaussian field x0_hat, given ``x`` at the i-th bound time."""


class Expert(ABC):  # noqa: B024  what its parts do differs; what it can be combined into does not
    """A factor of a density: ``a * b``, ``a / b``, ``a ** w`` and ``a | b`` are densities again.

    What they mean, and where they are exact, stands in ``diffusion_core.experts``.
    """

    def __mul__(self, other: Expert) -> Product:
        from diffusion_core import experts

        return experts.product(self, other)

    def __truediv__(self, other: Expert) -> Product:
        return self * other**-1.0

    def __pow__(self, exponent: Strength) -> Product:
        from diffusion_core import experts

        return experts.power(self, exponent)

    def __or__(self, other: Expert) -> Union:
        from diffusion_core import experts

        return experts.union(self, other)


class Denoiser(Expert):
    """What a state looked like before it was noised by ``process``: an estimate for every ``x_t`` and ``t``.

    For a Gaussian field the estimate is the posterior mean ``E[x0 | x_t]``.
    """

    process: Process

    @abstractmethod
    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        """Prepare evaluations at ``times``.

        Args:
            times: (n, *extra) float64, in any order, repeats allowed; more axes than one are times for each
                sample (n, batch) or token (n, batch, tokens). A dict of such for a state of several fields.
            cond: what the sample is conditioned on, as the denoiser understands it; batch axis first.

        Returns:
            ``evaluate(x, i)``: (batch, ...) -> (batch, ...), for i in 0..n-1.

        Raises:
            WorkbenchError: at one of the times the estimate cannot be recovered.
        """
