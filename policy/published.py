"""Published scores, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of a paper's table.

    Args:
        method: as the paper names it.
        best: mean max score of the best checkpoint.
        last_ten: mean over the last ten checkpoints.
    """

    method: str
    best: float
    last_ten: float


SOURCE = "Chi et al. 2023 (arXiv 2303.04137), table 1: state-based Push-T, 206 human demonstrations"
PUSHT = (
    Published("Diffusion Policy, CNN", 0.95, 0.91),
    Published("Diffusion Policy, transformer", 0.95, 0.79),
    Published("IBC", 0.90, 0.84),
    Published("BET", 0.79, 0.70),
    Published("LSTM-GMM", 0.67, 0.61),
)
"""Mean max score over 50 test starts x 3 training seeds. Source: `SOURCE`."""
PUSHT_IMAGE = (
    Published("Diffusion Policy, CNN", 0.91, 0.84),
    Published("Diffusion Policy, transformer", 0.78, 0.66),
    Published("IBC", 0.75, 0.64),
    Published("LSTM-GMM", 0.69, 0.54),
)
"""The same of pictures: the paper's table 2, which has no row of BET."""
