"""Files of transitions: written in D4RL's layout, as HDF5 or zarr v3; read from these, from Minari's and OGBench's.

    observations, actions, rewards, terminals, timeouts, infos/goal, infos/qpos, infos/qvel

What this module writes also carries its provenance and the digest of its content, which is compared when it is read: a
chunk that is missing would else read as zeros.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

from diffusion_core.durable import flush
from diffusion_core.errors import WorkbenchError
from envs.maze2d import GOAL_RADIUS
from planning.data.transitions import Transitions, transitions

Kind: TypeAlias = Literal["d4rl", "zarr", "minari", "ogbench"]
EXPECTED = "expected D4RL's HDF5, a .zarr.zip of this project, Minari's main_data.hdf5 or OGBench's .npz"
HDF5_SUFFIXES = (".hdf5", ".h5")
SUFFIXES = (*HDF5_SUFFIXES, ".zarr.zip")
CHUNK_ROWS = 100_000


def save(
    path: Path,
    stream: Transitions,
    goal: Float[np.ndarray, "2"] | None = None,
    overwrite: bool = False,
    reach: float = GOAL_RADIUS,
) -> None:
    """Write a file beside its final place and rename it there: it is complete or not there at all.

    The same transitions give the same bytes.

    Args:
        path: its name decides: .hdf5, .h5 or .zarr.zip.
        stream: what to write.
        goal: that the rewards speak of, m; None: each step's own.
        overwrite: replace what is there.
        reach: distance at which a goal counts as reached, m.

    Raises:
        WorkbenchError: `check` refuses it, or the disk does.
    """
    check(path, overwrite)
    arrays = {
        "observations": stream.observations,
        "actions": stream.actions,
        "rewards": stream.rewards(goal, reach),
        "terminals": np.zeros(len(stream), bool),
        "timeouts": stream.timeouts,
        "infos/goal": stream.goals,
        "infos/qpos": stream.observations[:, :2],
        "infos/qvel": stream.observations[:, 2:],
    }
    about = {"provenance": stream.provenance, "content_sha256": stream.content_sha256}
    fresh = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (_write_hdf5 if path.name.endswith(HDF5_SUFFIXES) else _write_zarr)(fresh, arrays, about)
        flush(fresh)
        fresh.replace(path)
        flush(path.parent)
    except OSError as error:
        raise WorkbenchError(
            f"{path}: could not be written: {error.strerror or error}; nothing was changed there: free space or choose "
            "another place."
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def check(path: Path, overwrite: bool) -> None:
    """Refuse a place where `save` could not write; worth a call before minutes of work.

    Raises:
        WorkbenchError: another suffix, or a path that is taken.
    """
    if not path.name.endswith(SUFFIXES):
        raise WorkbenchError(f"{path}: got another suffix; expected one of {', '.join(SUFFIXES)}: rename it.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise WorkbenchError(f"{path}: got a path that exists; expected a free one: remove it or add overwrite=true.")


def load(path: Path) -> Transitions:
    """Read a file; its content decides what it is, and its provenance says so.

    Places stay in the coordinates of the file: those of Minari and OGBench are not this project's.

    Raises:
        WorkbenchError: no such file, none of these kinds, or one that is damaged.
    """
    found = kind(path)
    read = {"d4rl": _read_d4rl, "zarr": _read_zarr, "minari": _read_minari, "ogbench": _read_ogbench}[found]
    with _reading(path):
        return read(path)


def kind(path: Path) -> Kind:
    """Which of the layouts a file has, by its content.

    Raises:
        WorkbenchError: none of them.
    """
    import h5py

    if not path.is_file():
        raise WorkbenchError(f"{path}: got no such file; {EXPECTED}: check the path.")
    with _reading(path):
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                if "episode_0" in file:
                    return "minari"
                if {"observations", "actions"} <= set(file):
                    return "d4rl"
                held = f"HDF5 with {', '.join(sorted(file)[:8]) or 'nothing'}"
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = set(archive.namelist())
            if "zarr.json" in names:
                return "zarr"
            if {"observations.npy", "actions.npy", "terminals.npy"} <= names:
                return "ogbench"
            held = f"a zip with {', '.join(sorted(names)[:8]) or 'nothing'}"
        else:
            with path.open("rb") as stream:
                cut = stream.read(4) == b"PK\x03\x04"
            size = f"{path.stat().st_size} bytes"
            held = f"a zip that is cut short, {size}" if cut else f"{size} of no such form"
    raise WorkbenchError(f"{path}: got {held}; {EXPECTED}: check the path, or fetch or make the file again.")


def _read_d4rl(path: Path) -> Transitions:
    import h5py

    with h5py.File(path) as file:
        return _of_d4rl(lambda name: file[name][()], set(_names(file)), dict(file.attrs), path)


def _of_d4rl(get: Callable[[str], Any], names: set[str], about: Mapping[str, Any], path: Path) -> Transitions:
    if missing := sorted({"observations", "actions", "timeouts", "infos/goal"} - names):
        raise WorkbenchError(
            f"got no {', '.join(missing)}; expected D4RL's Maze2D (-v1): other tasks and versions lack them."
        )
    # only infos hold the true state after a segment's end: see `transitions`
    true = {"infos/qpos", "infos/qvel"} <= names
    stream = transitions(
        {
            "observations": np.concatenate([get("infos/qpos"), get("infos/qvel")], 1) if true else get("observations"),
            "actions": get("actions"),
            "goals": get("infos/goal"),
            "timeouts": get("timeouts"),
        },
        str(about.get("provenance", f"{path.name}, a file in the layout of D4RL's Maze2D")),
    )
    if about.get("content_sha256", stream.content_sha256) != stream.content_sha256:
        raise WorkbenchError(
            f"got content of sha256 {stream.content_sha256}; expected {about['content_sha256']}, as it was written: it "
            "was changed or damaged since; make or fetch it again."
        )
    return stream


def _read_zarr(path: Path) -> Transitions:
    import zarr
    from zarr.core.buffer import Buffer, cpu
    from zarr.storage import MemoryStore

    # the zip's own checksums see a damaged chunk, zarr does not always
    with zipfile.ZipFile(path) as archive:
        memory: dict[str, Buffer] = {n: cpu.Buffer.from_bytes(archive.read(n)) for n in archive.namelist()}
    root = zarr.open_group(MemoryStore(memory, read_only=True), mode="r")
    names = {name.removesuffix("/zarr.json") for name in memory}
    about = dict(root.attrs)
    if "content_sha256" not in about:
        raise WorkbenchError("got a zarr store without content_sha256; expected one that this project wrote.")
    return _of_d4rl(lambda name: np.asarray(root[name]), names, about, path)


def _read_minari(path: Path) -> Transitions:
    import h5py

    parts: list[dict[str, np.ndarray]] = []
    with h5py.File(path) as file:
        episodes = sorted((n for n in file if n.startswith("episode_")), key=lambda n: int(n.removeprefix("episode_")))
        for name in episodes:
            episode = file[name]
            actions, seen = episode["actions"][()], episode["observations/observation"][()]
            goals, n = episode["observations/desired_goal"][()], len(actions)
            if n == 0:
                continue
            if min(len(seen), len(goals)) < n:
                raise WorkbenchError(
                    f"got {len(seen)} observations and {len(goals)} goals for {n} actions in {name}; expected one more."
                )
            # the first goal of an episode is still that of the one before (Minari's issue #265)
            goals = np.concatenate([goals[min(1, len(goals) - 1)][None], goals[1:n]])
            timeouts = np.arange(n) == n - 1
            # the state after the last action has no action of its own
            parts.append({"observations": seen[:n], "actions": actions, "goals": goals, "timeouts": timeouts})
        name = file.attrs.get("dataset_id", path.name)
    if not parts:
        raise WorkbenchError("got no episode with a step in it; expected Minari's pointmaze.")
    name = name.decode() if isinstance(name, bytes) else name
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return transitions(whole, f"{name}, a file of Minari's PointMaze (another frame and other scores than D4RL's)")


def _read_ogbench(path: Path) -> Transitions:
    with np.load(path, allow_pickle=False) as file:
        seen, actions, ends = file["observations"], file["actions"], file["terminals"].astype(bool)
    if seen.ndim != 2 or seen.shape[1] != 2 or len(seen) != len(ends) or not len(ends):
        raise WorkbenchError(
            f"got observations of shape {seen.shape} and {len(ends)} terminals; expected (n, 2) and n, a pointmaze of "
            "OGBench."
        )
    last = np.append(np.flatnonzero(ends), len(ends) - 1)
    arrays = {
        # its ball has no velocity: an action moves it
        "observations": np.concatenate([seen, np.zeros_like(seen)], 1),
        "actions": actions,
        # which goal was pursued is not recorded
        "goals": seen[last[np.searchsorted(last[:-1], np.arange(len(ends)))]],
        "timeouts": ends,
    }
    return transitions(
        arrays, f"{path.name}, a file of OGBench's pointmaze (kinematic, cells of 4; goals: where trajectories ended)"
    )


def _write_hdf5(path: Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]], about: Mapping[str, str]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update(about)
        for name, values in arrays.items():
            chunks = (min(len(values), CHUNK_ROWS), *values.shape[1:])
            file.create_dataset(name, data=values, chunks=chunks, compression="gzip", compression_opts=4, shuffle=True)


def _write_zarr(path: Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]], about: Mapping[str, str]) -> None:
    import zarr
    from zarr.codecs import BloscCodec
    from zarr.core.buffer import Buffer
    from zarr.storage import MemoryStore

    memory: dict[str, Buffer] = {}
    root = zarr.open_group(MemoryStore(memory), mode="w", zarr_format=3, attributes=dict(about))
    for name, values in arrays.items():
        array = root.create_array(
            name,
            shape=values.shape,
            chunks=(min(len(values), CHUNK_ROWS), *values.shape[1:]),
            dtype=values.dtype,
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
            config={"write_empty_chunks": True},
        )
        array[...] = values
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in sorted(memory):
            # a fixed date: the same transitions give the same bytes
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), memory[name].to_bytes())
    path.write_bytes(content.getbuffer())


def _names(file: Any) -> Iterator[str]:
    names: list[str] = []
    file.visit(names.append)
    yield from names


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except WorkbenchError as error:
        raise WorkbenchError(f"{path}: {error}") from error
    except Exception as error:  # HDF5, zip, numpy and zarr have each their own for what is damaged
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WorkbenchError(
            f"{path}: cannot be read ({reason}); {EXPECTED}, whole: fetch or make the file again."
        ) from error
