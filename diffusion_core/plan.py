"""A plan: what a solver does to one field of a state, row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise

Advance = Callable[[Any, Any, int], Any]
"""``advance(x, estimate, i) -> x``: row i of a plan, given the newest sample and what the denoiser made of it."""


class Plan(ABC):
    """The rows of a sampler, fixed before the first of them runs.

    ``times`` (n, ...) and ``reached`` (n, ...) are the times at which row i finds and leaves its sample, float64
    (a dict of such for a state of several fields; axes after the first are per-sample or per-token times).
    ``ends_step`` (n,) is False for a stage inside a step, whose sample is not on the trajectory; ``evaluates``
    (n,) is False for a row that needs no estimate, such as a jump back to more noise. ``bound`` are the times of those
    that do, what `Denoiser.bind` is given: the same tensor whenever it is asked for, so that it can be recognised.
    """

    times: Any
    reached: Any
    bound: Any
    ends_step: Bool[Tensor, " n"]
    evaluates: Bool[Tensor, " n"]

    @property
    @abstractmethod
    def noisy(self) -> bool:
        """Whether any row draws noise."""

    @abstractmethod
    def begin(self, x: Any, noise: Noise | None) -> Advance:
        """One run of the plan from ``x``: its state lives in the function returned and nowhere else.

        Args:
            x: sample at the first time; not modified.
            noise: source of fresh noise; None only if the plan is not `noisy`.
        """


@dataclass(frozen=True, eq=False)
class Together(Plan):
    """One plan per field of a state: every row advances all fields, each by its own solver on its own times.

    Args:
        fields: plan of each field; all have the same number of rows, the same stages, the same evaluations.

    Raises:
        WorkbenchError: their rows do not match.
    """

    fields: dict[str, Plan]

    def __post_init__(self) -> None:
        (first, plan), *others = self.fields.items()
        for name, other in others:
            if not (torch.equal(plan.ends_step, other.ends_step) and torch.equal(plan.evaluates, other.evaluates)):
                raise WorkbenchError(
                    f"plans: got {len(plan.ends_step)} rows for {first!r} and {len(other.ends_step)} for {name!r}, or "
                    "as many with other stages; expected solvers that evaluate the denoiser at the same rows: give all "
                    "fields grids of one length and solvers of one evaluation a step."
                )

    @property
    def bound(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: plan.bound for name, plan in self.fields.items()}

    @property
    def times(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: plan.times for name, plan in self.fields.items()}

    @property
    def reached(self) -> dict[str, Tensor]:  # type: ignore[override]
        return {name: plan.reached for name, plan in self.fields.items()}

    @property
    def ends_step(self) -> Tensor:  # type: ignore[override]
        return next(iter(self.fields.values())).ends_step

    @property
    def evaluates(self) -> Tensor:  # type: ignore[override]
        return next(iter(self.fields.values())).evaluates

    @property
    def noisy(self) -> bool:
        return any(plan.noisy for plan in self.fields.values())

    def begin(self, x: dict[str, Tensor], noise: Noise | None) -> Advance:
        if x.keys() != self.fields.keys():
            raise WorkbenchError(f"state: got the fields {sorted(x)}; expected {sorted(self.fields)}, one per plan.")
        advances = {name: plan.begin(x[name], noise) for name, plan in self.fields.items()}

        def advance(x: dict[str, Tensor], estimate: dict[str, Tensor] | None, i: int) -> dict[str, Tensor]:
            return {name: one(x[name], estimate and estimate[name], i) for name, one in advances.items()}

        return advance
