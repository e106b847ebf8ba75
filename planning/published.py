"""Published scores of Maze2D and Multi2D, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """D4RL scores of one method.

    Args:
        method: as its paper names it.
        single: umaze, medium, large, one goal for all episodes.
        multi: the same with a goal for each; empty: not given.
        source: where the numbers stand.
    """

    method: str
    single: tuple[float, float, float]
    multi: tuple[float, ...]
    source: str

    def score(self, maze: str, multi: bool) -> float | None:
        """Of one maze; None where none was published."""
        scores = self.multi if multi else self.single
        return scores[("umaze", "medium", "large").index(maze)] if scores else None


FORCING = "Chen et al. 2024 (arXiv 2407.01392), table 1"
HIERARCHICAL = "Chen et al. 2024 (arXiv 2401.02644), table 1"
ROWS = (
    Published("IQL", (47.4, 34.9, 58.6), (24.8, 12.1, 13.9), FORCING),
    Published("Diffuser", (113.9, 121.5, 123.0), (128.9, 127.2, 132.1), FORCING),
    Published("Diffusion Forcing", (116.7, 149.4, 159.0), (119.1, 152.3, 167.1), FORCING),
    Published("HDMI", (120.1, 121.8, 128.6), (131.3, 131.6, 135.4), HIERARCHICAL),
    Published("Hierarchical Diffuser", (128.4, 135.6, 155.8), (144.1, 140.2, 165.5), HIERARCHICAL),
)
"""Learned from D4RL's own data (1, 2 and 4 million steps), executed by hand-written controllers."""
