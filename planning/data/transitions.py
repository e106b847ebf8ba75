"""Transitions of a ball in a maze: one stream, as D4RL records it, with its one mistake mended.

Row ``t`` holds the state before action ``t``, that action, and the goal that was pursued. The ball goes on from one
goal to the next without a reset; ``timeouts`` mark the last step of each goal. D4RL's own ``observations`` repeat a row
after each of these marks (its script looked at the ball before the step and kept that look); here a row is always true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from diffusion_core import download
from diffusion_core.errors import WorkbenchError
from envs.maze2d import GOAL_RADIUS

WIDTHS = {"observations": 4, "actions": 2, "goals": 2}


@dataclass(frozen=True, eq=False)
class Transitions:
    """A stream of steps; `transitions` makes it of arrays whose form is not yet known.

    Args:
        observations: x, y, vx, vy before the step, m and m/s.
        actions: that were carried out, in [-1, 1].
        goals: that were pursued, m.
        timeouts: whether the step is the last one towards its goal.
        provenance: what made it, in words, for logs, checkpoints and reports.
    """

    observations: Float32[np.ndarray, "n 4"]
    actions: Float32[np.ndarray, "n 2"]
    goals: Float32[np.ndarray, "n 2"]
    timeouts: Bool[np.ndarray, " n"]
    provenance: str

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def content_sha256(self) -> str:
        """Digest of the four arrays, whatever file they came from."""
        names = (*WIDTHS, "timeouts")
        return download.content_sha256({name: getattr(self, name) for name in names})

    def rewards(
        self, goal: Float[np.ndarray, "*n 2"] | None = None, reach: float = GOAL_RADIUS
    ) -> Float32[np.ndarray, " n"]:
        """The environment's reward of each step, ``1 if |xy_{t+1} - goal| <= reach else 0``.

        D4RL's files hold ``|xy_t - goal| <= 0.5`` instead, one step early (its issue #194).

        Args:
            goal: one place, (2,) m, as in the single task; None: each step's own goal.
            reach: m.
        """
        # torch comes with it, which the processes that generate transitions can do without
        from planning.trajectories import breaks

        xy = self.observations[:, :2]
        after = np.concatenate([xy[1:], xy[-1:]])
        # what came after the last step of a stream is not recorded; the state before it is at most 5 cm away
        last = self.timeouts & breaks(xy)
        after[last] = xy[last]
        distance = np.linalg.norm(after - (self.goals if goal is None else np.asarray(goal, np.float32)), axis=1)
        return (distance <= reach).astype(np.float32)

    def statistics(self) -> dict[str, float]:
        """How the ball is driven, in numbers that tell one way of collecting from another.

        Returns:
            Mean speed, m/s; share of action components at -1 or 1; their mean size; their autocorrelation after 1, 5
            and 10 steps; mean steps towards one goal.
        """
        actions = self.actions.astype(np.float64)
        around = actions - actions.mean(0)
        found = {
            "speed": float(np.linalg.norm(self.observations[:, 2:], axis=1).mean()),
            "saturated": float((np.abs(actions) >= 1.0).mean()),
            "size": float(np.abs(actions).mean()),
        }
        for lag in (1, 5, 10):
            products = (around[:-lag] * around[lag:]).mean() if len(around) > lag else np.nan
            found[f"autocorrelation {lag}"] = float(products / max((around**2).mean(), 1e-12))
        return found | {"steps of a goal": len(self) / max(int(self.timeouts.sum()), 1)}


def transitions(arrays: Mapping[str, Shaped[np.ndarray, "..."]], provenance: str) -> Transitions:
    """Check arrays and make a stream of them.

    Args:
        arrays: observations, actions, goals and timeouts; any type of number.
        provenance: see `Transitions`.

    Raises:
        WorkbenchError: shapes that do not belong together, no step at all, or values that are not finite.
    """
    found = {name: np.ascontiguousarray(arrays[name], dtype=np.float32) for name in WIDTHS}
    timeouts = np.ascontiguousarray(arrays["timeouts"]).astype(bool)
    n = len(timeouts)
    if timeouts.shape != (n,) or n == 0:
        raise WorkbenchError(f"timeouts: got shape {timeouts.shape}; expected one of at least 1 step: use other data.")
    for name, width in WIDTHS.items():
        if found[name].shape != (n, width):
            raise WorkbenchError(
                f"{name}: got shape {found[name].shape}; expected ({n}, {width}), transitions of a ball in a plane: "
                "use data of a point maze."
            )
        whole = np.isfinite(found[name]).all(1)
        if not whole.all():
            raise WorkbenchError(
                f"{name}: got a value that is not finite at step {int(np.argmin(whole))}; expected finite ones: mend "
                "or drop these steps."
            )
    return Transitions(**found, timeouts=timeouts, provenance=provenance)
