"""Latency and lost observations without a clock: the runtime at the resolution of control steps.

An inference that begins at step k delivers at step k + d; the robot carries on with what it has. All robots of a
rollout that begin an inference at the same step share one batched call, and each has random numbers of its own, so a
robot's episode does not depend on its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError
from diffusion_core.solvers import Table
from envs.rollout import Observation
from policy.model import Policy
from policy.runtime.execution import Execution, Record, Timing
from policy.runtime.joins import Join, infer

Delay = int | Callable[[np.random.Generator], int]
"""Control steps between the beginning of an inference and its delivery: always the same, or drawn."""


@dataclass(eq=False)
class _Robot:
    """One episode: its execution, its random numbers, and the chunk that is on its way."""

    execution: Execution
    noise: torch.Generator
    chance: np.random.Generator
    coming: tuple[int, np.ndarray, int] | None = None


@dataclass(eq=False)
class Delayed:
    """A policy whose inference takes time, for ``envs.rollout.rollouts``, which calls it in every control step.

    The first chunk of an episode takes no time: the clock begins when the robot has something to do.

    Args:
        policy: not modified; a copy in ``precision`` is used.
        table: the sampler.
        join: the strategy where chunks meet.
        delay: control steps.
        drop: probability that an observation is lost and the last one is held.
        aligned: see `Timing`.
        precision: "float64" makes an episode independent of its batch; "float32" is faster.

    Raises:
        WorkbenchError: at a constant delay chunks would end before the next ones arrive.
    """

    policy: Policy
    table: Table | None
    join: Join = field(default_factory=Join)
    delay: Delay = 0
    drop: float = 0.0
    aligned: bool = True
    precision: str = "float64"
    robots: dict[int, _Robot] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop < 1.0:
            raise WorkbenchError(f"drop: got {self.drop}; expected a probability in [0, 1).")
        if isinstance(self.delay, int) and self.delay < 0:
            raise WorkbenchError(f"delay: got {self.delay}; expected control steps >= 0.")
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        self.policy = copy.deepcopy(self.policy).to(dtype)
        self.timing = Timing(
            self.policy.horizon, self.policy.n_obs_steps, self.join.every or self.policy.n_action_steps, self.aligned
        )
        if isinstance(self.delay, int):
            self.timing.check(self.delay)

    def __call__(self, observations: Observation, seeds: Sequence[int]) -> Float[np.ndarray, "episodes 1 action"]:
        """The action of this control step for each episode.

        Args:
            observations: stacked (episodes, n_obs_steps, ...); only the newest is looked at, the rest is remembered.
        """
        robots = [self._robot(seed) for seed in seeds]
        for i, robot in enumerate(robots):
            robot.execution.see(_newest(observations, i), bool(robot.chance.random() < self.drop))
            self._arrivals(robot)
        due = [robot for robot in robots if robot.execution.due]
        if due:
            asked = [robot.execution.ask() for robot in due]
            chunks = infer(
                self.join,
                self.policy,
                self.table,
                [robot.execution.window() for robot in due],
                [plans for _, plans in asked],
                [robot.noise for robot in due],
            )
            for robot, (step, _), chunk in zip(due, asked, chunks, strict=True):
                d = 0 if step == 0 else self._delay(robot.chance)
                robot.coming = (step + d, chunk, step)
                self._arrivals(robot)
        return np.stack([robot.execution.act() for robot in robots])[:, None]

    @property
    def records(self) -> dict[int, Record]:
        """What each episode's robot did, by seed."""
        return {seed: robot.execution.record for seed, robot in self.robots.items()}

    def _robot(self, seed: int) -> _Robot:
        if seed not in self.robots:
            chance = np.random.default_rng([seed, 0x1A7E])
            first = self.delay if isinstance(self.delay, int) else self._delay(chance)
            execution = Execution(self.timing, self.join.choose, first)
            self.robots[seed] = _Robot(execution, torch.Generator().manual_seed(seed), chance)
        return self.robots[seed]

    def _delay(self, chance: np.random.Generator) -> int:
        d = self.delay if isinstance(self.delay, int) else int(self.delay(chance))
        if d < 0:
            raise WorkbenchError(f"delay: got a drawn {d}; expected control steps >= 0.")
        return d

    def _arrivals(self, robot: _Robot) -> None:
        if robot.coming is not None and robot.coming[0] <= robot.execution.step:
            _, chunk, origin = robot.coming
            robot.coming = None
            robot.execution.deliver(chunk, origin)


def _newest(observations: Observation, i: int) -> Any:
    if isinstance(observations, dict):
        return {key: values[i, -1] for key, values in observations.items()}
    return observations[i, -1]
