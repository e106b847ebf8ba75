"""One robot's side of the runtime: what it saw, what it did, what it will do, and when it asks for more."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from diffusion_core.errors import WorkbenchError
from envs.rollout import Observation, stack
from policy.runtime.chunks import Choose, Chunk, ChunkQueue, newest


@dataclass(frozen=True)
class Timing:
    """Which control steps a chunk is for, and when the next is asked for.

    Args:
        horizon: rows of a chunk; its first is for the oldest of ``n_obs_steps`` observations.
        n_obs_steps: observations a chunk is drawn from.
        every: control steps between the beginnings of two inferences, if the first is over by then.
        aligned: False: a chunk is executed from its first action on whenever it arrives, as if it had taken no time:
            what a robot does that knows nothing of latency.
    """

    horizon: int
    n_obs_steps: int
    every: int
    aligned: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.every <= self.ahead:
            raise WorkbenchError(
                f"every: got {self.every}; expected 1 to {self.ahead}, the steps of a chunk of {self.horizon} that lie "
                "ahead."
            )

    @property
    def past(self) -> int:
        """Rows of a chunk that are over when its inference begins."""
        return self.n_obs_steps - 1

    @property
    def ahead(self) -> int:
        """Rows of a chunk from the step at which its inference begins on."""
        return self.horizon - self.past

    def check(self, delay: int) -> None:
        """Refuse a latency at which every chunk ends before the next arrives.

        Raises:
            WorkbenchError: says which number to change.
        """
        lead = delay if self.aligned else 0
        if max(self.every, delay) + lead > self.ahead:
            raise WorkbenchError(
                f"latency: got {delay} steps, with an inference every {self.every} and {self.ahead} steps of a chunk "
                "ahead; expected max(every, latency) + latency to be at most that: replan more often, infer faster or "
                "take a longer horizon."
            )


class Plans(NamedTuple):
    """What is known of a chunk's steps when its inference begins: rows beside those of the new chunk.

    ``actions`` were or will be executed if nothing new arrives (0 where nothing is known), ``known`` says where they
    are, and ``frozen`` where they will have been executed before the new chunk can arrive.
    """

    actions: Float[np.ndarray, "horizon action"]
    known: Bool[np.ndarray, " horizon"]
    frozen: Bool[np.ndarray, " horizon"]


class Forecast:
    """The delay to be expected: the longest of the last few, in control steps.

    Args:
        first: expected before anything was measured.
        window: how many are remembered.

    Source: Black et al. 2025, algorithm 1, line 15 (arXiv 2506.07339).
    """

    def __init__(self, first: int, window: int = 10) -> None:
        self._seen: deque[int] = deque([first], window)

    def observe(self, delay: int) -> None:
        """A delay was measured."""
        self._seen.append(delay)

    def __call__(self) -> int:
        return max(self._seen)


@dataclass
class Record:
    """What was executed.

    Args:
        actions: the commanded action of every step.
        joins: steps at which a chunk was obeyed first that was not before.
        gaps: at each join, the distance between what was planned for that step before and after.
        delays: steps between an inference's beginning and its arrival.
        starved: steps for which nothing was planned, at which the last command was held.
        held: steps whose observation was lost.
    """

    actions: list[np.ndarray] = field(default_factory=list)
    joins: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    starved: int = 0
    held: int = 0


class Execution:
    """The state of one robot; of no clock, no thread and no network.

    In every control step: `see`, then `deliver` if a chunk arrived, then `act`. An inference is due when `due` says so
    after `see`; it is drawn from `window` and `plans`.

    Args:
        timing: of chunks.
        choose: which chunk is obeyed.
        first_delay: expected of the first inference whose delay matters, control steps.
    """

    def __init__(self, timing: Timing, choose: Choose = newest, first_delay: int = 0) -> None:
        self.timing, self.queue, self.forecast = timing, ChunkQueue(choose), Forecast(first_delay)
        self.record = Record()
        self.step = -1
        self._history: list[Observation] = []
        self._asked: int | None = None
        self._waiting = False

    def see(self, observation: Observation, lost: bool = False) -> None:
        """Begin the next control step; a lost observation is replaced by the last one that was seen."""
        self.step += 1
        self.queue.drop_before(self.step)
        if not self._history:
            self._history = [observation] * self.timing.n_obs_steps
            return
        self.record.held += lost
        self._history = [*self._history[1:], self._history[-1] if lost else observation]

    @property
    def due(self) -> bool:
        """Whether an inference should begin now: none is under way, and the last began ``every`` steps ago."""
        return not self._waiting and (self._asked is None or self.step - self._asked >= self.timing.every)

    def window(self) -> Observation:
        """The last observations, (n_obs_steps, ...), oldest first."""
        return stack(self._history)

    def ask(self) -> tuple[int, Plans]:
        """Note that an inference begins now: its step, and what is known of the chunk it will give."""
        plans = self.plans()
        self._asked, self._waiting = self.step, True
        return self.step, plans

    def plans(self) -> Plans:
        """What is known of the steps of a chunk that would be drawn now.

        As long as nothing was executed nothing is frozen: the robot waits for its first chunk.
        """
        begins, done = self.step - self.timing.past, self.record.actions
        rows: list[np.ndarray | None] = []
        for step in range(begins, begins + self.timing.horizon):
            if step < self.step:
                rows.append(done[step] if 0 <= step < len(done) else None)
            else:
                rows.append(self.queue.at(step) if self.queue.covers(step) else None)
        known = np.array([row is not None for row in rows])
        if not known.any():
            return Plans(np.zeros((self.timing.horizon, 0), np.float32), known, known)
        zero = np.zeros_like(next(row for row in rows if row is not None))
        actions = np.stack([zero if row is None else row for row in rows])
        index = np.arange(self.timing.horizon)
        return Plans(actions, known, known & (index < self.timing.past + self.forecast()))

    def deliver(self, actions: Float[np.ndarray, "horizon action"], origin: int) -> None:
        """A chunk whose inference began at step ``origin`` has arrived, to be used from this step on."""
        begins = (origin if self.timing.aligned else self.step) - self.timing.past
        before = self.queue.at(self.step) if self.queue.covers(self.step) else None
        self.queue.push(Chunk(begins, actions, origin))
        self._waiting = False
        if not self.record.actions:
            return
        self.forecast.observe(self.step - origin)
        self.record.delays.append(self.step - origin)
        if before is not None and self.queue.covers(self.step):
            self.record.joins.append(self.step)
            self.record.gaps.append(float(np.linalg.norm(self.queue.at(self.step) - before)))

    def act(self) -> Float[np.ndarray, " action"]:
        """The action of this step. Where nothing is planned the last command is held, and counted as starved.

        Raises:
            WorkbenchError: nothing was ever planned.
        """
        if not self.queue.covers(self.step) and self.record.actions:
            self.record.starved += 1
            action = self.record.actions[-1]
        else:
            action = self.queue.at(self.step)
        self.record.actions.append(action)
        return action
