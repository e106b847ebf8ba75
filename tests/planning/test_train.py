"""From transitions to a page by one command."""

from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pytest

from diffusion_core.configure import composed
from diffusion_core.errors import WorkbenchError
from planning import train
from planning.config import PlanningConfig
from planning.report import NAMES


def test_a_training_leaves_its_evaluation_and_a_line_says_where(trained):
    found = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    assert found["maze"] == "umaze" and found["sees_the_map"] and found["seeds"] == [100_000, 100_002]
    assert set(found["metrics"]) == set(NAMES) and list(found["peers"]) == ["waypoint", "bfs"]
    assert found["step"] == 30 and found["hardware"]["torch_threads"] == 1 and len(found["commit"]) >= 7
    assert found["command"].startswith("python -m planning.train")
    lines = (trained / "log.txt").read_text().splitlines()
    assert sum(line.endswith(f"report: {trained / 'evaluation' / 'report.html'}") for line in lines) == 1


def test_the_results_are_those_of_the_episodes(trained):
    found = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    with (trained / "evaluation" / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = {name: [float(r["score"]) for r in rows if r["row"] == name] for name in ("planner", "waypoint", "bfs")}
    assert len(rows) == 9 and {len(each) for each in scores.values()} == {3}
    assert found["metrics"]["score"]["value"] == pytest.approx(np.mean(scores["planner"]), rel=1e-4)
    for name in ("waypoint", "bfs"):
        assert found["peers"][name]["score"]["value"] == pytest.approx(np.mean(scores[name]), rel=1e-4)
        less = np.subtract(scores["planner"], scores[name])
        assert found["differences"][name]["score"]["value"] == pytest.approx(np.mean(less), rel=1e-3, abs=1e-3)
    starts = {(r["start_x"], r["start_y"], r["goal_x"], r["goal_y"]) for r in rows}
    assert len(starts) == 3


def test_a_run_goes_on_to_the_same_evaluation(trained, caplog):
    before = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    config = composed(PlanningConfig, "planning.conf", "train", ["task=maze2d_umaze", "preset=smoke"])
    config.resume = str(trained)
    with caplog.at_level(logging.INFO, "workbench"):
        assert train.run(config) == trained
    after = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    assert "report: " in caplog.records[-1].getMessage()
    timed = ("planning_p50", "planning_p95")
    assert [after["metrics"][k] for k in NAMES if k not in timed] == [
        before["metrics"][k] for k in NAMES if k not in timed
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluation.n=0"], "evaluation.n"),
        (["evaluation.peers=[teleport]"], "peers: got teleport; expected some of waypoint, bfs"),
        (["evaluation.problems=nowhere.hdf5"], "nowhere.hdf5: cannot be read"),
        (["planner.select=best"], "planner.select: got 'best'"),
        (["planner.select=critic", "critic=false"], "planner.select: got critic"),
        (["evaluation.films=1"], "films"),
        (["sampler=ddim", "grid.start=1.0", "prediction=eps"], "signal|t = 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_training(words, message, tmp_path):
    with pytest.raises(WorkbenchError, match=message):
        train.run(composed(PlanningConfig, "planning.conf", "train", ["preset=smoke", f"runs={tmp_path}", *words]))
    assert not list(tmp_path.glob("*/*/checkpoints/*"))
