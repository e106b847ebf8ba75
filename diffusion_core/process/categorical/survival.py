"""The survival of a class: the one function of time that a categorical process takes from a schedule."""

from __future__ import annotations

import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Schedule, Times


def survival(schedule: Schedule, t: Times, s: Times) -> Times:
    """``alpha_t / alpha_s``: the probability of no jump between s and t."""
    return (schedule.alpha(t) / schedule.alpha(s)).clamp(max=1.0)


def hazard(schedule: Schedule, t: Times) -> Times:
    """``-alpha_t' / alpha_t``: jumps per unit of time."""
    return -schedule.d_alpha(t) / schedule.alpha(t)


def check(schedule: Schedule, classes: int) -> None:
    """Refuse a schedule that is no survival, and fewer than two classes.

    Raises:
        WorkbenchError: ``alpha`` does not start at 1 or does not fall.
    """
    start, end = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    if classes < 2 or abs(start - 1.0) > 1e-9 or not 0.0 <= end < 1.0:
        raise WorkbenchError(
            f"categorical process: got {classes} classes and a schedule {schedule} whose alpha goes from {start:.6g} "
            f"to {end:.6g}; expected at least 2 and a survival that falls from 1, such as RectifiedFlow or Cosine."
        )
