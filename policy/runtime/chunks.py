"""Action chunks by control step, and which of several chunks that speak of a step is obeyed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffusion_core.errors import WorkbenchError


@dataclass(frozen=True, eq=False)
class Chunk:
    """Actions of consecutive control steps.

    Args:
        begins: control step of the first row.
        actions: in the environment's units.
        origin: control step whose observation was the newest when it was drawn.
    """

    begins: int
    actions: Float[np.ndarray, "steps action"]
    origin: int

    @property
    def ends(self) -> int:
        """The first control step that it does not cover."""
        return self.begins + len(self.actions)

    def at(self, step: int) -> Float[np.ndarray, " action"]:
        """The action for a control step that it covers."""
        return self.actions[step - self.begins]

    def covers(self, step: int) -> bool:
        """Whether it speaks of a control step."""
        return self.begins <= step < self.ends


Choose = Callable[[Sequence[Chunk], int], np.ndarray]
"""``choose(chunks, step) -> action``: of the chunks that cover ``step``, oldest first, at least one."""


def newest(chunks: Sequence[Chunk], step: int) -> Float[np.ndarray, " action"]:
    """Obey the newest chunk from the moment it arrives: receding horizon control.

    Source: Chi et al. 2023, section 2.3 (arXiv 2303.04137).
    """
    return chunks[-1].at(step)


@dataclass(frozen=True)
class Ensemble:
    """The weighted mean of all chunks: ``sum_i w_i a_i / sum_i w_i`` with ``w_i = exp(-m i)``, i = 0 the oldest.

    Args:
        m: 0 is the plain mean; the larger, the slower new observations come in.

    Source: Zhao et al. 2023, section IV.A, temporal ensemble (arXiv 2304.13705).
    """

    m: float = 0.01

    def __post_init__(self) -> None:
        if self.m < 0.0:
            raise WorkbenchError(f"ensemble: got m={self.m}; expected a number >= 0.")

    def __call__(self, chunks: Sequence[Chunk], step: int) -> Float[np.ndarray, " action"]:
        w = np.exp(-self.m * np.arange(len(chunks)))
        actions = np.stack([chunk.at(step) for chunk in chunks])
        return ((w / w.sum()) @ actions).astype(actions.dtype)


class ChunkQueue:
    """The chunks that have arrived and are not over.

    Args:
        choose: which of them is obeyed.
    """

    def __init__(self, choose: Choose = newest) -> None:
        self.choose = choose
        self._chunks: list[Chunk] = []

    def push(self, chunk: Chunk) -> None:
        """Take a chunk in.

        Raises:
            WorkbenchError: it is older than one that is here: chunks arrive in the order they were asked for.
        """
        if self._chunks and chunk.origin <= self._chunks[-1].origin:
            raise WorkbenchError(
                f"chunk queue: got a chunk of step {chunk.origin} after one of step {self._chunks[-1].origin}; "
                "expected them in the order of their observations: let one inference run at a time."
            )
        self._chunks.append(chunk)

    def drop_before(self, step: int) -> None:
        """Forget chunks that end before ``step``."""
        self._chunks = [chunk for chunk in self._chunks if chunk.ends > step]

    def covers(self, step: int) -> bool:
        """Whether anything is planned for a step."""
        return any(chunk.covers(step) for chunk in self._chunks)

    def at(self, step: int) -> Float[np.ndarray, " action"]:
        """What is to be done at a step, as far as is known now.

        Raises:
            WorkbenchError: no chunk covers it.
        """
        found = [chunk for chunk in self._chunks if chunk.covers(step)]
        if not found:
            last = max((chunk.ends for chunk in self._chunks), default=None)
            raise WorkbenchError(
                f"chunk queue: got step {step}, but the chunks end before step {last}; expected a chunk that covers "
                "it: replan more often, or take a longer horizon."
            )
        return self.choose(found, step)
