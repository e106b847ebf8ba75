"""Inference in a thread of its own while the control loop runs in real time."""

from __future__ import annotations

import copy
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError
from diffusion_core.solvers import Table
from envs.rollout import Observation
from policy.model import Policy
from policy.runtime.execution import Execution, Plans, Record, Timing
from policy.runtime.joins import Join, infer


class Pace:
    """Ticks of a real clock: ``wait`` sleeps until the next one.

    A tick that was missed is not made up for: the next is a whole period after the late one.

    Args:
        period: s.
    """

    def __init__(self, period: float) -> None:
        if not period > 0.0:
            raise WorkbenchError(f"pace: got a period of {period} s; expected more than 0.")
        self.period = period
        self._next = time.perf_counter() + period

    def wait(self) -> float:
        """Sleep until the next tick; return by how much it was missed, s (0 if it was not)."""
        now = time.perf_counter()
        late = max(now - self._next, 0.0)
        if now < self._next:
            time.sleep(self._next - now)
        self._next = max(now, self._next) + self.period
        return late


class Background:
    """A policy that infers in the background: ``act`` never waits for a chunk but for the first one.

        with Background(policy, table, Join(RealTimeChunking())) as mind:
            pace = Pace(0.1)
            while True:
                robot.command(mind.act(robot.observe()))
                pace.wait()

    ``act`` is called once in every control step. The delay of an inference is measured in these steps; the longest of
    the last ten is what the next chunk's frozen prefix is made for.

    Args:
        policy: not modified; a copy in ``precision`` is used.
        table: the sampler.
        join: the strategy where chunks meet.
        seed: of the noise.
        first_delay: control steps expected of an inference before any was measured.
        patience: s to wait for the first chunk, and for the thread to end.
    """

    def __init__(
        self,
        policy: Policy,
        table: Table | None,
        join: Join | None = None,
        seed: int = 0,
        first_delay: int = 1,
        precision: str = "float32",
        patience: float = 60.0,
    ) -> None:
        self.policy = copy.deepcopy(policy).to(torch.float64 if precision == "float64" else torch.float32)
        self.table, self.join, self.patience = table, join or Join(), patience
        timing = Timing(policy.horizon, policy.n_obs_steps, self.join.every or policy.n_action_steps)
        timing.check(first_delay)
        self.execution = Execution(timing, self.join.choose, first_delay)
        self.seconds: list[float] = []
        self._noise = torch.Generator().manual_seed(seed)
        # all below is shared with the thread and touched under this condition only
        self._changed = threading.Condition()
        self._asked: tuple[int, Observation, Plans] | None = None
        self._answer: tuple[int, np.ndarray, float] | None = None
        self._failure: BaseException | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def record(self) -> Record:
        """What was executed."""
        return self.execution.record

    def __enter__(self) -> Background:
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(quiet=error is not None)

    def act(self, observation: Any, lost: bool = False) -> Float[np.ndarray, " action"]:
        """The action of the next control step.

        Args:
            observation: as the environment gives it.
            lost: it did not come; the last one is held.

        Raises:
            WorkbenchError: the inference failed, or its first chunk did not come in time.
        """
        if self._thread is None or self._closing:
            raise WorkbenchError("background inference: got act() while it does not run; expected it inside of `with`.")
        self.execution.see(observation, lost)
        self._collect()
        if self.execution.due:
            step, plans = self.execution.ask()
            with self._changed:
                self._asked = (step, self.execution.window(), plans)
                self._changed.notify_all()
            if step == 0:
                self._first()
        return self.execution.act()

    def _first(self) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: self._answer or self._failure, self.patience)
        if not came:
            raise WorkbenchError(
                f"background inference: got no first chunk in {self.patience} s; expected one: give it more patience, "
                "fewer denoising steps or a smaller network."
            )
        self._collect()

    def _collect(self) -> None:
        with self._changed:
            answer, self._answer = self._answer, None
            failure, self._failure = self._failure, None
        if failure is not None:
            self._closing = True
            raise _described(failure) from failure
        if answer is not None:
            origin, chunk, seconds = answer
            self.seconds.append(seconds)
            self.execution.deliver(chunk, origin)

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self._asked is not None)
                    if self._closing or self._asked is None:
                        return
                    (step, window, plans), self._asked = self._asked, None
                began = time.perf_counter()
                (chunk,) = infer(self.join, self.policy, self.table, [window], [plans], [self._noise])
                with self._changed:
                    self._answer = (step, chunk, time.perf_counter() - began)
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, the control loop must hear of it
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _stop(self, quiet: bool) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is None:
            return
        self._thread.join(self.patience)
        if quiet:
            return
        if self._thread.is_alive():
            raise WorkbenchError(
                f"background inference: got a thread still busy after {self.patience} s; expected it to end: give it "
                "more patience."
            )
        if self._failure is not None:
            raise _described(self._failure) from self._failure


def _described(failure: BaseException) -> WorkbenchError:
    reason = " ".join(str(failure).split()) or "no reason given"
    return WorkbenchError(
        f"background inference: got {type(failure).__name__} in its thread ({reason}); expected a chunk: mend what "
        "failed and start again."
    )
