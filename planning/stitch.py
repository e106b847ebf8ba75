"""Long trajectories from priors of short ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils import _pytree as pytree

from diffusion_core.denoise import Denoiser, Evaluate
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.batched import with_condition
from diffusion_core.process import Process
from diffusion_core.schedule import Schedule

Window = tuple[int, int]
"""First node, and the one after the last."""


@dataclass(frozen=True)
class Stitched(Denoiser):
    """A denoiser of trajectories from those of their segments, which overlap.

    "average" is the mean of the segments' estimates at each node: cheap, and no density's. What lies in an overlap is
    counted half as often at each side as it should, so its score is not that of the joint even at t -> 0.

    "bethe" is ``p(x) = prod_k p_k(x_window_k) / prod_k q_k(x_overlap_k)``, hence scores minus those of the overlaps;
    as each node is then counted once, the estimates add alike::

        x0_hat = sum_k x0_hat_k - sum_k x0_hat_overlap_k

    That is the joint of data for which, given what it is in an overlap, both sides are independent (a Markov chain that
    looks back no more nodes than an overlap has), if segments and overlaps are its marginals. Noised data is not such
    a chain, so it is the exact posterior mean in the limit t -> 0 only (and at any t where segments are independent):
    for a chain that looks back one node the score is off by O(sigma^(2 n)), n nodes in an overlap. What a sampler does
    at high noise is biased, as it is for every product of noised experts: ties of far nodes come out too weak. Widen
    the overlaps, and take Langevin steps after every step (``diffusion_core.correct.Ula``). For 13 nodes of a chain
    with correlation 0.9, root mean square of the score's error as a share of the score, and the correlation of the ends
    (0.28) that a probability flow of 200 steps ends with:

                             bethe                            average
        sigma                0.9    0.5    0.1    ends        0.9    0.5    0.1    ends
        3 of 5 share 1       0.13   0.17   0.022  0.01        0.14   0.17   0.18   0.01
        6, 7, 6 share 3      0.08   0.04   4e-5   0.06        0.10   0.14   0.18   0.03
        2 of 9 share 5       0.04   0.005  6e-8   0.17        0.06   0.10   0.13   0.14

    40 ancestral steps with `Ula(16, 0.2)` end with 0.17 for an overlap of 1 and 0.26 for 3; without, 0.02 and 0.09.

    Args:
        denoisers: of the segments in order; the same one may be used for several, and is then called once for all.
        windows: of the segments: each begins inside of the one before and ends after it, and at most two share a node.
        horizon: nodes of the whole.
        overlap: "average" or "bethe".
        marginals: for "bethe" the denoisers of the overlaps, one less than segments.

    Raises:
        WorkbenchError: the windows do not cover the horizon in this way, or the denoisers do not fit.

    Source: Zhang et al. 2023, "DiffCollage" (arXiv 2303.17076), "bethe"; the average of overlaps:
    Bar-Tal et al. 2023, "MultiDiffusion" (arXiv 2302.08113), with one weight for all.
    """

    denoisers: tuple[Denoiser, ...]
    windows: tuple[Window, ...]
    horizon: int
    overlap: Literal["average", "bethe"] = "average"
    marginals: tuple[Denoiser, ...] = ()

    def __post_init__(self) -> None:
        windows, n = self.windows, len(self.windows)
        chained = all(a < c < b < d for (a, b), (c, d) in pairwise(windows))
        apart = all(first[1] <= third[0] for first, third in zip(windows, windows[2:], strict=False))
        if not (n and windows[0][0] == 0 and windows[-1][1] == self.horizon and chained and apart):
            raise WorkbenchError(
                f"stitching: got the windows {list(windows)} for {self.horizon} nodes; expected the first to begin at "
                f"0, the last to end at {self.horizon}, and each to share nodes with the next one only: move them."
            )
        expected = n - 1 if self.overlap == "bethe" else 0
        if self.overlap not in ("average", "bethe") or (len(self.denoisers), len(self.marginals)) != (n, expected):
            raise WorkbenchError(
                f"stitching: got overlap={self.overlap!r}, {len(self.denoisers)} denoisers and {len(self.marginals)} "
                f"marginals for {n} windows; expected average, or bethe with a marginal for each overlap, and a "
                "denoiser for each window: add or drop some."
            )
        for other in (*self.denoisers, *self.marginals):
            if other.process != self.process:
                raise WorkbenchError(
                    f"stitching: got the processes {self.process} and {other.process}; expected one: segments must "
                    "share the schedule they were trained with."
                )

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.denoisers[0].process

    @property
    def schedule(self) -> Schedule:
        return self.process.schedule  # type: ignore[attr-defined]

    @property
    def overlaps(self) -> tuple[Window, ...]:
        """Nodes that a window shares with the next one."""
        return tuple((second[0], first[1]) for first, second in pairwise(self.windows))

    def bind(self, times: Float64[Tensor, " n"], cond: Any = None) -> Evaluate:
        """As in `Denoiser`; ``cond`` is passed to every segment that is not `given` one of its own."""
        if times.ndim > 1:
            raise WorkbenchError("stitching: got times for each sample; expected one time for the batch.")
        segments = _together(self.denoisers, self.windows, times, cond)
        if self.overlap == "bethe":
            shared = _together(self.marginals, self.overlaps, times, cond)

            def summed(x: Tensor, i: int) -> Tensor:
                total = torch.zeros_like(x)
                for (a, b), estimate in zip(self.windows, segments(x, i), strict=True):
                    total = total + _padded(estimate, a, b, x)
                for (a, b), estimate in zip(self.overlaps, shared(x, i), strict=True):
                    total = total - _padded(estimate, a, b, x)
                return total

            return summed
        count = torch.zeros(self.horizon, dtype=torch.float64)
        for a, b in self.windows:
            count[a:b] += 1.0
        shares: dict[tuple[torch.dtype, torch.device], Tensor] = {}

        def averaged(x: Tensor, i: int) -> Tensor:
            key = (x.dtype, x.device)
            if key not in shares:
                shares[key] = (1.0 / count).to(x)[:, None]
            total = torch.zeros_like(x)
            for (a, b), estimate in zip(self.windows, segments(x, i), strict=True):
                total = total + _padded(estimate, a, b, x)
            return total * shares[key]

        return averaged


def evenly(horizon: int, window: int, overlap: int) -> tuple[Window, ...]:
    """Windows of one length, each sharing ``overlap`` nodes with the next one.

    Raises:
        WorkbenchError: they do not end at the horizon.
    """
    step = window - overlap
    if not (0 < overlap <= window // 2 and horizon >= window and (horizon - window) % step == 0):
        raise WorkbenchError(
            f"windows: got a horizon of {horizon} nodes, windows of {window} that share {overlap}; expected an overlap "
            "of 1 to half a window, and horizon = window + k (window - overlap): change the horizon."
        )
    return tuple((first, first + window) for first in range(0, horizon - window + 1, step))


def _padded(estimate: Tensor, first: int, stop: int, x: Tensor) -> Tensor:
    """The estimate of a window as one of the whole, 0 elsewhere; not in place, as energies differentiate it."""
    return torch.nn.functional.pad(estimate, (0, 0, first, x.shape[-2] - stop))


def _together(
    denoisers: Sequence[Denoiser], windows: Sequence[Window], times: Float64[Tensor, " n"], cond: Any
) -> Callable[[Tensor, int], list[Tensor]]:
    """The estimate of each window; windows of one denoiser, length and kind of condition in one call."""
    groups: dict[tuple[int, int, Any], list[int]] = {}
    leaves = [with_condition(denoiser, cond) for denoiser in denoisers]
    for k, ((bare, own), (a, b)) in enumerate(zip(leaves, windows, strict=True)):
        fields, tree = pytree.tree_flatten(own)
        # what stands for all of a batch cannot be told apart by its place in one
        alone = not all(isinstance(field, Tensor) and field.ndim and len(field) > 1 for field in fields)
        groups.setdefault((id(bare), b - a, k if alone else str(tree)), []).append(k)
    calls = []
    for members in groups.values():
        conds = [leaves[k][1] for k in members]
        joined = conds[0] if len(members) == 1 else pytree.tree_map(lambda *own: torch.cat(own), *conds)
        calls.append((members, leaves[members[0]][0].bind(times, joined)))

    def evaluate_all(x: Tensor, i: int) -> list[Tensor]:
        estimates: dict[int, Tensor] = {}
        for members, evaluate in calls:
            parts = [x[..., windows[k][0] : windows[k][1], :] for k in members]
            together = evaluate(parts[0] if len(parts) == 1 else torch.cat(parts), i)
            estimates.update(zip(members, together.chunk(len(members)), strict=True))
        return [estimates[k] for k in range(len(windows))]

    return evaluate_all
