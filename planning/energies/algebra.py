"""What a cost is, sums of costs, and which of them is not a number."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core.errors import WorkbenchError

Term = tuple[float, "Cost"]


class Cost(ABC):
    """A differentiable number for every trajectory, on any device and in any dtype."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a message calls it."""

    @abstractmethod
    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        """The cost of trajectories ``xy``, m."""

    def __add__(self, other: Cost) -> Sum:
        return Sum(terms(self) + terms(other))

    def __sub__(self, other: Cost) -> Sum:
        return self + -1.0 * other

    def __rmul__(self, scale: float) -> Sum:
        return Sum(tuple((scale * own, cost) for own, cost in terms(self)))

    def __neg__(self) -> Sum:
        return -1.0 * self


@dataclass(frozen=True, eq=False)
class Sum(Cost):
    """``sum_k scale_k cost_k``; a negative scale seeks what the cost avoids. Written with ``+``, ``-`` and ``*``.

    Raises:
        WorkbenchError: a scale is not finite, or there is no term.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not self.terms or not all(math.isfinite(scale) for scale, _ in self.terms):
            raise WorkbenchError(
                f"sum of energies: got the scales {[scale for scale, _ in self.terms]}; expected one or more finite "
                "numbers: correct the scale."
            )

    @property
    def name(self) -> str:
        text = "".join(
            f" {'-' if scale < 0.0 else '+'} {'' if abs(scale) == 1.0 else f'{abs(scale):g} '}{cost.name}"
            for scale, cost in self.terms
        )
        return text[3:] if text.startswith(" + ") else "-" + text[3:]

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        (scale, first), *others = self.terms
        total = scale * first(xy)
        for scale, cost in others:
            total = total + scale * cost(xy)
        return total


def terms(cost: Cost) -> tuple[Term, ...]:
    """The costs that a cost is the sum of, each with its scale."""
    return cost.terms if isinstance(cost, Sum) else ((1.0, cost),)


@dataclass(frozen=True, eq=False)
class _Checked(Cost):
    cost: Cost

    @property
    def name(self) -> str:
        return self.cost.name

    def __call__(self, xy: Float[Tensor, "batch *robots horizon 2"]) -> Float[Tensor, " batch"]:
        _finite(xy, "trajectories", "lower the strengths, or try the prior alone")
        for _, cost in terms(self.cost):
            with torch.enable_grad():
                leaf = xy.detach().requires_grad_()
                value = cost(leaf)
                if value.shape != xy.shape[:1]:
                    raise WorkbenchError(
                        f"energy {cost.name}: got the shape {tuple(value.shape)}; expected {tuple(xy.shape[:1])}, one "
                        "number for each sample: sum over the other axes."
                    )
                _finite(value, f"energy {cost.name}", "correct this energy or its numbers")
                if value.requires_grad:
                    (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
                    if gradient is not None:
                        _finite(gradient, f"gradient of the energy {cost.name}", "smooth this energy there")
        return self.cost(xy)


def checked(cost: Cost) -> Cost:
    """``cost``, but a term whose value or gradient is not finite is named.

    It looks at every number on the host and asks each term twice: call it once at the start of sampling and once at
    the end, not in the loop.

    Raises:
        WorkbenchError: when it is called; see above.
    """
    return _Checked(cost)


def _finite(values: Tensor, name: str, advice: str) -> None:
    finite = torch.isfinite(values.detach()).flatten(1).all(1) if values.ndim > 1 else torch.isfinite(values.detach())
    if bool(finite.all()):
        return
    sample = int((~finite).nonzero()[0])
    own = values.detach()[sample].flatten()
    raise WorkbenchError(
        f"{name}: got {float(own[~torch.isfinite(own)][0])} in sample {sample} ({int((~finite).sum())} of "
        f"{len(finite)} samples are not finite); expected finite numbers: {advice}."
    )
