"""The table of a sampler.

Every sampler of a Gaussian diffusion is a linear recursion in the samples and the denoiser's estimates so far,

    x_{i+1} = sum_k A_ik x_{i-k} + sum_k B_ik estimate_{i-k} + C_i z,        z ~ N(0, 1),

where ``estimate_i`` is x0_hat at row i's time and at the newest sample. The numbers A, B, C depend on the
schedule and the grid alone. So a solver is a pure function ``(schedule, grid) -> Table``, the loop that runs
it is written once (``diffusion_core.sample``), and what one would test about a solver can be read off its
table without any network.

Inversion is the same solver on the reversed grid; a warm start is a sliced grid; a grid with more axes
``(n + 1, batch)`` or ``(n + 1, batch, tokens)`` gives every sample or token its own times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid, check_grid
from diffusion_core.noise import Noise
from diffusion_core.plan import Advance, Plan
from diffusion_core.predict import align, factor
from diffusion_core.schedule import Schedule, Times


class Row(NamedTuple):
    """One row of a table as host numbers: zeros dropped, so that the loop does only the work there is.

    Pairs are (rows back, number). The newest estimate, which almost every row uses, is not among them.
    """

    x: tuple[tuple[int, float], ...]
    estimate: tuple[tuple[int, float], ...]
    noise: float


class Learned(NamedTuple):
    """An estimate with a learned variance: ``fraction`` interpolates the logarithms, 0 small and 1 large."""

    x0_hat: Tensor
    fraction: Tensor


@dataclass(frozen=True, eq=False)
class Table(Plan):
    """The coefficients of a sampler, float64.

    Args:
        times: time at which row i evaluates the denoiser.
        reached: time of the sample that row i produces.
        x: A; column k multiplies the sample k rows back (0 is the newest).
        estimate: B; column k multiplies the estimate k evaluations back (0 is the newest).
        noise: C; standard deviation of the fresh noise.
        ends_step: False for a stage inside a step (Heun's predictor), whose sample is not on the trajectory.
        evaluates: False for a row without an estimate: its B is 0 and the denoiser is not called.
        noise_large: where the variance is learned, the standard deviation at fraction 1 (``noise`` is at 0).

    Raises:
        WorkbenchError: a coefficient is not finite.
    """

    times: Float64[Tensor, "n *extra"]
    reached: Float64[Tensor, "n *extra"]
    x: Float64[Tensor, "n kx *extra"]
    estimate: Float64[Tensor, "n kb *extra"]
    noise: Float64[Tensor, "n *extra"]
    ends_step: Bool[Tensor, " n"]
    evaluates: Bool[Tensor, " n"]
    noise_large: Float64[Tensor, "n *extra"] | None = None
    rows: tuple[Row, ...] = field(init=False, repr=False)
    bound: Float64[Tensor, "m *extra"] = field(init=False, repr=False)
    _factors: dict[torch.dtype, tuple[Tensor, ...]] = field(init=False, repr=False)
    _columns_of: dict[Any, tuple[list[list[Tensor]], ...]] = field(init=False, repr=False)
    _fold: tuple[Tensor, Tensor, Table] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, values in (("x", self.x), ("estimate", self.estimate), ("noise", self.noise)):
            bad = ~torch.isfinite(values.reshape(len(self.times), -1)).all(1)
            if bad.any():
                i = int(bad.nonzero()[0])
                t, s = (float(v[i].flatten()[0]) for v in (self.times, self.reached))
                raise WorkbenchError(
                    f"solver table: the {name} coefficient of the step from t={t:.6g} to {s:.6g} is not finite; "
                    "expected a grid that does not start at a time without noise (inversion: at a small t > 0) and "
                    "does not end at one without signal."
                )
        # made here and not where it is first read, which may be inside a compiled loop
        object.__setattr__(self, "rows", self._host_rows())
        object.__setattr__(self, "bound", self.times if self.evaluates.all() else self.times[self.evaluates])
        object.__setattr__(self, "_factors", {})
        object.__setattr__(self, "_columns_of", {})
        object.__setattr__(self, "_fold", None)

    @property
    def noisy(self) -> bool:
        return bool((self.noise != 0.0).any())

    def _host_rows(self) -> tuple[Row, ...]:
        if self.times.ndim > 1:
            return ()

        def terms(values: list[float]) -> tuple[tuple[int, float], ...]:
            return tuple((k, v) for k, v in enumerate(values) if v != 0.0)

        return tuple(
            Row(terms(a), terms([0.0, *b[1:]]), c)
            for a, b, c in zip(self.x.tolist(), self.estimate.tolist(), self.noise.tolist(), strict=True)
        )

    def folded(self, c_x: Times, c_p: Times) -> Table:
        """The same sampler for a denoiser that gives its raw ``p`` in place of ``estimate = c_x x + c_p p``.

        The estimate k evaluations back becomes a multiple of p and one of the sample it was made at: two tensor
        operations less in every row, and no division by a small alpha in between.

        Args:
            c_x, c_p: (m,) float64, for each of the m evaluations.
        """
        if self._fold is not None and self._fold[0] is c_x and self._fold[1] is c_p:
            return self._fold[2]
        rows = torch.arange(len(self.times))
        at = rows[self.evaluates]
        newest = self.evaluates.cumsum(0) - 1
        estimate, moved = torch.zeros_like(self.estimate), []
        for k in range(self.estimate.shape[1]):
            which = (newest - k).clamp(min=0)
            there = torch.where(newest >= k, self.estimate[:, k], 0.0)
            estimate[:, k] = there * c_p[which]
            moved.append((rows - at[which], there * c_x[which]))
        width = max([self.x.shape[1], *(int(back[share != 0.0].max()) + 1 for back, share in moved if share.any())])
        x = torch.cat([self.x, self.x.new_zeros(len(rows), width - self.x.shape[1])], 1)
        for back, share in moved:
            x[rows, back.clamp(max=width - 1)] += torch.where(back < width, share, 0.0)
        found = replace(self, x=x, estimate=estimate)
        object.__setattr__(self, "_fold", (c_x, c_p, found))
        return found

    def begin(self, x: Tensor, noise: Noise | None) -> Advance:
        if self.times.ndim > 1:
            return self._columns(x, noise)
        # tuples, not queues: the loop must stay within what can be compiled as a whole
        older: tuple[Tensor, ...] = ()
        estimates: tuple[Tensor, ...] = ()
        n_older, n_estimates = int(self.x.shape[1]) - 1, int(self.estimate.shape[1])
        rows, deviation = self.rows, self._deviation(x)
        # 0-dim tensors: a Python factor is wrapped into one at every call, which takes as long as the product itself
        newest = self._newest(torch.promote_types(x.dtype, torch.float32))

        def advance(x: Tensor, estimate: Tensor | Learned | None, i: int) -> Tensor:
            nonlocal older, estimates
            row = rows[i]
            if estimate is None:
                new = torch.zeros_like(x)
            else:
                x0_hat = estimate.x0_hat if isinstance(estimate, Learned) else estimate
                new = x0_hat * newest[i]
                if n_estimates > 1:
                    estimates = (x0_hat, *estimates)[:n_estimates]
            for k, b in row.estimate:
                new.add_(estimates[k], alpha=b)
            for k, a in row.x:
                new.add_(older[k - 1] if k else x, alpha=a)
            if row.noise != 0.0 and noise is not None:
                z = noise.normal(new.shape, new.dtype, new.device)
                if deviation is None:
                    new.add_(z, alpha=row.noise)
                else:
                    new.addcmul_(z, deviation(estimate, i))
            if n_older:
                older = (x, *older)[:n_older]
            return new

        return advance

    def _aligned(self, x: Tensor) -> tuple[list[list[Tensor]], ...]:
        key = (x.dtype, x.device, x.ndim)
        if key not in self._columns_of:
            self._columns_of[key] = tuple(
                [[align(c, x) for c in row.unbind()] for row in values.unbind()]
                for values in (self.x, self.estimate, self.noise[:, None])
            )
        return self._columns_of[key]

    def _newest(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        if dtype not in self._factors:
            self._factors[dtype] = self.estimate[:, 0].to(dtype).unbind()
        return self._factors[dtype]

    def _columns(self, x: Tensor, noise: Noise | None) -> Advance:
        # every coefficient is a tensor: one number for each sample or token
        older: tuple[Tensor, ...] = ()
        estimates: tuple[Tensor, ...] = ()
        n_older, n_estimates = int(self.x.shape[1]) - 1, int(self.estimate.shape[1])
        of_x, of_estimate, of_noise = self._aligned(x)
        deviation = self._deviation(x)

        def advance(x: Tensor, estimate: Tensor | Learned | None, i: int) -> Tensor:
            nonlocal older, estimates
            new = of_x[i][0] * x
            for a, earlier in zip(of_x[i][1:], older, strict=False):
                new = new + a * earlier
            if estimate is not None:
                x0_hat = estimate.x0_hat if isinstance(estimate, Learned) else estimate
                estimates = (x0_hat, *estimates)[:n_estimates]
            for b, earlier in zip(of_estimate[i], estimates, strict=False):
                new = new + b * earlier
            if noise is not None:
                z = noise.normal(new.shape, new.dtype, new.device)
                new = new + (of_noise[i][0] if deviation is None else deviation(estimate, i)) * z
            older = (x, *older)[:n_older]
            return new

        return advance

    def _deviation(self, like: Tensor) -> Callable[[Tensor | Learned | None, int], Tensor] | None:
        """``exp((1 - fraction) log small + fraction log large)``, or None where the variance is not learned."""
        if self.noise_large is None:
            return None
        # where one of the two is 0 there is no noise at all, whatever the network says
        small, large = self.noise.log(), self.noise_large.log()
        wider = torch.where(self.noise > 0.0, large - small, 0.0)

        def deviation(estimate: Tensor | Learned | None, i: int) -> Tensor:
            if not isinstance(estimate, Learned):
                raise WorkbenchError(
                    "sampling: this table has a learned variance and got a denoiser without one; expected "
                    'NetworkDenoiser(..., variance_axis=...).with_variance(), or ddpm(variance="small" or "large").'
                )
            return torch.exp(factor(small[i], like) + factor(wider[i], like) * estimate.fraction)

        return deviation


class Tabled(Plan):
    """A plan whose increments stand in a ``table``, for a field in which samples are not simply added."""

    table: Table

    @property
    def times(self) -> Tensor:  # type: ignore[override]
        return self.table.times

    @property
    def bound(self) -> Tensor:  # type: ignore[override]
        return self.table.bound

    @property
    def reached(self) -> Tensor:  # type: ignore[override]
        return self.table.reached

    @property
    def ends_step(self) -> Bool[Tensor, " n"]:  # type: ignore[override]
        return self.table.ends_step

    @property
    def evaluates(self) -> Bool[Tensor, " n"]:  # type: ignore[override]
        return self.table.evaluates

    @property
    def noisy(self) -> bool:
        return self.table.noisy


Solver = Callable[[Schedule, Grid], Table]


def pairs(grid: Grid) -> tuple[Times, Times]:
    """The steps of a grid: from ``t`` to ``s``.

    Raises:
        WorkbenchError: the grid is not monotone.
    """
    check_grid(grid)
    return grid[:-1], grid[1:]


def falling_pairs(grid: Grid) -> tuple[Times, Times]:
    """`pairs` of a grid that falls, for a solver that cannot be inverted.

    Raises:
        WorkbenchError: the grid is not monotone, or it rises.
    """
    t, s = pairs(grid)
    if bool((s > t).any()):
        raise WorkbenchError(
            f"solver table: got a rising grid, from t={float(t[0].min()):.6g} to {float(s[-1].max()):.6g}, for a "
            "solver that adds noise; expected a falling one: only a deterministic solver, such as ddim with eta=0, can "
            "be inverted."
        )
    return t, s


def single_step(t: Times, s: Times, x: Times, estimate: Times, noise: Times, noise_large: Times | None = None) -> Table:
    """The table of a solver with one row a step.

    A token of a grid with more axes may stand still for a row (``s = t``): whatever the formula gave there, it
    keeps its value.

    Args:
        t, s: (n, *extra) from and to.
        x: (n, kx, *extra); estimate: (n, kb, *extra); noise: (n, *extra).
    """
    stands = t == s
    keeps = torch.zeros_like(x)
    keeps[:, 0] = 1.0
    always = torch.ones(len(t), dtype=torch.bool)
    return Table(
        times=t,
        reached=s,
        x=torch.where(stands[:, None], keeps, x),
        estimate=torch.where(stands[:, None], 0.0, estimate),
        noise=torch.where(stands, 0.0, noise),
        ends_step=always,
        evaluates=always,
        noise_large=None if noise_large is None else torch.where(stands, 0.0, noise_large),
    )


def joined(*tables: Table) -> Table:
    """One table after another, the history of samples and estimates running on."""

    if any(table.noise_large is not None for table in tables):
        raise WorkbenchError("joined tables: got a learned variance; expected tables whose variance is fixed.")

    def stack(values: list[Tensor]) -> Tensor:
        width = max(v.shape[1] for v in values)
        return torch.cat([torch.cat([v, v.new_zeros(len(v), width - v.shape[1])], 1) for v in values])

    return Table(
        times=torch.cat([t.times for t in tables]),
        reached=torch.cat([t.reached for t in tables]),
        x=stack([t.x for t in tables]),
        estimate=stack([t.estimate for t in tables]),
        noise=torch.cat([t.noise for t in tables]),
        ends_step=torch.cat([t.ends_step for t in tables]),
        evaluates=torch.cat([t.evaluates for t in tables]),
    )
