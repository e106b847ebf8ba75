"""Compare two evaluations start by start: ``python -m policy.paired A B``, folders with ``episodes.csv``.

On the same seeds the difference of two policies varies less than either of them.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from diffusion_core.run import launch

logger = logging.getLogger("workbench.policy")


@dataclass(frozen=True)
class Comparison:
    """A against B on the same starts.

    Args:
        won, lost: starts that only A, or only B, solved.
        success, reward: mean of A's minus B's, of whether an episode is solved and of its best reward.
        p: of as many won and lost or more apart, if both were equally likely (exact McNemar test).
    """

    won: int
    lost: int
    success: Estimate
    reward: Estimate
    p: float

    def __str__(self) -> str:
        return (
            f"{self.success.n} starts: success {self.success.value:+.3f} "
            f"[{self.success.low:+.3f}, {self.success.high:+.3f}], {self.won} only by the first, {self.lost} only by "
            f"the second (p = {self.p:.2g}); best reward {self.reward.value:+.4g} "
            f"[{self.reward.low:+.4g}, {self.reward.high:+.4g}]"
        )


def compare(one: Path, other: Path) -> Comparison:
    """The episodes of two evaluations that began alike.

    Raises:
        WorkbenchError: no episodes, or no starts in common.
    """
    a, b = _episodes(one), _episodes(other)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise WorkbenchError(
            f"paired: got {len(a)} episodes in {one} and {len(b)} in {other}, no seed in both; expected the same "
            "starts: evaluate both with the same first_seed."
        )
    solved = [(a[seed][0], b[seed][0]) for seed in seeds]
    won, lost = sum(x > y for x, y in solved), sum(x < y for x, y in solved)
    return Comparison(
        won,
        lost,
        results.mean([float(x - y) for x, y in solved]),
        results.mean([a[seed][1] - b[seed][1] for seed in seeds]),
        float(binomtest(won, won + lost).pvalue) if won + lost else 1.0,
    )


def _episodes(folder: Path) -> Mapping[int, tuple[int, float]]:
    """Of each seed whether it was solved, and its best reward."""
    path = folder if folder.suffix == ".csv" else folder / "episodes.csv"
    if not path.is_file():
        raise WorkbenchError(f"paired: got no {path}; expected the folder of an evaluation: policy.evaluate writes it.")
    with path.open(newline="") as file:
        return {int(row["seed"]): (int(row["success"]), float(row["max_reward"])) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two evaluations start by start.")
    parser.add_argument("one", type=Path, help="folder of an evaluation")
    parser.add_argument("other", type=Path, help="folder of another on the same starts")

    def run() -> None:
        asked = parser.parse_args()
        logger.info("%s", compare(asked.one, asked.other))

    launch(run)


if __name__ == "__main__":
    main()
