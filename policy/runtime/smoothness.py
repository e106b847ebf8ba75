"""How smooth the commands are where chunks meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from diffusion_core import results
from diffusion_core.results import Estimate
from policy.runtime.execution import Record


def strides(actions: Float[np.ndarray, "steps action"]) -> Float[np.ndarray, " steps-1"]:
    """``|a_k - a_{k-1}|``, in the action's unit per control step."""
    return np.linalg.norm(np.diff(actions, axis=0), axis=1)


def jerk(actions: Float[np.ndarray, "steps action"], dt: float) -> Float[np.ndarray, " steps-3"]:
    """``|d^3 a / dt^3|`` by third differences, in the action's unit per s^3.

    Args:
        dt: seconds of a control step.
    """
    return np.linalg.norm(np.diff(actions, 3, axis=0), axis=1) / dt**3


def smoothness(records: Sequence[Record], dt: float, unit: str) -> dict[str, Estimate]:
    """The joins of some episodes; every number is a mean over episodes of a mean over the episode's steps.

    ``gap`` is the distance between what was planned for the step of a join before it and after; ``join_stride`` the
    distance between the command at a join and the one before it; ``stride`` the same everywhere else; ``join_ratio``
    the two divided, 1 where joins cannot be told from other steps; ``jerk`` the root mean square. Episodes without a
    join tell nothing of joins and are left out there.

    Args:
        dt: seconds of a control step.
        unit: of actions.
    """
    found: dict[str, list[float]] = {name: [] for name in ("gap", "join_stride", "stride", "join_ratio", "jerk")}
    for record in records:
        actions = np.asarray(record.actions, np.float64)
        moved = strides(actions)
        # the stride to step k has index k - 1
        at = np.zeros(len(moved), bool)
        at[[join - 1 for join in record.joins if 1 <= join <= len(moved)]] = True
        if record.gaps:
            found["gap"].append(float(np.mean(record.gaps)))
        if at.any():
            found["join_stride"].append(float(moved[at].mean()))
        if (~at).any():
            found["stride"].append(float(moved[~at].mean()))
        if at.any() and (~at).any() and moved[~at].mean() > 0.0:
            found["join_ratio"].append(float(moved[at].mean() / moved[~at].mean()))
        if len(actions) > 3:
            found["jerk"].append(float(np.sqrt((jerk(actions, dt) ** 2).mean())))
    units = {"join_ratio": "1", "jerk": f"{unit}/s^3"}
    return {name: results.mean(values, units.get(name, unit)) for name, values in found.items()}
