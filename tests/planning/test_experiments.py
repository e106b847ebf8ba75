"""The experiments: their problems, their measures, and that each runs from priors to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_core.configure import composed
from diffusion_core.errors import WorkbenchError
from envs.maze2d import MAPS, RADIUS, Maze
from planning import train
from planning.config import PlanningConfig
from planning.energies import Through
from planning.experiments import corridors, halves, lab, obstacles, robots

LARGE = Maze(MAPS["large"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Priors of the large maze, of its two halves, that have learned next to nothing."""
    words = (
        "task=maze2d_large",
        "preset=smoke",
        "strides=[3,16]",
        "critic=false",
        "evaluation.n=1",
        "evaluation.film=0",
    )
    regions = {"whole": "[]", "west": "[0,0,8,6.3]", "east": "[0,4.3,8,11]"}
    found = {}
    for name, region in regions.items():
        here = tmp_path_factory.mktemp(name)
        more = (f"data.region={region}", "evaluation.peers=[]", f"runs={here}", "data.steps=20000")
        found[name] = train.run(composed(PlanningConfig, "planning.conf", "train", [*words, *more]))
    return found


def ran(experiment, module, monkeypatch, tmp_path, *words: str) -> tuple[dict, Path]:
    """What the program of an experiment writes."""
    out, figure = tmp_path / "out.json", tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", ["program", *words, "--n", "2", "--out", str(out), "--figure", str(figure)])
    more = ()
    if module is halves:
        options = {"nargs": "+", "required": True}
        more = (("--west", options), ("--east", options))
    lab.run(experiment, lab.arguments("text", *more), "name")
    return json.loads(out.read_text()), figure


@pytest.mark.parametrize("count", [0, 1, 3])
def test_filled_cells_are_on_the_way_and_leave_another(count):
    for seed in range(5):
        found = obstacles.problem(MAPS["large"], "corridors", count, np.random.default_rng(seed))
        assert len(found.maze.obstacles) == count
        ends = found.start[:2], found.goal
        lengths = [len(Maze(MAPS["large"], found.maze.obstacles[:k]).way(*ends)) for k in range(count + 1)]
        ways = [Maze(MAPS["large"], found.maze.obstacles[:k]).way(*ends).tolist() for k in range(count + 1)]
        assert lengths == sorted(lengths)
        for k, obstacle in enumerate(found.maze.obstacles):
            assert LARGE.cell(np.array(obstacle.centre)).tolist() in ways[k]
            assert LARGE.cell(np.array(obstacle.centre)).tolist() not in ways[k + 1]


def test_discs_leave_room_beside_them():
    found = obstacles.problem(MAPS["large"], "discs", 4, np.random.default_rng(0))
    assert len(found.maze.obstacles) == 4
    for disc in found.maze.obstacles:
        ring = np.array(disc.centre) + 0.35 * np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 64)])
        assert (found.maze.clearance(ring) >= RADIUS).any()
    with pytest.raises(WorkbenchError, match="no problem with 4 corridors"):
        obstacles.problem(MAPS["large"], "corridors", 4, np.random.default_rng(0), tries=5)


def test_halves_begin_and_end_where_only_one_prior_has_been():
    for seed in range(5):
        found = halves.problem(MAPS["large"], 4.3, 6.3, np.random.default_rng(seed))
        assert found.start[1] < 4.3 and found.goal[1] > 6.3
    with pytest.raises(WorkbenchError, match="expected halves that differ"):
        halves.problem(MAPS["large"], -1.0, 6.3, np.random.default_rng(0), tries=5)


def test_robots_change_places_and_are_apart():
    found = robots.problem(LARGE, 4, np.random.default_rng(0))
    for one, other in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(found[one].start[:2], found[other].goal)
        np.testing.assert_array_equal(found[other].start[:2], found[one].goal)
    ways = np.zeros((3, 5, 2))
    ways[1, :, 0], ways[2, :, 0] = 1.0, [4.0, 3.0, 1.2, 3.0, 4.0]
    assert robots.apart(ways) == pytest.approx(0.2)
    # two that change places between two nodes meet in the middle
    pair = robots.problem(LARGE, 2, np.random.default_rng(0))
    line = np.stack([pair[0].start[:2], pair[0].goal])
    room, gap = robots.rooms(pair, np.stack([line, line[::-1]]), 0.1)
    assert gap == pytest.approx(0.0, abs=1e-9) and room < 0.0


def test_the_exact_posterior_weights_ways_by_their_costs():
    fork = corridors.Fork.__new__(corridors.Fork)
    fork.costs = (Through((1.0, 0.0), 0.3, width=0.1), Through((0.0, 1.0), 0.3, width=0.1))
    first, second = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    neither = torch.tensor([[[0.0, 0.0], [-1.0, -1.0]]])
    xy = torch.cat([first.expand(30, 2, 2), second.expand(10, 2, 2), neither.expand(60, 2, 2)])
    assert fork.share(xy) == pytest.approx(0.75) and fork.either(xy) == pytest.approx(0.4)
    odds = 3.0 * np.exp(0.5 - 2.0)
    assert fork.exact(xy, (2.0, 0.5)) == pytest.approx(odds / (1.0 + odds), rel=1e-4)


def test_obstacles_run(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(obstacles, "SERIES", (("corridors", 0), ("discs", 1)))
    monkeypatch.setattr(obstacles, "CANDIDATES", 4)
    # the others take their seconds, and have tests of their own
    monkeypatch.setattr(obstacles, "OTHERS", {name: obstacles.OTHERS[name] for name in ("search (on a lattice)",)})
    words = ("--priors", str(runs["whole"]), str(runs["whole"]))
    found, figure = ran(obstacles.measured, obstacles, monkeypatch, tmp_path, *words)
    assert set(found["rows"]) == {*obstacles.ROWS, *obstacles.OTHERS} and figure.exists()
    assert found["rows"]["search (on a lattice)"]["1 discs"]["success"]["value"] == 1.0
    assert found["command"].startswith("python -m planning.experiments.name --priors")
    assert len(found["priors"]) == 2 and found["hardware"]["torch_threads"] == 1


def test_halves_run_and_refuse_what_does_not_fit(runs, monkeypatch, tmp_path):
    words = ["--west", str(runs["west"]), "--east", str(runs["east"]), "--priors", str(runs["whole"])]
    found, figure = ran(halves.measured, halves, monkeypatch, tmp_path, *words)
    assert len(found["rows"]) == 12 and figure.exists()
    assert [one["region"] for one in found["priors"][0]] == [[0, 0, 8, 6.3], [0, 4.3, 8, 11], []]
    with pytest.raises(SystemExit):
        ran(halves.measured, halves, monkeypatch, tmp_path, "--west", str(runs["whole"]), *words[2:])


def test_corridors_and_robots_run(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(corridors, "STRENGTHS", ((0.0, 0.0), (1.0, 0.0)))
    monkeypatch.setattr(corridors, "SAMPLES", 8)
    monkeypatch.setattr(corridors, "PARTICLES", 8)
    monkeypatch.setattr(corridors, "PROPOSALS", 16)
    monkeypatch.setattr(corridors, "STEPS", 3)
    # a prior that knows nothing takes neither way
    monkeypatch.setattr(corridors.Fork, "share", lambda self, xy, weights=None: 0.5)
    found, figure = ran(corridors.measured, corridors, monkeypatch, tmp_path, "--priors", str(runs["whole"]))
    assert set(found["rows"]) == set(corridors.METHODS) and figure.exists()
    monkeypatch.setattr(robots, "ROBOTS", (2,))
    found, _ = ran(robots.measured, robots, monkeypatch, tmp_path, "--priors", str(runs["whole"]))
    assert all(set(row) == {"2"} for row in found["rows"].values()) and set(found["rows"]) == set(robots.ROWS)
