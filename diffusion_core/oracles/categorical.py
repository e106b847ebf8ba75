"""A closed-form world of class indices: a joint table small enough to be enumerated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.process.categorical.kernel import Kernel, inverse_cdf, one_hot
from diffusion_core.process.categorical.process import Categorical


# compared by identity: tensors have no truth value
@dataclass(frozen=True, eq=False)
class CategoricalTable(Denoiser):
    """``x0 ~ table``, a joint distribution of D class indices; everything by summing over all K^D of them.

    Args:
        process: noises each entry for itself.
        table: (K, ..., K), one axis per entry.
    """

    process: Categorical
    table: Float64[Tensor, "..."] = field(repr=False)

    def __post_init__(self) -> None:
        k = self.process.classes
        if set(self.table.shape) != {k} or (self.table < 0.0).any() or abs(float(self.table.sum()) - 1.0) > 1e-9:
            raise WorkbenchError(
                f"categorical table: got shape {list(self.table.shape)} with sum {float(self.table.sum()):.6g}; "
                f"expected {k} classes on every axis and probabilities that sum to 1."
            )

    @cached_property
    def outcomes(self) -> Int64[Tensor, "m d"]:
        """All values of x0, in the order of ``table.flatten()``."""
        k, d = self.process.classes, self.table.ndim
        return torch.cartesian_prod(*[torch.arange(k)] * d).reshape(-1, d)

    def bind(self, times: Float64[Tensor, "n *extra"], cond: Any = None) -> Evaluate:
        kernels, indicator = self._kernels(times), one_hot(self.outcomes, self.process.classes)

        def evaluate(x: Tensor, i: int) -> Tensor:
            likelihood = self._likelihood(kernels[i], x)
            # a class given where no data is left, at t = 1, is known: the limit from smaller times
            reached = (likelihood > 0.0).any(-1, keepdim=True)
            likelihood = torch.where(reached, likelihood, one_hot(x, self.process.classes))
            posterior = self._log_joint(likelihood).softmax(1)
            return torch.einsum("bm,mdk->bdk", posterior, indicator).log()

        return evaluate

    def bind_log_density(
        self, times: Float64[Tensor, "n *extra"], cond: Any = None
    ) -> Callable[[Int64[Tensor, "batch d"], int], Float64[Tensor, " batch"]]:
        """``log p_t(x)`` at the i-th of ``times``, in nats."""
        kernels = self._kernels(times)
        return lambda x, i: self._log_joint(self._likelihood(kernels[i], x)).logsumexp(1)

    def log_density(self, x: Int64[Tensor, "batch d"], t: float) -> Float64[Tensor, " batch"]:
        """``log p_t(x)`` in nats."""
        return self.bind_log_density(torch.tensor([t], dtype=torch.float64))(x, 0)

    def sample(self, noise: Float64[Tensor, " n"]) -> Int64[Tensor, "n d"]:
        """Draws of x0 from uniform ``noise``."""
        return self.outcomes[inverse_cdf(self.table.flatten(), noise)]

    def index(self, x0: Int64[Tensor, "batch d"]) -> Int64[Tensor, " batch"]:
        """Rows of `outcomes`."""
        return reduce(lambda total, entry: total * self.process.classes + entry, x0.unbind(1))

    def _kernels(self, times: Tensor) -> list[Kernel]:
        return [self.process.kernel(t, torch.zeros_like(t)) for t in times]

    def _likelihood(self, from_data: Kernel, x: Tensor) -> Float64[Tensor, "batch d k"]:
        return from_data.column(x)[..., : self.process.classes]

    def _log_joint(self, likelihood: Float64[Tensor, "batch d k"]) -> Float64[Tensor, "batch m"]:
        """``log p(x0) q(x_t | x0)`` for all x0."""
        entries = torch.arange(self.table.ndim)
        return self.table.flatten().log() + likelihood.log()[:, entries, self.outcomes].sum(-1)
