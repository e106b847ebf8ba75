"""Executable contracts: does a schedule, process, denoiser or solver of your own keep what the core relies on?

Each check runs the object against exact answers and raises a `WorkbenchError` that names the first promise broken.

    from diffusion_core.contracts import check_schedule
    check_schedule(MySchedule())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import uniform
from diffusion_core.loss import Draws
from diffusion_core.noise import Shared
from diffusion_core.oracles import GaussianData
from diffusion_core.process import Process
from diffusion_core.sample import sample, trajectory
from diffusion_core.schedule import Linear, Schedule
from diffusion_core.solvers import Solver, Table

HOST_READS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")


class HostReads(TorchDispatchMode):
    """Collects the operations inside it that make Python wait for a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in HOST_READS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def check_schedule(schedule: Schedule, tolerance: float = 1e-6) -> None:
    """Check shapes, signs, monotony, derivatives and the inverse in log-SNR.

    Args:
        schedule: any schedule.
        tolerance: relative, of derivatives (against central differences) and of the inverse.

    Raises:
        WorkbenchError: a promise of `Schedule` is broken.
    """
    name = type(schedule).__name__
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    for method in ("alpha", "sigma", "d_alpha", "d_sigma", "log_snr"):
        for times in (t[5], t[5:8], t[5:11].reshape(2, 3)):
            value = getattr(schedule, method)(times)
            _require(
                value.shape == times.shape and value.dtype == torch.float64,
                f"{name}.{method}: got {value.dtype} of shape {tuple(value.shape)} for float64 times of shape "
                f"{tuple(times.shape)}; expected float64 of the times' shape.",
            )
    for method in ("alpha", "sigma"):
        value = getattr(schedule, method)(t)
        _require(
            bool((torch.isfinite(value) & (value >= 0.0)).all()),
            f"{name}.{method}: got {float(value[~(torch.isfinite(value) & (value >= 0.0))][:1].sum())} inside [0, 1]; "
            "expected finite numbers >= 0, at both ends too.",
        )
    alpha, sigma, log_snr = schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t)
    _require(bool((alpha + sigma > 0.0).all()), f"{name}: got alpha = sigma = 0 at a time; expected one of them > 0.")
    _require(
        bool((log_snr.diff() < 0.0).all()),
        f"{name}.log_snr: got values that do not fall at t={float(t[:-1][~(log_snr.diff() < 0.0)][:1].sum()):.2f}; "
        "expected a strictly falling function of t (0 is data, 1 is noise).",
    )
    inner = torch.linspace(0.03, 0.97, 48, dtype=torch.float64)
    back = schedule.t_of_log_snr(schedule.log_snr(inner))
    worst = (back - inner).abs().max()
    _require(
        float(worst) < tolerance,
        f"{name}.t_of_log_snr: got times {float(worst):.2g} away from those whose log-SNR was given; expected the "
        "inverse of log_snr.",
    )
    # small enough for the curvature, large enough for rounding; moved, since a table has no derivative at its knots
    h, at = 1e-6, inner + 1.4e-4
    for method in ("alpha", "sigma"):
        f = getattr(schedule, method)
        slope, claimed = (f(at + h) - f(at - h)) / (2.0 * h), getattr(schedule, "d_" + method)(at)
        worst = ((slope - claimed).abs() / (1.0 + slope.abs())).max()
        _require(
            float(worst) < max(tolerance, 1e-6),
            f"{name}.d_{method}: got a derivative {float(worst):.2g} (relative) away from central differences of "
            f"{method}; expected d {method} / dt.",
        )


def check_process(process: Process, x0: Any, seed: int = 0) -> None:
    """Check that noising is pure, sample by sample and starts at the data, and that experts combine.

    Args:
        process: any process.
        x0: (batch, ...) example of clean data, at least two samples; a dict for a joint process.

    Raises:
        WorkbenchError: a promise of `Process` is broken.
    """
    name, batch = type(process).__name__, len(pytree.tree_leaves(x0)[0])
    _require(batch >= 2, f"check_process: got a batch of {batch}; expected at least 2 samples.")
    noise = process.noise(x0, Draws(torch.Generator().manual_seed(seed)))
    kept = pytree.tree_map(torch.clone, (x0, noise))
    t = torch.linspace(0.2, 0.8, batch, dtype=torch.float64)
    x_t = process.corrupt(x0, t, noise)
    _require(
        _shapes(x_t) == _shapes(x0),
        f"{name}.corrupt: got x_t of {_shapes(x_t)}; expected the shapes of x0, {_shapes(x0)}.",
    )
    _require(
        _equal((x0, noise), kept), f"{name}.corrupt: it changed its input in place; expected x0 and noise untouched."
    )
    _require(
        _equal(process.corrupt(x0, t, noise), x_t),
        f"{name}.corrupt: got another x_t from the same x0, times and base noise; expected a pure function.",
    )
    alone = process.corrupt(_rows(x0, 1), t[1:2], _rows(noise, 1))
    _require(
        _equal(alone, _rows(x_t, 1)),
        f"{name}.corrupt: got another x_t for a sample alone than in its batch; expected every sample on its own.",
    )
    start = process.corrupt(x0, torch.zeros_like(t), noise)
    _require(
        _close(start, x0, 1e-3),
        f"{name}.corrupt: got an x_0 that is not x0; expected (nearly) the data itself at t = 0.",
    )
    prior = process.prior(noise)
    _require(
        _shapes(prior) == _shapes(x0), f"{name}.prior: got {_shapes(prior)}; expected a sample like x0, {_shapes(x0)}."
    )


def check_denoiser(denoiser: Denoiser, x: Any, times: Any = None, cond: Any = None, tolerance: float = 1e-4) -> None:
    """Check that evaluations are pure, sample by sample, and read no tensor on the host.

    Args:
        denoiser: any denoiser.
        x: (batch, ...) example of a noisy sample, at least two.
        times: to bind, (n,) with n >= 2 (a dict of such for several fields); None: 0.8 and 0.3.
        cond: for the whole batch; its leaves have the batch axis first.
        tolerance: absolute, between a sample alone and in its batch (matrix products round differently).

    Raises:
        WorkbenchError: a promise of `Denoiser` is broken.
    """
    name = type(denoiser).__name__
    if times is None:
        times = torch.tensor([0.8, 0.3], dtype=torch.float64)
        times = dict.fromkeys(x, times) if isinstance(x, dict) else times
    _require(hasattr(denoiser, "process"), f"{name}: got no `process`; expected the one whose x_t it denoises.")
    kept = pytree.tree_map(torch.clone, x)
    with torch.no_grad():
        evaluate = denoiser.bind(times, cond)
        evaluate(x, 0)  # whatever is made once, and may read
        with HostReads() as reads:
            first = evaluate(x, 0)
        second = evaluate(x, 1)
        _require(
            not reads.seen,
            f"{name}: evaluate read tensors on the host ({', '.join(sorted(set(reads.seen)))}); expected none: each is "
            "a wait for the device, and a loop that does it cannot be captured. Do it in bind.",
        )
        _require(_equal(x, kept), f"{name}: evaluate changed x in place; expected it untouched.")
        _require(
            _equal(evaluate(x, 0), first) and _equal(evaluate(x, 1), second),
            f"{name}: got another estimate for the same x and time; expected no state between evaluations.",
        )
        finite = all(bool(torch.isfinite(leaf).all()) for leaf in pytree.tree_leaves(first))
        _require(finite, f"{name}: got an estimate that is not finite; expected finite numbers.")
        one = denoiser.bind(times, pytree.tree_map_only(Tensor, lambda leaf: leaf[1:2], cond))(_rows(x, 1), 0)
        _require(
            _close(one, _rows(first, 1), tolerance),
            f"{name}: got another estimate for a sample alone than in its batch; expected every sample on its own.",
        )


def check_solver(solver: Solver, schedule: Schedule | None = None) -> None:
    """Check the table's times, and that its samples converge to the exact ones of Gaussian data.

    Args:
        solver: ``(schedule, grid) -> Table``.
        schedule: to try it under; None: `Linear`.

    Raises:
        WorkbenchError: a promise of a solver is broken.
    """
    name = getattr(solver, "__name__", type(solver).__name__)
    schedule = Linear() if schedule is None else schedule
    grid = uniform(16, 0.95, 0.05)
    table = solver(schedule, grid)
    _require(isinstance(table, Table), f"{name}: got {type(table).__name__}; expected a Table.")
    _require(
        torch.equal(table.reached[table.ends_step][-1], grid[-1]) and torch.equal(table.times[0], grid[0]),
        f"{name}: got a table from t={float(table.times[0])} to {float(table.reached[-1])}; expected the grid's "
        f"{float(grid[0])} and {float(grid[-1])}.",
    )
    try:
        solver(schedule, torch.tensor([0.9, 0.5, 0.6], dtype=torch.float64))
    except WorkbenchError:
        pass
    else:
        raise WorkbenchError(
            f"{name}: it took a grid that turns; expected a WorkbenchError (call solvers.table.pairs)."
        )
    data = GaussianData(schedule, torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64))
    mean, std = data.marginal(0.95)
    z = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # moments matched, so that what is left at the end is the solver's error
    z = (z - z.mean()) / z.std()

    def miss(n: int) -> float:
        plan = solver(schedule, uniform(n, 0.95, 0.05))
        end = sample(data, plan, mean + std * z, noise=Shared(torch.Generator().manual_seed(1)))
        wanted = data.marginal(0.05)
        return float((end.mean() - wanted[0]).abs() + (end.std() - wanted[1]).abs())

    few, many = miss(8), miss(128)
    _require(
        many < 0.02 and many < few + 0.01,
        f"{name}: on Gaussian data mean and deviation miss by {few:.3g} in 8 steps and {many:.3g} in 128; expected an "
        "error that goes to 0.",
    )
    x = mean + std * z[:8]
    kept = x.clone()
    states = list(trajectory(data, table, x, noise=Shared(torch.Generator().manual_seed(1))))
    _require(torch.equal(x, kept), f"{name}: the start was changed in place; expected it untouched.")
    again = sample(data, table, x, noise=Shared(torch.Generator().manual_seed(1)))
    _require(torch.equal(states[-1].x, again), f"{name}: got another end from the same start and noise.")


def _require(kept: bool, message: str) -> None:
    if not kept:
        raise WorkbenchError(message)


def _shapes(state: Any) -> Any:
    return pytree.tree_map(lambda leaf: tuple(leaf.shape), state)


def _rows(state: Any, i: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[i : i + 1], state)


def _equal(a: Any, b: Any) -> bool:
    return all(torch.equal(u, v) for u, v in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))


def _close(a: Any, b: Any, tolerance: float) -> bool:
    return all(
        u.shape == v.shape and bool(((u - v).abs() <= tolerance * (1.0 + v.abs())).all())
        for u, v in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    )
