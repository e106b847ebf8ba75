"""Sources of transitions: made once, found again, and in the coordinates of the maze."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from envs.maze2d import MAPS, Maze
from planning.data import files, sources
from planning.data.generate import generate
from planning.data.transitions import Transitions
from tests.planning.data.test_files import minari, ogbench
from tests.planning.data.test_generate import replay_errors


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """An empty cache, and how often something was generated."""
    made: list[tuple] = []

    def counted(*arguments, **named):
        made.append(arguments)
        return generate(*arguments, progress=named["progress"])

    monkeypatch.setattr(sources, "cache", lambda domain: tmp_path / domain)
    monkeypatch.setattr(sources, "generate", counted)
    return tmp_path / "planning", made


def test_transitions_are_generated_once(cached):
    folder, made = cached
    first, again = (sources.load("umaze", "generate", 500, 3) for _ in range(2))
    assert len(made) == 1 and first.content_sha256 == again.content_sha256
    assert first.content_sha256 == generate("umaze", 500, 3).content_sha256
    assert first.provenance == again.provenance
    assert first.content_sha256 in first.provenance and "generated: 500 steps, seed 3" in first.provenance
    for maze, steps, seed in (("umaze", 500, 4), ("umaze", 400, 3), ("medium", 500, 3)):
        other = sources.load(maze, "generate", steps, seed)
        assert other.content_sha256 != first.content_sha256
    assert len(made) == 4 and len(list(folder.glob("*.hdf5"))) == 4


def test_a_damaged_cache_is_put_aside_and_made_anew(cached, caplog):
    folder, made = cached
    first = sources.load("umaze", "generate", 300, 0)
    (path,) = folder.glob("*.hdf5")
    path.write_bytes(path.read_bytes()[:-500])
    assert sources.load("umaze", "generate", 300, 0).content_sha256 == first.content_sha256
    assert len(made) == 2 and "put aside" in caplog.text and len(list(folder.glob("*.bad-*"))) == 1
    # a sound file under another's name is not taken for it
    files.save(path, generate("umaze", 300, 1), overwrite=True)
    assert sources.load("umaze", "generate", 300, 0).content_sha256 == first.content_sha256
    assert len(made) == 3 and len(list(folder.glob("*.bad-*"))) == 2


def test_an_interrupt_leaves_nothing_in_the_cache(cached, monkeypatch):
    folder, _ = cached

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sources.load("umaze", "generate", 300, 0)
    assert [p.suffix for p in folder.iterdir()] == [".lock"]
    monkeypatch.setattr(sources, "generate", generate)
    assert len(sources.load("umaze", "generate", 300, 0)) == 300


def test_a_file_is_loaded_and_belongs_to_its_maze(tmp_path):
    path, stream = tmp_path / "a.zarr.zip", generate("large", 600, 0)
    files.save(path, stream)
    found = sources.load("large", str(path), steps=1, seed=9)
    assert found.content_sha256 == stream.content_sha256
    assert found.provenance.startswith(stream.provenance)
    with pytest.raises(WorkbenchError, match=r"inside the walls of umaze.*generated: 600 steps"):
        sources.load("umaze", str(path), 1, 0)
    with pytest.raises(WorkbenchError, match="no such file"):
        sources.load("large", str(tmp_path / "b.hdf5"), 1, 0)
    with pytest.raises(WorkbenchError, match="expected one of umaze"):
        sources.load("huge", "generate", 1, 0)


def as_point_maze(maze: str, stream: Transitions) -> Transitions:
    """A stream as Gymnasium-Robotics would have recorded it; written from its rule for the middles of cells."""
    rows, columns = len(MAPS[maze]), len(MAPS[maze][0])

    def placed(xy: np.ndarray) -> np.ndarray:
        i, j = (xy + 0.2).T
        return np.stack([(j + 0.5) - columns / 2, rows / 2 - (i + 0.5)], 1).astype(np.float32)

    def turned(vector: np.ndarray) -> np.ndarray:
        return np.stack([vector[:, 1], -vector[:, 0]], 1)

    state = np.concatenate([placed(stream.observations[:, :2]), turned(stream.observations[:, 2:])], 1)
    return Transitions(state, turned(stream.actions), placed(stream.goals), stream.timeouts, "")


@pytest.mark.parametrize("maze", sorted(MAPS))
def test_minaris_point_maze_is_the_same_ball_in_another_frame(tmp_path, maze):
    path, stream = tmp_path / "main_data.hdf5", generate(maze, 700, 2)
    minari(path, as_point_maze(maze, stream))
    found = sources.load(maze, str(path), 1, 0)
    np.testing.assert_allclose(found.observations, stream.observations, atol=2e-6)
    np.testing.assert_array_equal(found.actions, stream.actions)
    assert (replay_errors(maze, found, np.arange(0, 699, 5)) < 1e-3).all()
    assert Maze(MAPS[maze]).clearance(found.goals).min() > 0.1
    assert "turned into Maze2D's frame" in found.provenance and "Minari" in found.provenance


def test_ogbenchs_maze_is_not_this_one(tmp_path):
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    ogbench(path)
    with pytest.raises(WorkbenchError, match=r"inside the walls of medium.*OGBench"):
        sources.load("medium", str(path), 1, 0)
