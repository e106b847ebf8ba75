"""What environments with cameras are asked for, checked alike."""

from __future__ import annotations

from collections.abc import Sequence


def require_known(cameras: Sequence[str], known: Sequence[str]) -> None:
    """Refuse cameras that an environment does not have.

    Raises:
        ValueError: names the first.
    """
    if unknown := [camera for camera in cameras if camera not in known]:
        raise ValueError(f"cameras: got {unknown[0]!r}; expected some of {', '.join(known)}: choose among them.")


def require_sizes(size: int, max_steps: int) -> None:
    """Refuse pictures or episodes of nothing.

    Args:
        size: side of a picture in pixels.
        max_steps: of an episode.

    Raises:
        ValueError: one is below 1.
    """
    if size < 1 or max_steps < 1:
        raise ValueError(f"size, max_steps: got {size} and {max_steps}; expected both at least 1.")
