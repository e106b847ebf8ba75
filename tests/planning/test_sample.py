"""One plan by one command, and what it refuses."""

from __future__ import annotations

import logging

import imageio.v3 as iio
import numpy as np
import pytest

from diffusion_core.configure import composed
from diffusion_core.errors import WorkbenchError
from envs.maze2d import MAPS, Maze, Maze2d, Obstacle
from planning.config import SampleConfig
from planning.sample import run


def asked(trained, tmp_path, *words: str) -> SampleConfig:
    words = (f"checkpoint={trained}", f"out={tmp_path}", *words)
    return composed(SampleConfig, "planning.conf", "sample", words)


def test_one_plan_leaves_its_files(trained, tmp_path, caplog):
    words = ["start=[2.8,0.8,0.5,0]", "goal=[2.8,2.8]", "obstacles=[[1,0.8,0.2]]"]
    with caplog.at_level(logging.INFO, "workbench"):
        out, episode = run(asked(trained, tmp_path / "a", *words))
    kept = np.load(out / "plan.npz")
    assert set(kept) == {"xy", "dt", "states", "actions"} and float(kept["dt"]) > 0.0
    np.testing.assert_array_equal(kept["states"], episode.states)
    np.testing.assert_array_equal(kept["states"][0], [2.8, 0.8, 0.5, 0.0])
    np.testing.assert_allclose(kept["xy"][[0, -1]], [[2.8, 0.8], [2.8, 2.8]], atol=1e-5)
    # a straight way that its own refinement finds whatever the prior knows
    assert episode.success and episode.valid and "in the goal after" in caplog.text and str(out) in caplog.text
    picture = iio.imread(out / "plan.png")
    assert (picture.reshape(-1, picture.shape[-1])[:, :3].std(0) > 5.0).all()
    assert len(list(iio.imiter(out / "plan.mp4", plugin="pyav"))) > 10
    # the file's actions lead to the file's states
    env = Maze2d("umaze", obstacles=[Obstacle((1.0, 0.8), 0.2)])
    env.reset(seed=0, options={"state": kept["states"][0], "goal": [2.8, 2.8]})
    again = [env.step(action)[0] for action in kept["actions"]]
    np.testing.assert_array_equal(again, kept["states"][1:])
    once_more, _ = run(asked(trained, tmp_path / "b", *words))
    np.testing.assert_array_equal(np.load(once_more / "plan.npz")["xy"], kept["xy"])


def test_a_plan_that_does_not_fit_is_said_to(trained, tmp_path, caplog):
    words = ["start=[2.8,0.8]", "goal=[0.8,0.8]", "refine=none", "walls=0", "candidates=1", "select=first"]
    with caplog.at_level(logging.WARNING, "workbench"):
        out, episode = run(asked(trained, tmp_path, *words))
    assert episode.valid is False and "the plan does not fit" in caplog.text and "0 of 1 candidates fit" in caplog.text
    assert (out / "plan.png").exists()


def test_beside_an_obstacle_that_covers_a_cells_middle_there_is_a_way(trained, tmp_path):
    disc = Obstacle((2.8, 1.8), 0.15)
    with pytest.raises(ValueError, match="no connection"):
        Maze(MAPS["umaze"], [disc]).way(np.array([2.8, 0.8]), np.array([2.8, 2.8]))
    words = ["start=[2.8,0.8]", "goal=[2.8,2.8]", "obstacles=[[2.8,1.8,0.15]]"]
    out, _ = run(asked(trained, tmp_path, *words))
    assert (out / "plan.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start=[1.8,0.8]", "goal=[0.8,0.8]"], r"start: got \[1.8, 0.8\], inside a wall"),
        (["start=[0.8,0.8]", "goal=[9,9]"], "goal: got .* outside of the maze"),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "obstacles=[[2.8,0.8,0.3]]"], "goal: got .* an obstacle"),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "obstacles=[[1.8,2.8,0.6]]"], "cannot be reached from .* that the ball"),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "obstacles=[[1.8,2.8,-1.0]]"], "radius > 0"),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "obstacles=[[1.8,2.8]]"], "x, y and radius for each obstacle"),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "obstacles=[1.8,2.8,1]"], "x, y and radius for each obstacle"),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "obstacles=[[1.8,2.8,a]]"], "x, y and radius for each obstacle"),
        (["start=[0.8]", "goal=[2.8,0.8]"], r"start=\[0.8\]"),
        (
            ["start=[0.8,0.8]", "goal=[2.8,0.8]", "expect_task=maze2d_large"],
            "task=maze2d_umaze, expected .*maze2d_large",
        ),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "candidates=0"], "planner.candidates"),
        (["start=[0.8,0.8]", "goal=[2.8,0.8]", "checkpoint="], "checkpoint: got none"),
    ],
)
def test_what_cannot_be_planned_is_refused_and_leaves_nothing(trained, tmp_path, words, message):
    with pytest.raises(WorkbenchError, match=message):
        run(asked(trained, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()
