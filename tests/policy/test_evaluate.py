"""What an evaluation says of episodes whose outcome is known, and how it stands beside what was published."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from envs.rollout import Rollout
from policy import evaluate, published
from policy.config import EvaluateConfig
from policy.report import describe, episode_figure, published_table


def episode(seed: int, coverage: list[float]) -> Rollout:
    """As Push-T scores it: reward = min(coverage / 0.95, 1), solved once above 0.95."""
    rewards = [min(c / 0.95, 1.0) for c in coverage]
    states = [np.zeros(5)] * (len(coverage) + 1)
    return Rollout(seed, rewards, coverage, states, [np.zeros(2)] * len(coverage), max(coverage) > 0.95)


EPISODES = [
    episode(1, [0.0, 0.5, 0.96]),
    episode(2, [0.0, 0.19, 0.095, 0.0]),
    episode(3, [0.3, 0.97]),
    episode(4, [0.38, 0.76, 0.57]),
]


def test_the_metrics_of_four_known_episodes():
    found = evaluate.metrics(EPISODES)
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == pytest.approx(
        {
            "mean_max_score": (1.0 + 0.2 + 1.0 + 0.8) / 4,
            "success_rate": 0.5,
            "final_coverage": (0.96 + 0.0 + 0.97 + 0.57) / 4,
            "max_coverage": (0.96 + 0.19 + 0.97 + 0.76) / 4,
            "steps_to_success": 2.5,
        }
    )
    assert {name: e.n for name, e in found.items()} == dict.fromkeys(found, 4) | {"steps_to_success": 2}
    wilson = stats.binomtest(2, 4).proportion_ci(0.95, method="wilson")
    assert (found["success_rate"].low, found["success_rate"].high) == pytest.approx((wilson.low, wilson.high))
    assert found["mean_max_score"].stderr == pytest.approx(np.std([1.0, 0.2, 1.0, 0.8], ddof=1) / 2)
    assert found["mean_max_score"].low < 0.75 < found["mean_max_score"].high
    assert found["steps_to_success"].unit == "steps"


def test_without_a_solved_episode_steps_to_success_are_unknown_and_not_zero():
    found = evaluate.metrics(EPISODES[1:2])["steps_to_success"]
    assert found.n == 0 and math.isnan(found.value)


def results(**more: Any) -> dict[str, Any]:
    score, success = Estimate(0.873, 0.01, 0.8, 0.9, 50), Estimate(0.62, 0.01, 0.5, 0.7, 50)
    return {"metrics": {"mean_max_score": score, "success_rate": success}} | more


def test_our_row_stands_first_and_the_published_ones_as_published():
    head, rows, mine = published_table(results())
    assert rows[mine] == ["this checkpoint", "0.87 (newest only)", "0.62", "1 x 50"]
    others = [row for i, row in enumerate(rows) if i != mine]
    assert [(row[0], row[1]) for row in others] == [
        ("Diffusion Policy, CNN", "0.95 / 0.91"),
        ("Diffusion Policy, transformer", "0.95 / 0.79"),
        ("IBC", "0.90 / 0.84"),
        ("BET", "0.79 / 0.70"),
        ("LSTM-GMM", "0.67 / 0.61"),
    ]
    assert {row[2] for row in others} == {"not given"} and {len(row) for row in rows} == {len(head)}
    assert "2303.04137" in published.SOURCE


def test_with_aggregates_best_and_mean_over_checkpoints_stand_where_the_papers_do():
    _, rows, mine = published_table(results(aggregates={"max": 0.914, "mean": 0.886, "checkpoints": 10}))
    assert rows[mine][1] == "0.91 / 0.89 of 10"


def test_an_episode_is_described_as_it_went(tmp_path):
    assert describe(EPISODES[0]) == "seed 1: solved in 3 steps, best coverage 0.96"
    assert describe(EPISODES[1]) == "seed 2: not solved in 4 steps, best coverage 0.19"
    assert episode_figure(tmp_path / "a.png", EPISODES).read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_without_a_checkpoint_or_of_more_than_there_are_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="checkpoint: got none"):
        evaluate.run(EvaluateConfig())
    with pytest.raises(WorkbenchError, match="does not exist"):
        evaluate.run(EvaluateConfig(checkpoint=str(tmp_path / "nowhere")))
