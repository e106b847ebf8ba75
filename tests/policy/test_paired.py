"""Two evaluations start by start, on numbers with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_core.errors import WorkbenchError
from policy.paired import compare


def evaluation(folder: Path, solved: list[int], first: int = 0, gain: float = 0.0) -> Path:
    folder.mkdir()
    rows = [f"{first + i},{0.5 * s + gain},{s},,,9" for i, s in enumerate(solved)]
    header = "seed,max_reward,success,final_coverage,max_coverage,steps"
    (folder / "episodes.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_a_comparison_counts_what_only_one_solved(tmp_path):
    one = evaluation(tmp_path / "a", [1] * 8 + [0, 0], gain=0.25)
    other = evaluation(tmp_path / "b", [1, 1] + [0] * 6 + [1, 0])
    found = compare(one, other)
    assert (found.won, found.lost, found.success.n) == (6, 1, 10)
    assert found.success.value == pytest.approx(0.5) and found.reward.value == pytest.approx(0.25 + 0.25)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)  # six or seven heads of seven, and as many tails
    assert "6 only by the first, 1 only by the second" in str(found)
    same = compare(one, one / "episodes.csv")
    assert same.p == 1.0 and same.success.value == 0.0


def test_only_starts_in_common_are_compared(tmp_path):
    one, other = evaluation(tmp_path / "a", [1, 0, 1]), evaluation(tmp_path / "b", [1, 1, 0], first=2)
    assert compare(one, other).success.n == 1
    with pytest.raises(WorkbenchError, match="no seed in both"):
        compare(one, evaluation(tmp_path / "c", [1], first=50))
    with pytest.raises(WorkbenchError, match="expected the folder of an evaluation"):
        compare(one, tmp_path / "d")
