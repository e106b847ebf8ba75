"""Trajectories to learn from: windows of a stream of states, at several paces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from envs.maze2d import DT, MAX_SPEED


def breaks(xy: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Where a stream does not go on: the next place is farther than the ball comes in a step, at the last one, too.

    Sources mark the ends of goals, not of streams; a window may show several goals.
    """
    far = np.linalg.norm(np.diff(xy, axis=0), axis=1) > 2.0 * MAX_SPEED * DT
    return np.concatenate([far, [True]])


def within(
    xy: Float[np.ndarray, "n 2"], ends: Bool[np.ndarray, " n"], region: Sequence[float]
) -> tuple[Float[np.ndarray, "m 2"], Bool[np.ndarray, " m"]]:
    """The parts of streams that lie in a region.

    Args:
        xy: places step by step, m.
        ends: which steps are the last of a stream.
        region: x0, y0, x1, y1, m.

    Returns:
        Their places, and which of them are the last of a part.

    Raises:
        WorkbenchError: no place lies in the region.
    """
    inside = np.all((xy >= np.asarray(region[:2])) & (xy <= np.asarray(region[2:])), axis=1)
    if not inside.any():
        raise WorkbenchError(
            f"region: got {list(region)}, in which none of {len(xy)} places lies; expected a part of "
            f"{np.round([*xy.min(0), *xy.max(0)], 2).tolist()}: move it."
        )
    leaves = np.append(~inside[1:], True)
    return xy[inside], (ends | leaves)[inside]


class Trajectories:
    """Every window of ``horizon`` nodes of a stream, at every stride that fits.

    Args:
        xy: places step by step, m.
        horizon: nodes of a window.
        strides: steps between nodes.
        device: of the batches.
        ends: which steps are the last of a stream; None: those that `breaks` finds.
        dt: of a step, s.

    Raises:
        WorkbenchError: no window fits, or a place is not finite.
    """

    def __init__(
        self,
        xy: Float[np.ndarray, "n 2"],
        horizon: int,
        strides: Sequence[int],
        device: torch.device | None = None,
        ends: Bool[np.ndarray, " n"] | None = None,
        dt: float = DT,
    ) -> None:
        if not np.isfinite(xy).all():
            raise WorkbenchError(
                f"trajectories: got a place that is not finite at step {int(np.argmin(np.isfinite(xy).all(1)))}; "
                "expected finite ones: mend or drop these steps."
            )
        last = np.flatnonzero(breaks(xy) if ends is None else ends)
        # steps that are left after each one, up to the end of its stream
        room = last[np.searchsorted(last, np.arange(len(xy)))] - np.arange(len(xy))
        starts = [np.flatnonzero(room >= stride * (horizon - 1)) for stride in strides]
        if not sum(map(len, starts)):
            raise WorkbenchError(
                f"trajectories: got streams of at most {int(room.max()) + 1} steps; expected "
                f"{min(strides) * (horizon - 1) + 1} for {horizon} nodes at stride {min(strides)}: collect longer "
                "ones, or lower horizon or strides."
            )
        self.xy = torch.as_tensor(xy, dtype=torch.float32, device=device)
        self.starts = torch.as_tensor(np.concatenate(starts), device=device)
        every = np.repeat(np.asarray(strides), [len(s) for s in starts])
        self.strides = torch.as_tensor(every, device=device)
        self.nodes = torch.arange(horizon, device=device)
        self.dt = dt

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: Int64[Tensor, " batch"]) -> dict[str, Tensor]:
        """``xy`` (batch, horizon, 2) m and ``dt`` (batch,) s, the time between nodes."""
        rows = rows.to(self.starts.device)
        stride = self.strides[rows]
        return {"xy": self.xy[self.starts[rows, None] + stride[:, None] * self.nodes], "dt": self.dt * stride.float()}
