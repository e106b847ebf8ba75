"""Recordings: the scripted expert's episodes as the arrays of a replay buffer."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, UInt8

from envs.pusht import PushT
from envs.pusht_generate import Recipe, generate


def record(
    recipe: Recipe, seeds: Sequence[int], n_jobs: int, images: bool
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the seed and the arrays of each solved episode, in seed order.

    Args:
        recipe: what the expert demonstrates.
        seeds: one per episode; those the expert does not solve are left out.
        n_jobs: processes.
        images: also render every observation.
    """
    made = generate(seeds, n_jobs, recipe)
    with _children_deaf_to_interrupts():
        episode = next(made, None)
    while episode is not None:
        arrays = {
            "action": episode.action,
            "state": episode.state,
            "keypoint": episode.keypoint,
            "n_contacts": episode.n_contacts,
        }
        yield episode.seed, arrays | ({"img": render(episode.state)} if images else {})
        episode = next(made, None)


def render(state: Float[np.ndarray, "steps 5"]) -> UInt8[np.ndarray, "steps 96 96 3"]:
    """Draw what the environment shows in each state, but for a pixel or two.

    An observation shows the present state alone, no velocity and no action, so the states suffice; what differs is the
    rounding of a state kept as float32 with its angle in one turn.
    """
    env = PushT(obs="image", render_mode=None)
    return np.stack([env.reset(options={"state": row})[0]["image"] for row in state])


@contextmanager
def _children_deaf_to_interrupts() -> Iterator[None]:
    """Start processes inside: Ctrl-C reaches a whole process group, and only this process knows what to save.

    A blocked signal stays blocked in the processes started meanwhile; one that arrives meanwhile is delivered after.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
