"""Several denoisers at one sample: those that share a network share a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from diffusion_core.denoise import Denoiser
from diffusion_core.experts.factors import Given


def batched(leaves: Sequence[tuple[Denoiser, Any]], times: Any) -> Callable[[Any, int], Sequence[Any]]:
    """Evaluate all leaves; those that share a denoiser, and whose conditions can be stacked, in one call."""
    members: list[list[int]] = []
    for k, (denoiser, own) in enumerate(leaves):
        for group in members:
            first, theirs = leaves[group[0]]
            if first is denoiser and _stackable(own, theirs):
                group.append(k)
                break
        else:
            members.append([k])
    calls = []
    for group in members:
        conds = [leaves[k][1] for k in group]
        stacked = conds[0] if len(group) == 1 else pytree.tree_map(lambda *c: torch.cat(c), *conds)
        calls.append((group, leaves[group[0]][0].bind(_repeated(times, len(group)), stacked)))

    def evaluate_all(x: Any, i: int) -> Sequence[Any]:
        estimates: list[Any] = [None] * len(leaves)
        for group, evaluate in calls:
            if len(group) == 1:
                estimates[group[0]] = evaluate(x, i)
                continue
            together = evaluate(pytree.tree_map(lambda field: torch.cat([field] * len(group)), x), i)  # noqa: B023
            for k, part in zip(group, _chunks(together, len(group)), strict=True):
                estimates[k] = part
        return estimates

    return evaluate_all


def _stackable(a: Any, b: Any) -> bool:
    (of_a, tree_a), (of_b, tree_b) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return tree_a == tree_b and all(
        isinstance(u, Tensor) and isinstance(v, Tensor) and u.shape == v.shape and u.dtype == v.dtype
        for u, v in zip(of_a, of_b, strict=True)
    )


def as_long(conds: Sequence[Any]) -> list[Any]:
    """Conditions of one batch: one that stands for all of it, such as a null, is repeated."""
    batch = max((len(leaf) for leaf in pytree.tree_leaves(conds) if isinstance(leaf, Tensor) and leaf.ndim), default=1)

    def long(leaf: Tensor) -> Tensor:
        return leaf.expand(batch, *leaf.shape[1:]) if leaf.ndim and len(leaf) == 1 else leaf

    return [pytree.tree_map_only(Tensor, long, cond) for cond in conds]


def _repeated(times: Any, n: int) -> Any:
    """Per-sample times for ``n`` copies of the batch; one time for all, or one per token, stays as it is."""
    if isinstance(times, dict):
        return {name: _repeated(t, n) for name, t in times.items()}
    return times if times.ndim == 1 or times.shape[1] == 1 or n == 1 else torch.cat([times] * n, 1)


def _chunks(estimate: Any, n: int) -> list[Any]:
    leaves, tree = pytree.tree_flatten(estimate)
    parts = zip(*(leaf.chunk(n) for leaf in leaves), strict=True)
    return [pytree.tree_unflatten(list(part), tree) for part in parts]


def with_condition(denoiser: Denoiser, cond: Any) -> tuple[Denoiser, Any]:
    """The bare denoiser and the condition it gets."""
    return (denoiser.denoiser, denoiser.cond) if isinstance(denoiser, Given) else (denoiser, cond)
