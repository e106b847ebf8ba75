"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_core.denoise import Denoiser, Evaluate, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import Noise
from diffusion_core.plan import Plan
from diffusion_core.solvers.table import Table


class State(NamedTuple):
    """One point of a trajectory: the sample at time ``t`` and the newest estimate when it was reached.

    For a state of several fields all three are dicts; for per-sample times ``t`` is nested lists. ``accepted``
    (batch,) is the share of the corrector's proposals that were accepted before ``x``; None without a corrector.
    """

    t: Any
    x: Any
    estimate: Any
    accepted: Tensor | None = None


Correct = Callable[[Any, int, Noise], tuple[Any, Tensor]]
"""``correct(x, i, noise) -> (x, accepted)`` at the i-th bound time; ``accepted`` (batch,) is a share in [0, 1]."""


@runtime_checkable
class Corrector(Protocol):
    """Moves a sample at constant time towards the density there: see ``diffusion_core.correct``."""

    def bind(self, denoiser: Denoiser, times: Any, cond: Any = None) -> Correct:
        """Prepare corrections at ``times`` (n,), all > 0; for a state of several fields a dict of them."""
        ...


def trajectory(
    denoiser: Denoiser,
    plan: Plan,
    x: Any,
    cond: Any = None,
    noise: Noise | None = None,
    corrector: Corrector | None = None,
) -> Iterator[State]:
    """Run a solver's plan, yielding the state at the end of every step.

    Nothing in the loop reads a tensor's value, and all its state is on the stack.

    Args:
        denoiser: what gives the estimates.
        plan: from a solver; see ``diffusion_core.solvers``.
        x: (batch, ...) sample at the plan's first time, or a dict of such; not modified.
        cond: passed to the denoiser.
        noise: source of fresh noise; may be None for a deterministic plan without a corrector.
        corrector: called at the end of every step that does not reach t = 0.

    Raises:
        WorkbenchError: noise is needed and no source was given.
    """
    steps = _steps(denoiser, plan, x, cond, noise, corrector)
    while True:
        # not around the loop: gradients would be off for whoever reads the trajectory, too
        with torch.no_grad():
            state = next(steps, None)
        if state is None:
            return
        yield state


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    plan: Plan,
    x: Any,
    cond: Any = None,
    noise: Noise | None = None,
    corrector: Corrector | None = None,
) -> Any:
    """The end of `trajectory`: (batch, ...), at the plan's last time."""
    # bare steps, so that no_grad is entered once and not at every step
    for state in _steps(denoiser, plan, x, cond, noise, corrector, lean=True):
        x = state.x
    return x


def _steps(
    denoiser: Denoiser,
    plan: Plan,
    x: Any,
    cond: Any,
    noise: Noise | None,
    corrector: Corrector | None,
    lean: bool = False,
) -> Iterator[State]:
    if noise is None and (plan.noisy or corrector is not None):
        raise WorkbenchError(
            "sampling: this solver or corrector adds noise and got noise=None; expected a diffusion_core.noise source."
        )
    correct = None if corrector is None else corrector.bind(denoiser, _inside(plan), cond)
    evaluate, plan = bound(denoiser, plan, cond) if lean else (denoiser.bind(plan.bound, cond), plan)
    return loop(script(plan), evaluate, plan, x, noise, correct)


def _inside(plan: Plan) -> Any:
    """The times at which steps end, short of t = 0, where there is no noise to move in: what correctors are bound to.

    Raises:
        WorkbenchError: samples have times of their own.
    """
    reached = plan.reached if isinstance(plan.reached, dict) else {"": plan.reached}
    if any(times.ndim > 1 for times in reached.values()):
        raise WorkbenchError("sampling: got a corrector and several times at once; expected one time for the batch.")
    rows = plan.ends_step & torch.stack([times > 0.0 for times in reached.values()]).all(0)
    ends = {name: times[rows] for name, times in reached.items()}
    return ends if isinstance(plan.reached, dict) else ends[""]


def bound(denoiser: Denoiser, plan: Plan, cond: Any) -> tuple[Evaluate, Plan]:
    """What `loop` needs for the end of a trajectory alone.

    Nobody asks for the estimates on the way, so a network's own prediction need not be made one: the conversion is
    folded into the table.
    """
    if isinstance(denoiser, NetworkDenoiser) and isinstance(plan, Table) and plan.noise_large is None:
        raw = denoiser.bind_raw(plan.bound, cond)
        if raw is not None:
            evaluate, c_x, c_p = raw
            return evaluate, plan.folded(c_x, c_p)
    return denoiser.bind(plan.bound, cond), plan


def script(plan: Plan) -> list[tuple[bool, bool, Any]]:
    """For every row: does it evaluate, does it end a step, at which time does it arrive; host values."""
    return list(zip(plan.evaluates.tolist(), plan.ends_step.tolist(), _lists(plan.reached), strict=True))


def loop(
    rows: list[tuple[bool, bool, Any]],
    evaluate: Evaluate,
    plan: Plan,
    x: Any,
    noise: Noise | None,
    correct: Correct | None = None,
) -> Iterator[State]:
    """The loop itself, with everything that depends on the times alone already done."""
    advance = plan.begin(x, noise)
    newest, accepted, evaluation, step = None, None, 0, 0
    for i, (evaluates, ends_step, reached) in enumerate(rows):
        if evaluates:
            newest = evaluate(x, evaluation)
            evaluation += 1
        x = advance(x, newest if evaluates else None, i)
        if ends_step:
            if correct is not None and noise is not None:
                accepted = None
                if all(t > 0.0 for t in (reached.values() if isinstance(reached, dict) else (reached,))):
                    x, accepted = correct(x, step, noise)
                    step += 1
            yield State(reached, x, newest, accepted)


def _lists(reached: Any) -> list[Any]:
    if not isinstance(reached, dict):
        return reached.tolist()
    columns = {name: times.tolist() for name, times in reached.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
