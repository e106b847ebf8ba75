"""Streaming against drawing anew, with an untrained policy in the real simulator: what is counted and what is alike."""

from __future__ import annotations

import pytest

from policy.experiments.streaming import measured
from tests.policy.runtime.test_streaming import forcing


@pytest.mark.parametrize(("way", "evaluations"), [("stream", 4), ("anew", 16), ("short", 4)])
def test_a_row_counts_its_evaluations_and_its_episodes(way, evaluations):
    row = measured(way, 4, *forcing("task.env.max_steps=12"), n=2)
    assert (row["way"], row["every"], row["steps"], row["evaluations"]) == (way, 4, 16, evaluations)
    assert row["success_rate"].n == 2 and 0.0 <= row["mean_max_score"].value <= 1.0
