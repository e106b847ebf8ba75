"""Files of transitions: round trips, the layouts of others, and everything that can be wrong with them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from planning.data import files
from planning.data.generate import generate
from planning.data.transitions import Transitions

NAMES = ["a.hdf5", "a.h5", "a.zarr.zip"]
GOAL = np.array([1.0, 1.0])


@pytest.fixture(scope="module")
def stream() -> Transitions:
    return generate("umaze", 1_000, seed=4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_loaded(stream, tmp_path, name):
    path = tmp_path / "new" / name
    files.save(path, stream, GOAL)
    found = files.load(path)
    assert found.content_sha256 == stream.content_sha256 and found.provenance == stream.provenance
    assert [p.name for p in path.parent.iterdir()] == [name]
    assert files.kind(path) == ("zarr" if name.endswith(".zip") else "d4rl")
    before = path.read_bytes()
    with pytest.raises(WorkbenchError, match="path that exists"):
        files.save(path, stream, GOAL)
    files.save(path, stream, GOAL, overwrite=True)
    assert path.read_bytes() == before


def test_the_file_is_in_d4rls_layout(stream, tmp_path):
    files.save(tmp_path / "a.hdf5", stream, GOAL)
    with h5py.File(tmp_path / "a.hdf5") as file:
        shapes = {name: (file[name].shape, str(file[name].dtype)) for name in files._names(file) if name != "infos"}
        xy, rewards = file["observations"][:, :2], file["rewards"][:]
        np.testing.assert_array_equal(np.concatenate([file["infos/qpos"], file["infos/qvel"]], 1), stream.observations)
    assert shapes == {
        "observations": ((1000, 4), "float32"),
        "actions": ((1000, 2), "float32"),
        "rewards": ((1000,), "float32"),
        "terminals": ((1000,), "bool"),
        "timeouts": ((1000,), "bool"),
        "infos/goal": ((1000, 2), "float32"),
        "infos/qpos": ((1000, 2), "float32"),
        "infos/qvel": ((1000, 2), "float32"),
    }
    near = np.linalg.norm(xy - GOAL, axis=1) <= 0.5
    np.testing.assert_array_equal(rewards[:-1], near[1:])
    assert 0 < rewards.sum() < len(rewards)


def d4rl(path: Path, stream: Transitions, leave_out: tuple[str, ...] = ()) -> None:
    """A file as D4RL's script writes it, with the row after each end stale."""
    stale = stream.observations.copy()
    ends = np.flatnonzero(stream.timeouts[:-1])
    stale[ends + 1] = stale[ends]
    arrays = {
        "observations": stale,
        "actions": stream.actions,
        "rewards": np.zeros(len(stream), np.float32),
        "terminals": np.zeros(len(stream), bool),
        "timeouts": stream.timeouts,
        "infos/goal": stream.goals,
        "infos/qpos": stream.observations[:, :2],
        "infos/qvel": stream.observations[:, 2:],
    }
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            if name not in leave_out:
                file.create_dataset(name, data=values, compression="gzip")


def minari(path: Path, stream: Transitions, **attributes: str) -> None:
    """A main_data.hdf5 as Minari writes it: one more state than actions, the first goal still the last one's."""
    ends = np.flatnonzero(stream.timeouts) + 1
    goal = np.zeros(2)
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs.update(attributes)
        for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            n, episode = end - start, file.create_group(f"episode_{i}")
            episode.attrs.update({"id": i, "total_steps": n})
            rows = np.minimum(np.arange(start, end + 1), len(stream) - 1)
            goals = np.concatenate([goal[None], np.repeat(stream.goals[start : start + 1], n, 0)]).astype(float)
            goal = stream.goals[start]
            values = {
                "observations/observation": stream.observations[rows].astype(float),
                "observations/desired_goal": goals,
                "observations/achieved_goal": stream.observations[rows, :2].astype(float),
                "actions": stream.actions[start:end],
                "rewards": np.zeros(n),
                "terminations": np.zeros(n, bool),
                "truncations": np.arange(n) == n - 1,
            }
            for name, array in values.items():
                episode.create_dataset(name, data=array, chunks=True, maxshape=(None, *array.shape[1:]))


def ogbench(path: Path, lengths: tuple[int, ...] = (40, 60), width: int = 2) -> dict[str, np.ndarray]:
    """A file as OGBench's pointmaze has it."""
    rng, n = np.random.default_rng(0), sum(lengths)
    arrays = {
        "observations": rng.normal(size=(n, width)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "terminals": np.isin(np.arange(n), np.cumsum(lengths) - 1),
        "qpos": rng.normal(size=(n, 2)).astype(np.float32),
        "qvel": np.zeros((n, 2), np.float32),
    }
    np.savez_compressed(path, **arrays)
    return arrays


def test_d4rls_stale_rows_are_mended(stream, tmp_path):
    path = tmp_path / "maze2d-umaze-sparse-v1.hdf5"
    d4rl(path, stream)
    found = files.load(path)
    assert found.content_sha256 == stream.content_sha256
    assert found.provenance == "maze2d-umaze-sparse-v1.hdf5, a file in the layout of D4RL's Maze2D"
    d4rl(path, stream, ("infos/qpos",))
    assert files.load(path).content_sha256 != stream.content_sha256


def test_minaris_pointmaze(tmp_path):
    path, stream = tmp_path / "main_data.hdf5", generate("umaze", 1_500, seed=4)
    minari(path, stream, dataset_id="D4RL/pointmaze/umaze-v2")
    assert files.kind(path) == "minari"
    found = files.load(path)
    # more than ten episodes, so their names in order of the alphabet would not do; goals of one step keep what is there
    assert stream.timeouts.sum() > 10
    for name in ("observations", "actions", "timeouts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(stream, name))
    longer = np.diff(np.flatnonzero(stream.timeouts), prepend=-1) > 1
    np.testing.assert_array_equal(*(s.goals[np.flatnonzero(s.timeouts)[longer]] for s in (found, stream)))
    assert found.provenance.startswith("D4RL/pointmaze/umaze-v2, a file of Minari's PointMaze")
    minari(path, stream)
    assert files.load(path).provenance.startswith("main_data.hdf5, a file of Minari's")


def test_ogbenchs_pointmaze(tmp_path):
    path = tmp_path / "pointmaze-large-navigate-v0.npz"
    arrays = ogbench(path)
    assert files.kind(path) == "ogbench"
    found = files.load(path)
    np.testing.assert_array_equal(found.observations[:, :2], arrays["observations"])
    assert not found.observations[:, 2:].any()
    np.testing.assert_array_equal(np.flatnonzero(found.timeouts), [39, 99])
    np.testing.assert_array_equal(found.goals[[0, 39, 40, 99]], arrays["observations"][[39, 39, 99, 99]])
    assert "pointmaze-large-navigate-v0.npz, a file of OGBench's pointmaze" in found.provenance


@pytest.mark.parametrize("name", NAMES[1:])
def test_damage_is_named_or_harmless(stream, tmp_path, name):
    path = tmp_path / name
    files.save(path, stream)
    whole, refused = path.read_bytes(), 0
    for at in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            assert files.load(path).content_sha256 == stream.content_sha256
        except WorkbenchError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    # of D4RL's layout only infos are read for the state, and rewards not at all
    assert refused > (30 if name.endswith(".zip") else 12)
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WorkbenchError, match=name):
            files.load(path)


def test_a_chunk_that_is_missing_does_not_read_as_zeros(stream, tmp_path):
    path, less = tmp_path / "a.zarr.zip", tmp_path / "b.zarr.zip"
    files.save(path, stream)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(less, "w") as rest:
        dropped = [n for n in whole.namelist() if n.startswith("actions/c/")]
        for name in whole.namelist():
            if name != dropped[0]:
                rest.writestr(name, whole.read(name))
    with pytest.raises(WorkbenchError, match=r"b\.zarr\.zip: got content of sha256"):
        files.load(less)


def foreign(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def antmaze(path: Path) -> None:
    seen, goals = np.zeros((4, 27)), np.zeros((4, 2))
    arrays = {"observations/observation": seen, "observations/desired_goal": goals, "actions": np.zeros((3, 8))}
    foreign(path, {f"episode_0/{name}": values for name, values in arrays.items()})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, s: None, "got no such file"),
        (lambda p, s: p.mkdir(), "got no such file"),
        (lambda p, s: p.write_text("x, y\n0, 1\n"), "10 bytes of no such form"),
        (lambda p, s: foreign(p, {"qpos": np.zeros(3)}), "HDF5 with qpos"),
        (lambda p, s: d4rl(p, s, ("infos/goal",)), "got no infos/goal"),
        (lambda p, s: d4rl(p, s, ("timeouts",)), "got no timeouts"),
        (lambda p, s: antmaze(p), r"shape \(3, 27\).*a ball in a plane"),
        (lambda p, s: foreign(p, {"episode_0/actions": np.zeros((3, 2))}), "cannot be read"),
        (lambda p, s: zipfile.ZipFile(p, "w").writestr("notes.txt", "none"), "a zip with notes.txt"),
    ],
)
def test_what_is_no_file_of_transitions_is_named(stream, tmp_path, write, message):
    path = tmp_path / "file.bin"
    write(path, stream)
    with pytest.raises(WorkbenchError, match=rf"^{path}: .*({message})"):
        files.load(path)


@pytest.mark.parametrize("change", [{"width": 29}, {"lengths": ()}])
def test_other_sets_of_ogbench_are_refused(tmp_path, change):
    path = tmp_path / "antmaze.npz"
    ogbench(path, **change)
    with pytest.raises(WorkbenchError, match=r"antmaze\.npz: .*pointmaze of OGBench"):
        files.load(path)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_what_was_there(stream, tmp_path, monkeypatch, name, fault):
    path = tmp_path / name
    path.write_bytes(b"before")

    def fail(_: Path) -> None:
        raise fault

    monkeypatch.setattr(files, "flush", fail)
    with pytest.raises(WorkbenchError if isinstance(fault, OSError) else KeyboardInterrupt):
        files.save(path, stream, overwrite=True)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_suffix_that_is_not_known_is_refused(stream, tmp_path):
    with pytest.raises(WorkbenchError, match=r"expected one of \.hdf5"):
        files.save(tmp_path / "a.npz", stream)
