"""The factors a denoiser is multiplied with: costs, known values, conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate, Expert
from diffusion_core.errors import WorkbenchError
from diffusion_core.process import Process


@dataclass(frozen=True)
class Energy(Expert):
    """``exp(-cost)``, a factor of the density of the data (``on="x0_hat"``) or of the noisy sample (``"x_t"``).

    Args:
        cost: ``cost(x0_hat) -> (batch,)``, or ``cost(x_t, t) -> (batch,)`` with t a float64 0-dim tensor (per-sample
            times have their shape); differentiable. A state of several fields comes as a dict.
        on: what the cost is a function of. A cost of the data is asked at the denoised estimate, as in diffusion
            posterior sampling; a noise-aware classifier is a cost of the noisy sample.
        through: how the gradient at x0_hat reaches x_t: "denoiser" differentiates the denoiser (exact, costs a
            backward pass), "estimate" puts a number in place of its Jacobian (free).

    Source: Chung et al. 2023, eq. 10 (arXiv 2209.14687); Bansal et al. 2023 (arXiv 2302.07121); on x_t: Dhariwal &
    Nichol 2021, algorithm 1 (arXiv 2105.05233), Janner et al. 2022, section 3.2 (arXiv 2205.09991).
    """

    cost: Callable[..., Tensor]
    on: Literal["x0_hat", "x_t"] = "x0_hat"
    through: Literal["denoiser", "estimate"] = "denoiser"

    def __post_init__(self) -> None:
        if self.on not in ("x0_hat", "x_t") or self.through not in ("denoiser", "estimate"):
            raise WorkbenchError(
                f"Energy: got on={self.on!r}, through={self.through!r}; expected on x0_hat or x_t, through denoiser or "
                "estimate."
            )


@dataclass(frozen=True)
class Known(Expert):
    """The data is ``values`` wherever ``mask`` is True: a delta function as a factor.

    The estimate there *is* the value, so every solver that reaches t = 0 ends at it, and an ancestral one noises it
    on the way as the training data was noised.

    Args:
        mask: bool, broadcasts over a sample; for a state of several fields a dict (a field left out is free).
        values: the same for the values, in the sample's own (normalised) units.
        mode: what the denoiser is shown at the mask: "renoised", the state as it is, for a denoiser trained
            on fully noised data; "clean", the values themselves, for one trained with clean entries.

    Source: renoised: Song et al. 2021, appendix I.2 (arXiv 2011.13456); clean: Janner et al. 2022, section 3.3
    (arXiv 2205.09991).
    """

    mask: Any
    values: Any
    mode: Literal["renoised", "clean"] = "renoised"

    def __post_init__(self) -> None:
        if self.mode not in ("renoised", "clean"):
            raise WorkbenchError(f"Known: got mode={self.mode!r}; expected renoised or clean.")

    def apply(self, x: Any) -> Any:
        """``x`` with the known values in place."""
        if isinstance(x, dict):
            return {
                name: torch.where(self.mask[name], self.values[name], field) if name in self.mask else field
                for name, field in x.items()
            }
        return torch.where(self.mask, self.values, x)


@dataclass(frozen=True)
class Given(Denoiser):
    """A denoiser with its condition: ``given(model, cond)`` ignores the condition that `sample` passes on."""

    denoiser: Denoiser
    cond: Any

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.denoiser.process

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        return self.denoiser.bind(times, self.cond)

    @property
    def has_log_density(self) -> bool:
        return has_log_density(self.denoiser)

    def bind_log_density(self, times: Any, cond: Any = None) -> Callable[[Any, int], Tensor]:
        return log_density(self.denoiser, times, self.cond)


@runtime_checkable
class HasLogDensity(Protocol):
    """A denoiser that also knows ``log p_t(x_t)`` up to a constant."""

    def bind_log_density(self, times: Any, cond: Any = None) -> Callable[[Any, int], Tensor]:
        """``log_density(x, i)`` -> (batch,), nats, at the i-th of ``times``."""
        ...


def has_log_density(denoiser: Denoiser) -> bool:
    """Whether `log_density` will be given: an expression has one if all its parts have."""
    return isinstance(denoiser, HasLogDensity) and getattr(denoiser, "has_log_density", True)


def log_density(denoiser: Denoiser, times: Any, cond: Any) -> Callable[[Any, int], Tensor]:
    """``log_density(x, i)`` of ``denoiser``.

    Raises:
        WorkbenchError: it has none.
    """
    if not has_log_density(denoiser) or not isinstance(denoiser, HasLogDensity):
        raise WorkbenchError(
            f"log-density: got {type(denoiser).__name__}, which has none; expected a denoiser with bind_log_density "
            "(an oracle, or a network that is the gradient of an energy)."
        )
    return denoiser.bind_log_density(times, cond)


def given(denoiser: Denoiser, cond: Any) -> Given:
    """``denoiser`` conditioned on ``cond``: p(x | cond)."""
    return Given(denoiser, cond)
