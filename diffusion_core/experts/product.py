"""Products, quotients and powers of experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from diffusion_core.denoise import Denoiser, Evaluate, Expert
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.batched import as_long, batched, with_condition
from diffusion_core.experts.factors import Energy, Known, has_log_density, log_density
from diffusion_core.process import Process
from diffusion_core.schedule import Times

Strength = float | Callable[[Times], Times]
"""An exponent: a number, or a function of float64 times (for a state of several fields, of its first one's)."""


@dataclass(frozen=True)
class Product(Denoiser):
    """``prod_k p_k^w_k``, times energies, with some of the data known. Written with ``*``, ``/`` and ``**``.

    Args:
        denoisers: each with its exponent; all of the same process.
        energies: each with its exponent.
        known: applied last, in this order.
    """

    denoisers: tuple[tuple[Denoiser, Strength], ...] = ()
    energies: tuple[tuple[Energy, Strength], ...] = ()
    known: tuple[Known, ...] = ()

    def __post_init__(self) -> None:
        processes = [denoiser.process for denoiser, _ in self.denoisers]
        for other in processes[1:]:
            if other != processes[0]:
                raise WorkbenchError(
                    f"product of experts: got the processes {processes[0]} and {other}; expected one: experts must "
                    "share the schedule (and normalizer) they were trained with."
                )

    @property
    def process(self) -> Process:  # type: ignore[override]
        if not self.denoisers:
            raise WorkbenchError(
                "product of experts: got energies or known values only; expected at least one denoiser among them."
            )
        return self.denoisers[0][0].process

    def exponent(self, t: float) -> float:
        """``sum_k w_k`` at time ``t``."""
        clock = torch.tensor([t], dtype=torch.float64)
        return float(sum(strength_at(strength, clock) for _, strength in self.denoisers))

    def bind(self, times: Any, cond: Any = None) -> Evaluate:
        evaluate = self._combined(times, cond)
        if self.energies:
            evaluate = self._tilted(evaluate, times)
        return self._pinned(evaluate, times) if self.known else evaluate

    @property
    def has_log_density(self) -> bool:
        """False with known values or an energy on x0_hat, which have no density in x_t."""
        noisy = not self.known and all(energy.on == "x_t" for energy, _ in self.energies)
        return noisy and all(has_log_density(denoiser) for denoiser, _ in self.denoisers)

    def bind_log_density(self, times: Any, cond: Any = None) -> Callable[[Any, int], Tensor]:
        """``sum_k w_k log p_k(x_t) - sum_j w_j cost_j(x_t)``, up to a constant.

        Raises:
            WorkbenchError: a denoiser has none (a bare network).
        """
        clock = _clock(times)
        terms = [(log_density(denoiser, times, cond), strength_at(w, clock)) for denoiser, w in self.denoisers]
        costs = [(energy.cost, strength_at(w, clock)) for energy, w in self.energies]

        def total_log_density(x: Any, i: int) -> Tensor:
            total = sum(w[i].to(x.device) * term(x, i) for term, w in terms)
            return total - sum(w[i].to(x.device) * cost(x, clock[i]) for cost, w in costs)  # type: ignore[return-value]

        return total_log_density

    def _combined(self, times: Any, cond: Any) -> Evaluate:
        """The product of the denoisers: for every set of active ones a bound group, for every time its group."""
        process, clock = self.process, _clock(times)
        leaves, weights = merged(self.denoisers, clock, cond)
        active = (weights != 0.0).flatten(2).any(2) if weights.ndim > 2 else weights != 0.0
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for i, row in enumerate(active.tolist()):
            rows_of.setdefault(tuple(k for k, on in enumerate(row) if on), []).append(i)
        bound: list[tuple[Evaluate, int]] = [None] * len(clock)  # type: ignore[list-item]
        for members, rows in rows_of.items():
            if not members:
                raise WorkbenchError(
                    f"product of experts: at t={float(clock[rows[0]].flatten()[0]):.6g} every exponent is 0; expected "
                    "at least one denoiser at every time."
                )
            of_rows = _rows(times, rows)
            evaluate_all = batched([leaves[k] for k in members], of_rows)
            combined = process.combine(weights[rows][:, list(members)], of_rows)
            group = _group(evaluate_all, combined)
            for j, i in enumerate(rows):
                bound[i] = (group, j)

        def evaluate(x: Any, i: int) -> Any:
            group, j = bound[i]
            return group(x, j)

        return evaluate

    def _tilted(self, evaluate: Evaluate, times: Any) -> Evaluate:
        process, clock = self.process, _clock(times)
        clean = process.clean(times)
        strengths = [(energy, _of_samples(strength_at(strength, clock))) for energy, strength in self.energies]

        def chosen(test: Callable[[Energy], bool]) -> list[tuple[Energy, Tensor]]:
            return [(energy, strength) for energy, strength in strengths if test(energy)]

        noisy = chosen(lambda e: e.on == "x_t")
        far = chosen(lambda e: e.on == "x0_hat" and e.through == "denoiser")
        near = chosen(lambda e: e.on == "x0_hat" and e.through == "estimate")
        # host booleans, so that an energy that is off costs nothing, and may be off where it would mean nothing
        on = [i for i in range(len(clock)) if any(bool((s[i] != 0.0).any()) for _, s in strengths)]
        row = {i: j for j, i in enumerate(on)}
        in_x_t = process.tilt(_rows(times, on), "x_t") if on and (noisy or far) else None
        in_x0_hat = process.tilt(_rows(times, on), "x0_hat") if on and near else None

        def tilted(x: Any, i: int) -> Any:
            if i not in row:
                return evaluate(x, i)
            if not in_x_t:
                estimate = evaluate(x, i)
            else:
                with torch.enable_grad():
                    leaf = _leaf(x)
                    estimate = evaluate(leaf, i) if far else None
                    costs = [_weighted(s[i], e.cost(clean(leaf, estimate, i))) for e, s in far]
                    costs += [_weighted(s[i], e.cost(leaf, clock[i])) for e, s in noisy]
                    gradient = _gradient(costs, leaf)
                estimate = in_x_t(x, _detached(estimate) if far else evaluate(x, i), gradient, row[i])
            if in_x0_hat:
                with torch.enable_grad():
                    leaf = _leaf(clean(x, estimate, i))
                    gradient = _gradient([_weighted(s[i], e.cost(leaf)) for e, s in near], leaf)
                estimate = in_x0_hat(x, estimate, gradient, row[i])
            return estimate

        return tilted

    def _pinned(self, evaluate: Evaluate, times: Any) -> Evaluate:
        pin, known = self.process.pin(times), self.known

        def pinned(x: Any, i: int) -> Any:
            for factor in known:
                x = factor.apply(x) if factor.mode == "clean" else x
            estimate = evaluate(x, i)
            for factor in known:
                estimate = pin(x, estimate, factor.mask, factor.values, i)
            return estimate

        return pinned


def product(a: Expert, b: Expert) -> Product:
    """``p_a p_b``, multiplied out."""
    a, b = _as_product(a), _as_product(b)
    return Product(a.denoisers + b.denoisers, a.energies + b.energies, a.known + b.known)


def power(a: Expert, exponent: Strength) -> Product:
    """``p_a^exponent``, multiplied out.

    Raises:
        WorkbenchError: known values have no power.
    """
    a = _as_product(a)
    if a.known:
        raise WorkbenchError("power of an expert: got Known values inside; expected them as a factor outside of it.")
    return Product(
        tuple((denoiser, _times(strength, exponent)) for denoiser, strength in a.denoisers),
        tuple((energy, _times(strength, exponent)) for energy, strength in a.energies),
    )


def start(denoiser: Denoiser, noise: Any, t: float = 1.0) -> Any:
    """A start of sampling for ``denoiser``: base noise made a sample of its prior at time ``t``.

    A product of unit priors with exponents ``w_k`` is a prior of variance ``1 / sum w_k``.

    Raises:
        WorkbenchError: the exponents do not sum to a positive number: there is no such density.
    """
    exponent = denoiser.exponent(t) if isinstance(denoiser, Product) else 1.0
    if exponent <= 0.0:
        raise WorkbenchError(
            f"product of experts: got exponents that sum to {exponent:.4g} at t={t}; expected more than 0: quotients "
            "alone are no density, multiply them onto a prior."
        )
    return denoiser.process.prior(noise, t, exponent)


def _as_product(expert: Expert) -> Product:
    match expert:
        case Product():
            return expert
        case Energy():
            return Product(energies=((expert, 1.0),))
        case Known():
            return Product(known=(expert,))
        case Denoiser():
            return Product(denoisers=((expert, 1.0),))
    raise WorkbenchError(f"product of experts: got {type(expert).__name__}; expected a Denoiser, Energy or Known.")


def _times(a: Strength, b: Strength) -> Strength:
    if callable(a) or callable(b):
        return lambda t: strength_at(a, t) * strength_at(b, t)
    return a * b


def strength_at(strength: Strength, clock: Times) -> Times:
    """An exponent at every time of ``clock``."""
    return strength(clock).to(clock) if callable(strength) else torch.full_like(clock, strength)


def _clock(times: Any) -> Times:
    return next(iter(times.values())) if isinstance(times, dict) else times


def _rows(times: Any, rows: list[int]) -> Any:
    return {name: t[rows] for name, t in times.items()} if isinstance(times, dict) else times[rows]


def merged(
    denoisers: Sequence[tuple[Denoiser, Strength]], clock: Times, cond: Any
) -> tuple[list[tuple[Denoiser, Any]], Tensor]:
    """The different (denoiser, condition) pairs, and their summed exponents (n, K, *extra)."""
    leaves: dict[tuple[int, int], tuple[Denoiser, Any]] = {}
    weights: dict[tuple[int, int], Tensor] = {}
    for denoiser, strength in denoisers:
        leaf = with_condition(denoiser, cond)
        key = (id(leaf[0]), id(leaf[1]))
        leaves[key] = leaf
        weights[key] = weights.get(key, torch.zeros_like(clock)) + strength_at(strength, clock)
    stacked = torch.stack(list(weights.values()), 1)
    bare, conds = zip(*leaves.values(), strict=True)
    # 1 - w with w = 1 may leave a rounding, which is not worth a network
    return list(zip(bare, as_long(conds), strict=True)), torch.where(stacked.abs() < 1e-12, 0.0, stacked)


def _group(
    evaluate_all: Callable[[Any, int], Sequence[Any]], combined: Callable[[Any, Sequence[Any], int], Any]
) -> Evaluate:
    return lambda x, j: combined(x, evaluate_all(x, j), j)


def _leaf(x: Any) -> Any:
    """``x`` cut from its history, its real-valued fields ready to be differentiated by."""
    if isinstance(x, dict):
        return {name: _leaf(field) for name, field in x.items()}
    return x.detach().requires_grad_() if x.is_floating_point() else x


def _detached(x: Any) -> Any:
    return {name: field.detach() for name, field in x.items()} if isinstance(x, dict) else x.detach()


def _of_samples(strengths: Tensor) -> Tensor:
    """One strength for each sample, where there is a time for each token: a cost is of all tokens together.

    Raises:
        WorkbenchError: tokens would have different ones.
    """
    if strengths.ndim < 3:
        return strengths
    each = strengths.flatten(2)
    if bool((each != each[..., :1]).any()):
        raise WorkbenchError(
            "energy: got a strength that changes with time, and tokens with times of their own; expected one "
            "strength for a sample: choose a constant."
        )
    return each[..., 0]


def _weighted(strength: Tensor, cost: Tensor) -> Tensor:
    if cost.ndim != 1:
        raise WorkbenchError(
            f"Energy: got a cost of shape {tuple(cost.shape)}; expected (batch,), one cost per sample."
        )
    return (strength.to(cost.device, cost.dtype).reshape(-1) * cost).sum()


def _gradient(costs: Sequence[Tensor], leaf: Any) -> Any:
    """``-grad sum costs``, zero for fields that the costs do not use."""
    leaves, tree = pytree.tree_flatten(leaf)
    used = [field for field in leaves if field.requires_grad]
    gradients = iter(torch.autograd.grad(costs, used, allow_unused=True))
    found = [next(gradients) if field.requires_grad else None for field in leaves]
    signed = [torch.zeros_like(field) if g is None else -g for field, g in zip(leaves, found, strict=True)]
    return pytree.tree_unflatten(signed, tree)
