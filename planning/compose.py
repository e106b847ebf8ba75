"""From priors of trajectories, costs and known places to one expression of the core.

    prior_1^w_1 * prior_2^w_2 * ... * exp(-strength * cost(xy)) * [xy is known somewhere]

Priors may know different things (data of two halves of a maze, of two robots' habits), but they must mean the same
by a number: the same normalizer, time between nodes and schedule. That is checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.autograd import Function

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Known, Product, Strength, power, product
from diffusion_core.normalize import MinMax
from diffusion_core.process import Process
from planning.energies import Cost
from planning.stitch import Stitched, Window

Pace = float | tuple[float, float]
"""Time between nodes, s; or the shortest and the longest that a prior can be told."""


@runtime_checkable
class Prior(Protocol):
    """A denoiser of normalised trajectories, and what its numbers mean."""

    @property
    def denoiser(self) -> Any: ...

    @property
    def normalizer(self) -> Any: ...

    @property
    def horizon(self) -> int: ...

    @property
    def dt(self) -> Any: ...


@runtime_checkable
class Paced(Protocol):
    """A prior that is told its pace, as `planning.prior.TrajectoryPrior`."""

    def at(self, dt: Float[Tensor, " n"], ends: tuple[bool, bool] = (True, True)) -> Denoiser:
        """The expert for trajectories of these paces, whose ends are clean or not."""
        ...


@dataclass(frozen=True, eq=False)
class Described:
    """A denoiser made a `Prior`.

    Args:
        denoiser: over (batch, horizon, 2), normalised.
        normalizer: of places, m.
        horizon: nodes.
        dt: time between nodes, s.
    """

    denoiser: Denoiser
    normalizer: MinMax
    horizon: int
    dt: Pace


@dataclass(frozen=True)
class Robots(Denoiser):
    """A denoiser of one trajectory as that of several, independent ones: (batch, robots, horizon, 2).

    A condition has the trajectories' own batch axis (batch * robots,), the robots of a sample together.
    """

    denoiser: Denoiser

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.denoiser.process

    def bind(self, times: Float64[Tensor, " n"], cond: Any = None) -> Evaluate:
        if times.ndim > 1:
            raise WorkbenchError("robots: got times for each sample; expected one time for the batch.")
        evaluate = self.denoiser.bind(times, cond)
        return lambda x, i: evaluate(x.flatten(0, 1), i).unflatten(0, x.shape[:2])


@dataclass(frozen=True, eq=False)
class InMetres:
    """A cost in m as one of a normalised trajectory, with or without a limit to its gradient.

    Args:
        cost: of places in m.
        normalizer: of places.
        limit: largest norm of each sample's gradient with respect to the *normalised* trajectory, before the strength;
            a longer one is shortened to it. None: none is.
    """

    cost: Cost
    normalizer: MinMax
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit > 0.0:
            raise WorkbenchError(
                f"limit of the gradient of {self.cost.name}: got {self.limit}; expected more than 0, or None: raise it."
            )

    def __call__(self, x: Tensor, t: Any = None) -> Float[Tensor, " batch"]:
        return self._unlimited(x) if self.limit is None else _Limited.apply(x, self._unlimited, self.limit)  # type: ignore[no-untyped-call]

    def _unlimited(self, x: Tensor) -> Float[Tensor, " batch"]:
        return self.cost(self.normalizer.unnormalize(x))


def composed(
    priors: Mapping[str, Prior],
    energies: Sequence[Cost] = (),
    strengths: Sequence[Strength] | None = None,
    known: tuple[Bool[Tensor, "*#mask 2"], Float[Tensor, "*#values 2"]] | None = None,
    space: Literal["x0_hat", "x_t"] = "x0_hat",
    through: Literal["denoiser", "estimate"] = "denoiser",
    weights: Mapping[str, Strength] | None = None,
    limit: float | None = None,
    dt: Float[Tensor, " n"] | None = None,
    mode: Literal["clean", "renoised"] = "clean",
    robots: bool = False,
) -> Product:
    """``prod_k prior_k^w_k * prod_j exp(-strength_j cost_j) * known``, over normalised trajectories.

    Args:
        priors: the experts by name.
        energies: costs of places in m.
        strengths: of each cost, numbers or functions of time; None: 1 each.
        known: mask and values (m) that broadcast over the trajectories.
        space: what the costs are a function of: the denoised estimate, or the noisy sample as it is.
        through: how a gradient at the estimate reaches the sample; see `diffusion_core.experts.Energy`.
        weights: exponents of priors by name; 1 for those left out.
        limit: see `InMetres`; for each cost by itself.
        dt: time between nodes of each trajectory, s, told to priors that want to know.
        mode: "clean" for priors trained with clean ends; they are told which are, from ``known``.
        robots: trajectories are (batch, robots, horizon, 2), the priors those of one robot.

    Raises:
        WorkbenchError: priors differ in what their numbers mean, or a number of arguments does not fit.
    """
    check_shared(priors, paced=dt is not None)
    strengths = [1.0] * len(energies) if strengths is None else strengths
    if len(strengths) != len(energies):
        raise WorkbenchError(
            f"composed: got {len(strengths)} strengths for {len(energies)} energies; expected one for each: add or "
            "drop some."
        )
    unknown = set(weights or {}) - set(priors)
    if unknown:
        raise WorkbenchError(
            f"composed: got weights of {', '.join(sorted(unknown))}; expected some of {', '.join(priors)}: correct the "
            "names."
        )
    normalizer = next(iter(priors.values())).normalizer
    clean = _clean_ends(known[0]) if known is not None and mode == "clean" else (False, False)
    expression = Product()
    for name, prior in priors.items():
        denoiser = _expert(name, prior, dt, clean)
        denoiser = Robots(denoiser) if robots else denoiser
        expression = product(expression, power(denoiser, (weights or {}).get(name, 1.0)))
    for cost, strength in zip(energies, strengths, strict=True):
        expression = product(expression, power(Energy(InMetres(cost, normalizer, limit), space, through), strength))
    if known is not None:
        # in the normalizer's own type: wider values would widen the sample, and a network refuses it
        values = normalizer.normalize(known[1].to(normalizer.low))
        expression = product(expression, Known(known[0].to(values.device), values, mode))
    return expression


def stitched(
    priors: Mapping[str, Prior],
    windows: Sequence[Window],
    order: Sequence[str],
    overlap: Literal["average", "bethe"] = "average",
    marginals: Sequence[str] = (),
    dt: Float[Tensor, " n"] | None = None,
    ends: tuple[bool, bool] = (True, True),
) -> Described:
    """A prior of long trajectories from those of short ones: see `planning.stitch.Stitched`.

    Args:
        priors: by name, also those of overlaps.
        windows: of the segments.
        order: which prior each window gets.
        overlap, marginals: as there; which prior each overlap gets.
        dt: time between nodes of each trajectory, s, told to priors that want to know.
        ends: whether the first node of all and the last one will be clean; told to the priors of those ends.

    Raises:
        WorkbenchError: a name is unknown, a prior has not the length of its window, or priors differ.
    """
    unknown = set(order) | set(marginals)
    unknown -= set(priors)
    if unknown:
        raise WorkbenchError(
            f"stitched: got the priors {', '.join(sorted(unknown))}; expected some of {', '.join(priors)}: correct the "
            "names."
        )
    check_shared(priors, paced=dt is not None, horizon=False)
    horizon = max(stop for _, stop in windows)
    shared = tuple((b[0], a[1]) for a, b in pairwise(windows))
    for name, (first, stop) in [*zip(order, windows, strict=False), *zip(marginals, shared, strict=False)]:
        if priors[name].horizon != stop - first:
            raise WorkbenchError(
                f"stitched: got the prior {name!r} of {priors[name].horizon} nodes for {stop - first}, {first} to "
                f"{stop - 1}; expected as many: move the windows."
            )
    told = [(ends[0] and k == 0, ends[1] and k == len(order) - 1) for k in range(len(order))]
    denoiser = Stitched(
        tuple(_expert(name, priors[name], dt, clean) for name, clean in zip(order, told, strict=True)),
        tuple(windows),
        horizon,
        overlap,
        tuple(_expert(name, priors[name], dt, (False, False)) for name in marginals),
    )
    one = priors[order[0]]
    return Described(denoiser, one.normalizer, horizon, one.dt)


def check_shared(priors: Mapping[str, Prior], paced: bool = False, horizon: bool = True) -> None:
    """Refuse priors that do not mean the same by their numbers.

    Args:
        priors: by name.
        paced: those that are told their pace need not know the same ones.
        horizon: whether they must be equally long.

    Raises:
        WorkbenchError: names the first two that differ, and in what.
    """
    if not priors:
        raise WorkbenchError("priors: got none; expected at least one: add one.")
    (first, one), *others = priors.items()
    for second, two in others:
        differing: list[tuple[str, Any, Any]] = [
            ("normalizer (low, high, m)", _range(one.normalizer), _range(two.normalizer)),
            ("schedule", one.denoiser.schedule, two.denoiser.schedule),
        ]
        if not (paced and isinstance(one, Paced) and isinstance(two, Paced)):
            differing.append(("dt (s)", one.dt, two.dt))
        if horizon:
            differing.append(("horizon", one.horizon, two.horizon))
        for what, a, b in differing:
            if a != b:
                raise WorkbenchError(
                    f"priors {first!r} and {second!r}: got the {what} {a} and {b}; expected the same: train one of "
                    "them anew with the other's."
                )


def _range(normalizer: MinMax) -> tuple[list[float], list[float]]:
    return normalizer.low.tolist(), normalizer.high.tolist()


def _expert(name: str, prior: Prior, dt: Float[Tensor, " n"] | None, clean: tuple[bool, bool]) -> Denoiser:
    """The denoiser of a prior at a pace."""
    if isinstance(prior, Paced) and dt is not None:
        return prior.at(dt, clean)
    if dt is not None and not bool((torch.as_tensor(prior.dt, device=dt.device) - dt).abs().max() <= 1e-6):
        raise WorkbenchError(
            f"prior {name!r}: got the dt {sorted(set(dt.tolist()))} s; expected {prior.dt} s, the only one it knows: "
            "leave it out."
        )
    return prior.denoiser


def _clean_ends(mask: Bool[Tensor, "*#mask 2"]) -> tuple[bool, bool]:
    """Whether the first and the last nodes are known.

    Raises:
        WorkbenchError: in some samples, or by half.
    """
    found = []
    for name, end in (("first", mask[..., 0, :]), ("last", mask[..., -1, :])):
        if bool(end.any() != end.all()):
            raise WorkbenchError(
                f"known: got the {name} node known in part of the samples or by one coordinate; expected all or none, "
                "as priors are told which ends are clean: sample them apart."
            )
        found.append(bool(end.all()))
    return found[0], found[1]


class _Limited(Function):
    """A cost whose gradient is shortened to a limit, sample by sample.

    It is taken in the forward pass, so that neither a strength nor the costs beside it count.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cost: Any, limit: float) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = cost(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        # where all is 0 there is nothing to shorten
        share = (limit / norm.clamp(min=limit)).reshape(-1, *[1] * (x.ndim - 1))
        ctx.save_for_backward(gradient * share)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, of_value: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return of_value.reshape(-1, *[1] * (gradient.ndim - 1)) * gradient, None, None
