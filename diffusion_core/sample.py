"""The one sampling loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table


class State(NamedTuple):
    """One point of a trajectory: the sample at time ``t`` and the estimate of x0 that led to it."""

    t: float
    x: Tensor
    x0_hat: Tensor


def trajectory(
    denoiser: Denoiser, table: Table, x: Tensor, cond: Any = None, noise: Noise | None = None
) -> Iterator[State]:
    """Run a solver's table, yielding the state at the end of every step.

    ``x <- sum_k A_ik x_{i-k} + sum_k B_ik x0_hat_{i-k} + C_i z``

    Nothing in the loop reads a tensor's value, and all its state is on the stack.

    Args:
        denoiser: what gives x0_hat.
        table: from a solver; see ``diffusion_core.solvers``.
        x: (batch, ...) sample at the table's first time; not modified.
        cond: passed to the denoiser.
        noise: source of fresh noise; may be None for a deterministic table.

    Raises:
        WorkbenchError: the table adds noise and no source was given.
    """
    steps = _steps(denoiser, table, x, cond, noise)
    while True:
        # not around the loop: gradients would be off for whoever reads the trajectory, too
        with torch.no_grad():
            state = next(steps, None)
        if state is None:
            return
        yield state


@torch.no_grad()
def sample(denoiser: Denoiser, table: Table, x: Tensor, cond: Any = None, noise: Noise | None = None) -> Tensor:
    """The end of `trajectory`: (batch, ...), at the table's last time."""
    for state in _steps(denoiser, table, x, cond, noise):
        x = state.x
    return x


def _steps(denoiser: Denoiser, table: Table, x: Tensor, cond: Any, noise: Noise | None) -> Iterator[State]:
    # bare, so that `sample` enters no_grad once and not at every step
    if noise is None and bool((table.noise != 0.0).any()):
        raise WorkbenchError(
            "sampling: this solver adds noise and got noise=None; expected a diffusion_core.noise source."
        )
    evaluate = denoiser.bind(table.times, cond)
    xs: deque[Tensor] = deque([x], maxlen=table.x.shape[1])
    estimates: deque[Tensor] = deque(maxlen=table.x0_hat.shape[1])
    reached = table.reached.tolist()
    # 0-dim tensors: a Python factor is wrapped into one at every call, which takes as long as the product itself
    newest = table.x0_hat[:, 0].to(torch.promote_types(x.dtype, torch.float32)).unbind()
    for i, row in enumerate(table.rows):
        x0_hat = evaluate(xs[0], i)
        estimates.appendleft(x0_hat)
        new = x0_hat * newest[i]
        for k, b in row.x0_hat:
            new.add_(estimates[k], alpha=b)
        for k, a in row.x:
            new.add_(xs[k], alpha=a)
        if row.noise != 0.0 and noise is not None:
            new.add_(noise.normal(new.shape, new.dtype, new.device), alpha=row.noise)
        xs.appendleft(new)
        if row.ends_step:
            yield State(reached[i], new, x0_hat)
