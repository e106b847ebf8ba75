"""The experiment on latency: its rows, and what is counted start by start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffusion_core.errors import WorkbenchError
from envs.rollout import Rollout
from policy.experiments.realtime import STRATEGIES, measured, paired


def test_starts_are_compared_one_by_one():
    def episodes(*solved: bool) -> list[Rollout]:
        return [Rollout(seed, [1.0], success=one) for seed, one in enumerate(solved)]

    row = paired({"latency": 4}, episodes(True, False, True, True), episodes(True, True, True, False))
    assert (row["lost"], row["won"], row["latency"]) == (1, 1, 4)
    assert row["kept"] == pytest.approx(3 / 3)


def test_a_row_tells_of_its_joins_and_lost_observations(shipped):
    task = replace(shipped.config.task, env={**shipped.config.task.env, "max_steps": 24})
    config = replace(shipped.config, task=task)
    row, episodes = measured("rtc", 3, shipped.policy, config, [100_000, 100_001], 6, drop=0.3)
    assert [e.steps for e in episodes] == [24, 24]
    # chunks join at steps 9, 15 and 21 of each episode
    assert row["joins"]["gap"].n == 2 and row["joins"]["gap"].value > 0.0
    assert 0 < row["lost_observations"] < 46 and row["starved_steps"] == 0
    assert {"success_rate", "mean_max_score", "strategy", "latency"} <= row.keys()
    with pytest.raises(WorkbenchError, match="strategy: got 'magic'; expected some of late"):
        measured("magic", 0, shipped.policy, config, [1], 0, 0.0)
    assert set(STRATEGIES) >= {"naive", "rtc", "inpainting", "warm", "ensemble"}
