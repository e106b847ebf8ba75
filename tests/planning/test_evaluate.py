"""What an evaluation says of episodes whose outcome is known, what it is about, and what it does not depend on."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

from diffusion_core import checkpoint
from diffusion_core.configure import composed, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run
from envs.maze2d import DT, MAPS, Maze, Maze2d
from planning import problems
from planning.config import EvaluateConfig, PlanningConfig
from planning.evaluate import (
    PEERS,
    PLANNER,
    attempt,
    differences,
    episodes,
    evaluate,
    metrics,
    opened,
    run,
)
from planning.execute import Episode, Gains
from planning.peers.bfs import Bfs
from planning.peers.waypoint import Waypoint
from planning.plan import Plan, Problem
from planning.ways import no_way


def episode(first: int | None, contacts: int = 0, valid: bool | None = True, score: float = 0.0) -> Episode:
    """Ten steps of 0.1 m to the right, in the goal from step ``first`` on; the shortest way has 2 m."""
    rewards = np.zeros(10)
    rewards[(first or 11) - 1 :] = 1.0
    states = np.zeros((11, 4))
    states[:, 0] = 0.1 * np.arange(11)
    return Episode(
        states=states,
        actions=np.zeros((10, 2)),
        rewards=rewards,
        contacts=np.arange(10) < contacts,
        score=score,
        goal=np.array([1.0, 0.0]),
        way_length=2.0,
        tracking=np.zeros(0) if valid is None else np.array([0.01, 0.03]),
        valid=valid,
        planning_seconds=[0.1],
    )


FOUR = [episode(5, 2, True, 80.0), episode(None, 3, False, -5.0), episode(9, 0, True, 20.0), episode(1, 0, True, 150.0)]


def test_the_metrics_of_four_known_episodes():
    found = metrics(FOUR)
    assert {name: e.value for name, e in found.items()} == pytest.approx(
        {
            "score": 245.0 / 4,
            "success_rate": 0.75,
            "steps_to_goal": 5.0,
            # 1 m, of a shortest way of 2 m; the one that began in the goal has no ratio
            "path_ratio": 0.5,
            "contact_steps": 1.25,
            "tracking_error": 0.02,
            "collided": 0.5,
            "plan_valid": 0.75,
            "planning_p50": 100.0,
            "planning_p95": 100.0,
        }
    )
    assert {name: e.n for name, e in found.items()} == dict.fromkeys(found, 4) | {"steps_to_goal": 3, "path_ratio": 2}
    wilson = stats.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert (found["success_rate"].low, found["success_rate"].high) == pytest.approx((wilson.low, wilson.high))
    assert found["score"].stderr == pytest.approx(np.std([80.0, -5.0, 20.0, 150.0], ddof=1) / 2)


def test_a_controllers_plans_are_unknown_and_not_bad():
    found = metrics([episode(4, valid=None), episode(None, valid=None)])
    assert found["plan_valid"].n == 0 and found["tracking_error"].n == 0 and math.isnan(found["plan_valid"].value)


def test_differences_are_paired_and_of_problems_on_which_both_say_something():
    theirs = [
        episode(7, 0, None, 60.0),
        episode(3, 0, None, 90.0),
        episode(None, 1, None, 0.0),
        episode(2, 0, None, 140.0),
    ]
    found = differences(FOUR, theirs)
    assert {name: e.n for name, e in found.items()} == {
        "score": 4,
        "success_rate": 4,
        "steps_to_goal": 2,
        "path_ratio": 1,
        "contact_steps": 4,
    }
    assert {name: e.value for name, e in found.items()} == pytest.approx(
        {
            "score": (20.0 - 95.0 + 20.0 + 10.0) / 4,
            "success_rate": 0.0,
            "steps_to_goal": -1.5,
            "path_ratio": 0.0,
            "contact_steps": (2 + 3 - 1) / 4,
        }
    )
    # pairs that always differ by as much say so without doubt, however much the problems themselves differ
    shifted = [episode(5, 0, True, score) for score in (10.0, 200.0, 70.0, 140.0)]
    less = differences(shifted, [episode(5, 0, True, e.score - 3.0) for e in shifted])["score"]
    assert (less.value, less.low, less.high) == pytest.approx((3.0, 3.0, 3.0))


def test_problems_are_those_of_the_environments_seeds():
    single, multi = Maze2d("large"), Maze2d("large", multi=True)
    one, two = problems.drawn(single, [5, 6]), problems.drawn(multi, [5, 6])
    again = problems.drawn(multi, [6])[0]
    np.testing.assert_array_equal(two[1].start, again.start)
    np.testing.assert_array_equal(two[1].goal, again.goal)
    np.testing.assert_array_equal(one[0].start, two[0].start)
    assert (one[0].goal == one[1].goal).all() and (two[0].goal != two[1].goal).any()
    assert all(problem.maze is single.maze for problem in one)


def stored(path: Path, starts: list, goals: list, about: str = "maze2d-umaze-v1") -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["env_name"] = about
        file["start_state"], file["goal_pos"] = np.array(starts, float), np.array(goals, float)
    return path


def test_problems_of_a_file_are_taken_as_they_are(tmp_path):
    env = Maze2d("umaze")
    found = problems.of_file(
        env, stored(tmp_path / "a.hdf5", [[0.8, 0.8, 0.5, -1.0], [2.8, 1.2, 0.0, 0.0]], [[2.8, 0.8]] * 2)
    )
    np.testing.assert_array_equal([p.start for p in found], [[0.8, 0.8, 0.5, -1.0], [2.8, 1.2, 0.0, 0.0]])
    resting = problems.of_file(env, stored(tmp_path / "b.hdf5", [[0.8, 0.8]], [[2.8, 0.8]], "PointMaze_UMaze-v3"))
    np.testing.assert_array_equal(resting[0].start, [0.8, 0.8, 0.0, 0.0])
    np.testing.assert_array_equal(resting[0].goal, [2.8, 0.8])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([[0.8, 0.8]], [[2.8, 0.8]], "maze2d-large-v1"), "got problems of maze2d-large-v1; expected some of umaze"),
        (([[0.8, 0.8]], [[1.8, 0.8]]), r"1 of 1 places of goal_pos inside the walls of umaze, the first \[1.8, 0.8\]"),
        (([[35.0, 23.0]], [[2.8, 0.8]], ""), "start_state inside the walls"),
        (([[0.8, 0.8, 0.0]], [[2.8, 0.8]]), r"got start_state \(1, 3\)"),
        (([[0.8, math.nan]], [[2.8, 0.8]]), "expected finite"),
        (([[0.8, 0.8]], [[2.8, 0.8]] * 2), r"goal_pos \(2, 2\)"),
    ],
)
def test_a_file_of_other_problems_is_refused(content, message, tmp_path):
    with pytest.raises(WorkbenchError, match=message):
        problems.of_file(Maze2d("umaze"), stored(tmp_path / "a.hdf5", *content))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "text.hdf5").write_text("start_state")
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    for name in ("nowhere", "text", "empty"):
        with pytest.raises(WorkbenchError, match=f"{name}.hdf5: cannot be read"):
            problems.of_file(Maze2d("umaze"), tmp_path / f"{name}.hdf5")


@pytest.mark.skipif("WORKBENCH_DATA" not in os.environ, reason="needs published problems (WORKBENCH_DATA)")
def test_published_problems_are_read():
    folder = Path(os.environ["WORKBENCH_DATA"]) / "planning" / "eval_problems"
    assert len(problems.of_file(Maze2d("large"), folder / "maze2d_lg_ev_prob_bt2way_nppp3.hdf5")) == 216
    with pytest.raises(WorkbenchError, match="expected some of umaze"):
        problems.of_file(Maze2d("umaze"), folder / "maze2d_lg_ev_prob_bt2way_nppp3.hdf5")


ROUND = Problem(Maze(MAPS["umaze"]), np.array([2.8, 0.8, 0.3, 0.0]), np.array([0.8, 0.8]))


class Straight:
    """Plans through the wall for even seeds, and none for odd ones."""

    def __call__(self, problem: Problem, seed: int) -> Plan:
        if seed % 2:
            raise no_way(problem, "nothing")
        return Plan(np.linspace(problem.start[:2], problem.goal, 20), 0.1)


def test_where_no_plan_is_found_the_ball_is_held_where_it_starts():
    env = Maze2d("umaze")
    held, error = attempt(env, ROUND, Straight(), 1, Gains())
    assert error is not None and held.valid is False and not held.success
    assert np.linalg.norm(held.states[-1, :2] - ROUND.start[:2]) < 1e-3 and len(held.planning_seconds) == 1
    crashed, error = attempt(env, ROUND, Straight(), 2, Gains())
    assert error is None and crashed.valid is False and crashed.collisions > 10


def test_a_peer_that_never_finds_a_plan_is_an_error_and_one_that_sometimes_does_a_warning(tmp_path, caplog):
    env, here = Maze2d("umaze"), Run(tmp_path, main=False)
    with caplog.at_level(logging.WARNING, "workbench"):
        found = episodes(env, [ROUND] * 3, Straight(), [1, 2, 3], Gains(), "straight", here)
    assert len(found) == 3 and "straight: no plan for 2 of 3 problems" in caplog.text
    with pytest.raises(WorkbenchError, match="got no way from"):
        episodes(env, [ROUND] * 2, Straight(), [1, 3], Gains(), "straight", here)


def test_peers_solve_the_way_round_the_wall_and_their_time_counts():
    env = Maze2d("umaze")
    for peer in (Waypoint(), Bfs()):
        solved, error = attempt(env, ROUND, peer, 3, Gains())
        assert error is None and solved.success and solved.score > 75.0
        assert len(solved.planning_seconds) == 1 and 1e-5 < solved.planning_seconds[0] < 5.0


def check_independent(saved: checkpoint.Checkpoint, config: PlanningConfig, folder: Path) -> None:
    """An episode is the same, to the last bit, whatever is evaluated beside it."""
    asked = {"peers": ["waypoint"], "film": 0}
    three = evaluate(saved, config, EvaluateConfig(n=3, seed=100_000, **asked), Run(folder, main=False))[1]
    alone = evaluate(saved, config, EvaluateConfig(n=1, seed=100_002, **asked), Run(folder, main=False))[1]
    for name in (PLANNER, "waypoint"):
        np.testing.assert_array_equal(three[name][2].states, alone[name][0].states)
    assert (three[PLANNER][1].states[0] != three[PLANNER][2].states[0]).any()


def test_an_episode_does_not_depend_on_its_neighbours(trained, tmp_path):
    saved = checkpoint.find(trained)
    check_independent(saved, typed(PlanningConfig, saved.config), tmp_path)


def test_an_evaluation_without_a_map_stands_beside_the_trainings_own(trained):
    asked = EvaluateConfig(
        checkpoint=str(trained), n=2, film=0, peers=[], walls=0.0, select="critic", refine="none", multi=True, steps=2
    )
    found = run(asked)
    assert not found["sees_the_map"] and found["multi"] and found["sampler"]["steps"] == 2
    assert found["peers"] == found["differences"] == {}
    folder = next(path for path in trained.glob("evaluation-*2-steps*") if path.is_dir())
    assert "select-critic" in folder.name and "n-2" in folder.name and (folder / "report.html").exists()
    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["metrics"]["score"]["n"] == 2 and kept["planner"]["select"] == "critic"


def test_all_problems_of_a_file_are_evaluated(trained, tmp_path):
    path = stored(tmp_path / "two.hdf5", [[0.8, 0.8], [2.8, 0.8]], [[2.8, 0.8], [2.8, 2.8]])
    asked = EvaluateConfig(
        checkpoint=str(trained), problems=str(path), film=0, peers=["waypoint"], out=str(tmp_path / "out")
    )
    found = run(asked)
    assert found["metrics"]["success_rate"].n == 2 and found["problems"].startswith("two.hdf5, sha256 ")
    assert found["peers"]["waypoint"]["success_rate"].value == 1.0
    lines = (tmp_path / "out" / "episodes.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[1].startswith("planner,100000,0.8,0.8,0,0,2.8,0.8,")


def test_every_option_is_a_word_of_the_program():
    names = {field.name for field in fields(EvaluateConfig)}
    asked = composed(
        EvaluateConfig, "planning.conf", "evaluate", ["n=7", "peers=[bfs,mppi]", "sampler=ddim", "steps=5"]
    )
    assert (asked.n, asked.peers, asked.steps) == (7, ["bfs", "mppi"], 5) and asked.sampler
    assert {"problems", "peers", "film", "select", "refine", "expect_task"} <= names and set(asked.peers) <= set(PEERS)
    with pytest.raises(WorkbenchError, match="teleport"):
        composed(EvaluateConfig, "planning.conf", "evaluate", ["teleport=1"])


def test_a_checkpoint_of_another_kind_is_refused(trained):
    with pytest.raises(WorkbenchError, match="checkpoint: got none"):
        opened("")
    with pytest.raises(WorkbenchError, match="does not exist"):
        opened("nowhere")
    with pytest.raises(WorkbenchError, match="expected domain=planning task=maze2d_large"):
        opened(str(trained), "maze2d_large")
    with pytest.raises(WorkbenchError, match=r"domain=policy .* expected domain=planning"):
        opened(str(Path(__file__).parents[2] / "policy" / "pretrained" / "pusht"))


def test_a_step_is_a_hundredth_of_a_second():
    assert DT == 0.01  # as the units say
