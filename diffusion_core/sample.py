"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.plan import Plan


class State(NamedTuple):
    """One point of a trajectory: the sample at time ``t`` and the newest estimate when it was reached.

    For a state of several fields all three are dicts; for per-sample times ``t`` is nested lists.
    """

    t: Any
    x: Any
    estimate: Any


def trajectory(denoiser: Denoiser, plan: Plan, x: Any, cond: Any = None, noise: Noise | None = None) -> Iterator[State]:
    """Run a solver's plan, yielding the state at the end of every step.

    Nothing in the loop reads a tensor's value, and all its state is on the stack.

    Args:
        denoiser: what gives the estimates.
        plan: from a solver; see ``diffusion_core.solvers``.
        x: (batch, ...) sample at the plan's first time, or a dict of such; not modified.
        cond: passed to the denoiser.
        noise: source of fresh noise; may be None for a deterministic plan.

    Raises:
        WorkbenchError: the plan adds noise and no source was given.
    """
    steps = _steps(denoiser, plan, x, cond, noise)
    while True:
        # not around the loop: gradients would be off for whoever reads the trajectory, too
        with torch.no_grad():
            state = next(steps, None)
        if state is None:
            return
        yield state


@torch.no_grad()
def sample(denoiser: Denoiser, plan: Plan, x: Any, cond: Any = None, noise: Noise | None = None) -> Any:
    """The end of `trajectory`: (batch, ...), at the plan's last time."""
    for state in _steps(denoiser, plan, x, cond, noise):
        x = state.x
    return x


def _steps(denoiser: Denoiser, plan: Plan, x: Any, cond: Any, noise: Noise | None) -> Iterator[State]:
    # bare, so that `sample` enters no_grad once and not at every step
    if noise is None and plan.noisy:
        raise WorkbenchError(
            "sampling: this solver adds noise and got noise=None; expected a diffusion_core.noise source."
        )
    evaluate = denoiser.bind(plan.bound, cond)
    advance = plan.begin(x, noise)
    reached, ends, evaluates = _lists(plan.reached), plan.ends_step.tolist(), plan.evaluates.tolist()
    newest, evaluation = None, 0
    for i, (ends_step, evaluated) in enumerate(zip(ends, evaluates, strict=True)):
        if evaluated:
            newest = evaluate(x, evaluation)
            evaluation += 1
        x = advance(x, newest if evaluated else None, i)
        if ends_step:
            yield State(reached[i], x, newest)


def _lists(reached: Any) -> list[Any]:
    if not isinstance(reached, dict):
        return reached.tolist()
    columns = {name: times.tolist() for name, times in reached.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
