"""What a page shows: numbers as they are, published rows as published, pictures of what was planned and done."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

from diffusion_core import checkpoint
from diffusion_core.report import save_figure, subplots
from diffusion_core.results import Estimate, mean
from envs.maze2d import MAPS, Maze, Maze2d, Obstacle
from planning import problems, published, report
from planning.evaluate import PEERS
from planning.execute import Gains, execute
from planning.peers.bfs import Bfs
from planning.plan import Plan, Problem
from planning.planner import DiffusionPlanner
from planning.prior import restore, sampling_table

TITLES = {name: (peer.title, peer.knows) for name, peer in PEERS.items()}


@pytest.fixture(scope="module")
def planner(trained) -> DiffusionPlanner:
    prior, config = restore(checkpoint.find(trained))
    return DiffusionPlanner(prior, sampling_table(config, prior), config.planner)


def results(multi: bool = False, **planner: Any) -> dict[str, Any]:
    def numbers(score: float) -> dict[str, Estimate]:
        none = dict.fromkeys(report.NAMES, mean([]))
        return none | {"score": Estimate(score, 2.5, score - 5.0, score + 5.0, 100, "D4RL")}

    return {
        "maze": "large",
        "multi": multi,
        "sees_the_map": True,
        "planner": {"refine": "cut"} | planner,
        "metrics": numbers(233.4) | {"steps_to_goal": Estimate(172.4, 1.0, 150.2, 1190.0, 100, "steps of 0.01 s")},
        "peers": {"waypoint": numbers(202.1), "bfs": numbers(241.0)},
        "differences": {"waypoint": {"score": mean([30.0, 32.0])}, "bfs": {"score": mean([-8.0, -7.0])}},
    }


def test_ours_stands_first_the_peers_beside_it_and_the_published_rows_as_published():
    head, rows = report.published_table(results(), TITLES)
    assert [row[:2] for row in rows[:3]] == [
        ["this planner", "233.4 ± 2.5"],
        ["correct waypoint controller", "202.1 ± 2.5"],
        ["search through cells (BFS)", "241.0 ± 2.5"],
    ]
    shown = {row[0]: row[1] for row in rows[3:]}
    assert shown["Diffuser"] == "123.0 ± 6.4" and shown["Diffusion Forcing"] == "159.0 ± 2.7"
    assert shown["IQL"] == "58.6" and shown["IQL (CORL)"] == "49.6" and shown["Diffuser, own actions"] == "6.3"
    assert {len(row) for row in rows} == {len(head)} and "large" in head[1]
    multi = {row[0]: row[1] for row in report.published_table(results(multi=True), TITLES)[1]}
    assert multi["Hierarchical Diffuser"] == "165.5 ± 0.6" and "AWAC (CORL)" not in multi


def test_published_averages_are_those_of_their_papers():
    """Each paper's average over the three mazes, printed beside its rows; to its rounding."""
    averages = {"MPPI": (16.2, 21.5), "IQL": (47.0, 16.9), "Diffuser": (119.5, 129.4), "HDMI": (123.5, 132.8)}
    averages |= {"Diffusion Forcing": (141.7, 146.2), "Hierarchical Diffuser": (139.9, 149.9), "CQL": (7.7, None)}
    averages |= {"Diffusion Forcing without MCG": (129.7, 127.7)}
    rows = {row.method: row for row in published.ROWS}
    assert len(rows) == len(published.ROWS)
    for method, (single, multi) in averages.items():
        assert np.mean(rows[method].single) == pytest.approx(single, abs=0.06)
        assert multi is None or np.mean(rows[method].multi) == pytest.approx(multi, abs=0.06)
    assert all(re.search(r"arXiv \d{4}\.\d{5}", row.source) for row in published.ROWS)
    assert rows["CQL"].score("large", True) is None and rows["CQL"].score("giant", False) is None


def test_a_table_says_each_measure_of_each_row_with_its_interval():
    head, rows = report.peers_table(results(), TITLES)
    assert head == [
        "",
        "this planner",
        "correct waypoint controller",
        "search through cells (BFS)",
        "less correct waypoint controller",
        "less search through cells (BFS)",
    ]
    found = {row[0]: row[1:] for row in rows}
    assert {len(row) for row in rows} == {len(head)}
    assert found["knows"] == ["data, map, ball", "map", "map, ball", "", ""]
    assert found["D4RL score"] == [
        "233 [228, 238]",
        "202 [197, 207]",
        "241 [236, 246]",
        "+31 [30, 32]",
        "-7.5 [-8, -7]",
    ]
    assert found["steps to the goal (successes)"] == ["172 [150, 1190] steps", "–", "–", "", ""]


def test_what_a_planner_knows_is_what_it_was_given():
    knows = [report._knows(results(refine=how)) for how in ("none", "cut")]
    assert knows == ["data, map", "data, map, ball"]
    assert report._knows(results() | {"sees_the_map": False}) == "data"


def test_what_is_drawn_is_what_is_planned(planner):
    problem = problems.drawn(Maze2d("umaze"), [3])[0]
    drawn = report.Drawn.of(planner, problem, 7)
    plan = planner(problem, 7)
    np.testing.assert_array_equal(drawn.plan.xy, plan.xy)
    assert drawn.plan.dt == plan.dt and drawn.ways.shape == (4, 32, 2)
    room = [problem.maze.clearance(Plan(way, 0.1).dense()).min() for way in drawn.ways]
    assert drawn.fits.tolist() == [r >= 0.1 for r in room]


def pixel(maze: Maze, xy: tuple[float, float], shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = shape[:2]
    w, h = maze.walls.shape
    return round(height * (1.0 - (xy[1] + 0.7) / h)), round(width * (xy[0] + 0.7) / w)


def check_film(path: Path, film: Any) -> None:
    """The ball is where it was, its way behind it and the plan before it, y up."""
    env = Maze2d("medium", multi=True, obstacles=[Obstacle((4.8, 3.3), 0.1)])
    here = Problem(env.maze, np.array([0.8, 0.8, 0.0, 0.0]), np.array([3.8, 1.8]))
    plan = Bfs()(here, 0)
    episode = execute(env, here, plan, 0, Gains(40.0, 2.5))
    assert episode.first is not None
    film(path, plan, episode, env.maze)
    frames = np.stack(list(iio.imiter(path, plugin="pyav"))).astype(int)
    # 25 frames a second until a second after the goal
    assert len(frames) == (episode.first + 100 - 1) // 4 + 1
    blue = frames[..., 2] - frames[..., 0]
    for k in (0, len(frames) // 2, len(frames) - 1):
        y, x = pixel(env.maze, episode.states[4 * k, :2], frames[k].shape)
        assert blue[k, y - 1 : y + 2, x - 1 : x + 2].min() > 110
    y, x = pixel(env.maze, episode.states[0, :2], frames.shape[1:])
    assert 30 < blue[-1, y, x] < 140
    # the middle of a wall, and of a cell far from the way
    for xy, light in (((-0.2, -0.2), False), ((5.8, 5.8), True)):
        y, x = pixel(env.maze, xy, frames.shape[1:])
        assert (frames[:, y, x].min() > 220) == light and np.ptp(frames[:, y, x], axis=0).max() < 12


def test_a_film_shows_the_ball_where_it_was(tmp_path):
    check_film(tmp_path / "a.mp4", report.video)


def test_a_film_that_is_turned_is_seen(tmp_path):
    def turned(path, plan, episode, maze):
        states = episode.states.copy()
        states[:, :2] = states[:, 1::-1]
        from dataclasses import replace

        return report.video(path, Plan(plan.xy[:, ::-1], plan.dt), replace(episode, states=states), maze)

    with pytest.raises(AssertionError):
        check_film(tmp_path / "a.mp4", turned)


def test_a_maze_is_drawn_in_metres():
    maze = Maze(MAPS["umaze"], [Obstacle((2.8, 1.8), 0.15)])
    problem = Problem(maze, np.array([2.8, 0.8, 0.0, 0.0]), np.array([0.8, 0.8]))
    figure, axes = subplots(1, 1, 3.0, 3.0)
    report.draw_maze(axes[0, 0], problem)
    assert axes[0, 0].get_xlim() == pytest.approx((-0.2, 3.8)) and axes[0, 0].get_ylim() == pytest.approx((-0.2, 3.8))
    drawn = [patch.get_extents().transformed(axes[0, 0].transData.inverted()) for patch in axes[0, 0].patches]
    boxes = {tuple(np.round(box.extents, 2)) for box in drawn}
    assert {tuple(np.round(box, 2)) for box in maze.boxes} <= boxes
    assert (2.65, 1.65, 2.95, 1.95) in boxes and (0.3, 0.3, 1.3, 1.3) in boxes
    save_figure(figure, Path("/dev/null"))


def test_the_page_holds_all_of_it(trained):
    page = (trained / "evaluation" / "report.html").read_text()
    found = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    assert page.count("<img") == 3 and page.count("<video") == 1
    for word in ("Plans in Maze2D umaze", "correct waypoint controller", "116.7 ± 2.0", "arXiv 2205.09991"):
        assert word in page
    assert f"{found['metrics']['score']['value']:.1f}" in page and found["commit"] in page
    assert not re.search(r"(src|href)='?http", page)
    for name in ("candidates.png", "denoising.png", "learning_curve.png"):
        picture = iio.imread(trained / "evaluation" / name)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 10.0
