"""Published scores of Maze2D and Multi2D, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass

MAZES = ("umaze", "medium", "large")


@dataclass(frozen=True)
class Published:
    """D4RL scores of one method in umaze, medium and large.

    Args:
        method: as its paper names it.
        single: one goal for all episodes (Maze2D).
        multi: a goal for each (Multi2D); empty: not given.
        source: where the numbers stand.
        single_error, multi_error: standard errors, where they are given.
        executed: who acts: "PD", a hand-written controller that follows the plan; "itself", the method's own actions.
    """

    method: str
    single: tuple[float, float, float]
    multi: tuple[float, ...]
    source: str
    single_error: tuple[float, ...] = ()
    multi_error: tuple[float, ...] = ()
    executed: str = "PD"

    def score(self, maze: str, multi: bool) -> float | None:
        """Of one maze; None where none was published."""
        return _of(maze, self.multi if multi else self.single)

    def error(self, maze: str, multi: bool) -> float | None:
        """The standard error of `score`; None where none was published."""
        return _of(maze, self.multi_error if multi else self.single_error)


def _of(maze: str, numbers: tuple[float, ...]) -> float | None:
    return numbers[MAZES.index(maze)] if numbers and maze in MAZES else None


FORCING = "Chen et al. 2024, Diffusion Forcing (arXiv 2407.01392)"
DIFFUSER = "Janner et al. 2022 (arXiv 2205.09991)"
HIERARCHICAL = "Chen et al. 2024, Hierarchical Diffuser (arXiv 2401.02644)"
CORL = "CORL (arXiv 2210.07105), last scores"
ROWS = (
    Published("MPPI", (33.2, 10.2, 5.1), (41.2, 15.4, 8.0), DIFFUSER, executed="itself"),
    Published("CQL", (5.7, 5.0, 12.5), (), DIFFUSER, executed="itself"),
    Published("IQL", (47.4, 34.9, 58.6), (24.8, 12.1, 13.9), DIFFUSER, executed="itself"),
    Published(
        "Diffuser, own actions",
        (6.3, 13.5, 6.3),
        (32.8, 22.0, 6.9),
        FORCING,
        executed="itself",
    ),
    Published("Diffuser", (113.9, 121.5, 123.0), (128.9, 127.2, 132.1), DIFFUSER, (3.1, 2.7, 6.4), (1.8, 3.4, 5.8)),
    Published(
        "Diffusion Forcing without MCG",
        (110.1, 136.1, 142.8),
        (107.7, 145.6, 129.8),
        FORCING,
        (3.9, 10.2, 5.6),
        (4.9, 6.5, 1.5),
    ),
    Published(
        "Diffusion Forcing", (116.7, 149.4, 159.0), (119.1, 152.3, 167.1), FORCING, (2.0, 7.5, 2.7), (4.0, 9.9, 2.7)
    ),
    Published("HDMI", (120.1, 121.8, 128.6), (131.3, 131.6, 135.4), HIERARCHICAL, (2.5, 1.6, 2.9), (1.8, 1.9, 2.5)),
    Published(
        "Hierarchical Diffuser",
        (128.4, 135.6, 155.8),
        (144.1, 140.2, 165.5),
        HIERARCHICAL,
        (3.6, 3.0, 2.5),
        (1.2, 1.6, 0.6),
    ),
    Published("BC", (0.4, 0.8, 2.3), (), CORL, executed="itself"),
    Published("TD3+BC", (29.4, 59.5, 97.1), (), CORL, executed="itself"),
    Published("CQL (CORL)", (-7.0, 2.8, 1.3), (), CORL, executed="itself"),
    Published("IQL (CORL)", (37.7, 35.5, 49.6), (), CORL, executed="itself"),
    Published("AWAC", (68.3, 82.7, 218.9), (), CORL, executed="itself"),
    Published("SAC-N", (130.6, 88.6, 204.8), (), CORL, executed="itself"),
    Published("EDAC", (95.3, 57.0, 95.6), (), CORL, executed="itself"),
    Published("Decision Transformer", (18.1, 31.7, 35.7), (), CORL, executed="itself"),
)
"""Learned from D4RL's own data (1, 2 and 4 million steps); MPPI learns nothing."""

CMDS = (
    ("CMDS's reference: priors of single agents", 0.174, 0.068),
    ("CMDS, best of 256", 0.216, 0.076),
    ("CMDS, Feynman-Kac steering", 0.797, 0.398),
    ("CMDS, guidance (DPS)", 0.964, 0.958),
    ("CMDS, learned control", 0.995, 0.974),
)
"""Joint success of 2 and of 4 agents in PointMaze medium, from priors of single ones. Source: CMDS (2026)."""

LITE = "Dong et al. 2024, DiffuserLite (arXiv 2401.15443)"
HZ = (("Diffuser", 1.3, LITE), ("Decision Diffuser", 0.4, LITE), ("DiffuserLite", 122.2, LITE))
"""Decisions per second, mean over D4RL tasks, on the paper's GPU."""

GIANT_STITCH = (
    ("GCBC, GCIVL, GCIQL, CRL, HIQL", 0.0),
    ("GSC", 0.29),
    ("QRL", 0.50),
    ("CompDiffuser", 0.68),
)
"""Success in OGBench's pointmaze-giant-stitch: Park et al. 2025 (arXiv 2410.20092); GSC's and its own of CompDiffuser's
paper (Luo et al. 2025)."""
