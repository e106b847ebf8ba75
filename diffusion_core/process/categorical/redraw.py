"""Processes that keep a class or draw a new one: absorbing, uniform, marginal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.process.categorical.kernel import Kernel, Redraw, one_hot, trailing
from diffusion_core.process.categorical.process import Categorical
from diffusion_core.process.categorical.survival import check, hazard, survival
from diffusion_core.schedule import Schedule, Times


@dataclass(frozen=True)
class Absorbing(Categorical):
    """Each entry keeps its class with probability ``alpha_t`` and is MASK, the state ``classes``, otherwise.

    Give it a schedule with ``alpha_1 = 0``, or part of the data is still there where sampling starts.

    Source: Austin et al. 2021, appendix A.2.2 (arXiv 2107.03006); Sahoo et al. 2024 (MDLM, arXiv 2406.07524).
    """

    schedule: Schedule
    classes: int

    def __post_init__(self) -> None:
        check(self.schedule, self.classes)

    @property
    def mask(self) -> int:
        """Index of the MASK state."""
        return self.classes

    @property
    def states(self) -> int:  # type: ignore[override]
        return self.classes + 1

    @cached_property
    def _stationary(self) -> Float64[Tensor, " s"]:
        return one_hot(torch.tensor(self.mask), self.states)

    def kernel(self, t: Times, s: Times) -> Kernel:
        return Redraw(survival(self.schedule, t, s), self._stationary.to(t.device))

    def rates(self, x_t: Int64[Tensor, "*x"], t: Times) -> Float64[Tensor, "*x s"]:
        return _redraw_rates(self.schedule, self._stationary, x_t, t)


@dataclass(frozen=True)
class Marginal(Categorical):
    """Each entry keeps its class with probability ``alpha_t`` and is drawn anew from ``probabilities`` otherwise.

    With the classes' frequencies in the data the prior already has the right marginals.

    Source: Vignac et al. 2023 (DiGress, arXiv 2209.14734).
    """

    schedule: Schedule
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", tuple(float(p) for p in self.probabilities))
        check(self.schedule, len(self.probabilities))
        if min(self.probabilities) <= 0.0 or abs(sum(self.probabilities) - 1.0) > 1e-9:
            raise WorkbenchError(
                f"categorical process: got probabilities {list(self.probabilities)[:12]}; expected positive ones that "
                "sum to 1."
            )

    @property
    def classes(self) -> int:  # type: ignore[override]
        return len(self.probabilities)

    @property
    def states(self) -> int:  # type: ignore[override]
        return self.classes

    @cached_property
    def _stationary(self) -> Float64[Tensor, " s"]:
        return torch.tensor(self.probabilities, dtype=torch.float64)

    def kernel(self, t: Times, s: Times) -> Kernel:
        return Redraw(survival(self.schedule, t, s), self._stationary.to(t.device))

    def rates(self, x_t: Int64[Tensor, "*x"], t: Times) -> Float64[Tensor, "*x s"]:
        return _redraw_rates(self.schedule, self._stationary, x_t, t)


def uniform(schedule: Schedule, classes: int) -> Marginal:
    """`Marginal` with all classes alike. Source: Hoogeboom et al. 2021 (arXiv 2102.05379); Austin et al. 2021."""
    check(schedule, classes)
    return Marginal(schedule, (1.0 / classes,) * classes)


def _redraw_rates(schedule: Schedule, stationary: Tensor, x_t: Tensor, t: Times) -> Tensor:
    """``R_t(y -> x_t) = -(alpha_t' / alpha_t) stationary[x_t]`` for ``y != x_t``."""
    rate = trailing(hazard(schedule, t), x_t.ndim) * stationary.to(x_t.device)[x_t]
    return rate[..., None] * (1.0 - one_hot(x_t, len(stationary)))
