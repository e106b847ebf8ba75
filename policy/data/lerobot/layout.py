"""Layout of a LeRobot folder: which files hold which episode, and the names of its features in a replay buffer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.errors import WorkbenchError

INFO, OURS = "meta/info.json", "meta/workbench.json"
BOOKKEEPING = ("frame_index", "episode_index", "index")
"""Columns that follow from the lengths of the episodes."""
FEATURES = {"action": "action", "reward": "next.reward", "done": "next.done", "success": "next.success"}
FEATURES |= {"timestamp": "timestamp", "task_index": "task_index"}
MEND = "download or write the dataset again"
_KEYS = {feature: key for key, feature in FEATURES.items()}


@dataclass(frozen=True)
class Clip:
    """The part of a video file that belongs to one episode, from `start` seconds on."""

    path: Path
    start: float


@dataclass(frozen=True)
class Episode:
    """Where one episode is: its number, its steps, its parquet file, its clip of every camera on video."""

    index: int
    length: int
    table: Path
    clips: dict[str, Clip]


@dataclass(frozen=True)
class Folder:
    """What the metadata of a dataset say.

    Args:
        root: of the dataset.
        info: content of `meta/info.json`.
        ours: content of `meta/workbench.json`; empty in a dataset of others.
        tasks: instructions in the order of their index.
        episodes: in order.
        features: of each array of the buffer its feature, but for `BOOKKEEPING`.
    """

    root: Path
    info: dict[str, Any]
    ours: dict[str, Any]
    tasks: list[str]
    episodes: list[Episode]
    features: dict[str, str]

    @property
    def cameras(self) -> list[str]:
        """Features that are on video."""
        return [name for name, feature in self.info["features"].items() if feature["dtype"] == "video"]


def is_dataset(path: Path) -> bool:
    """Tell whether this is the root of a LeRobot dataset."""
    return (path / INFO).is_file()


def default_feature(key: str, values: np.ndarray) -> str:
    """Name the feature of an array: images are those of three bytes a pixel."""
    of = {"timestamp": np.dtype(np.float32), "task_index": np.dtype(np.int64)}.get(key)
    if of and (values.dtype != of or values.ndim != 1):
        return f"observation.{key}"
    return FEATURES.get(key) or f"observation.{'images.' if is_image(values) else ''}{key}"


def is_image(values: np.ndarray) -> bool:
    """Tell whether an array is (steps, height, width, 3) bytes."""
    return values.ndim == 4 and values.dtype == np.uint8 and values.shape[-1] == 3


def open_folder(root: Path) -> Folder:
    """Read the metadata of a dataset.

    Raises:
        WorkbenchError: a file that is missing or no JSON, or a format other than 2.0, 2.1 and 3.x.
    """
    info = _json(root / INFO)
    version = str(info.get("codebase_version"))
    if not version.startswith(("v2.0", "v2.1", "v3.")):
        raise WorkbenchError(
            f"{root}: got a LeRobot dataset of format {version}; expected v2.0, v2.1 or v3.x: convert it with lerobot."
        )
    try:
        cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
        tasks, episodes = (_v3 if version.startswith("v3") else _v2)(root, info, cameras)
    except (KeyError, TypeError, ValueError) as error:
        raise WorkbenchError(
            f"{root}: the metadata lack or garble {error}; expected the layout of LeRobot {version}: {MEND}."
        ) from error
    ours = _json(root / OURS) if (root / OURS).is_file() else {}
    return Folder(root, info, ours, tasks, sorted(episodes, key=lambda e: e.index), _named(info["features"], ours))


def _named(features: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    named = {key: told["feature"] for key, told in ours.get("arrays", {}).items() if told["feature"] in features}
    for feature in features:
        if feature in BOOKKEEPING or feature in named.values():
            continue
        short = _KEYS.get(feature) or feature.removeprefix("observation.").removeprefix("images.")
        named[feature if short in named else short] = feature
    return named


def _v2(root: Path, info: Mapping[str, Any], cameras: list[str]) -> tuple[list[str], list[Episode]]:
    tasks = {line["task_index"]: line["task"] for line in _json_lines(root / "meta/tasks.jsonl")}
    episodes = []
    for line in _json_lines(root / "meta/episodes.jsonl"):
        at = {"episode_index": line["episode_index"], "episode_chunk": line["episode_index"] // info["chunks_size"]}
        clips = {c: Clip(root / info["video_path"].format(video_key=c, **at), 0.0) for c in cameras}
        episodes.append(Episode(line["episode_index"], line["length"], root / info["data_path"].format(**at), clips))
    return [tasks[i] for i in range(len(tasks))], episodes


def _v3(root: Path, info: Mapping[str, Any], cameras: list[str]) -> tuple[list[str], list[Episode]]:
    found = table(root / "meta/tasks.parquet").to_pydict()
    texts = next(values for name, values in found.items() if name != "task_index")
    tasks = dict(zip(found["task_index"], texts, strict=True))
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{c}/{name}" for c in cameras for name in ("chunk_index", "file_index", "from_timestamp")]
    episodes = []
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise ValueError("meta/episodes")
    for row in (row for file in files for row in table(file, columns).to_pylist()):

        def at(prefix: str, row: Mapping[str, Any] = row) -> dict[str, int]:
            return {"chunk_index": row[f"{prefix}/chunk_index"], "file_index": row[f"{prefix}/file_index"]}

        clips = {}
        for camera in cameras:
            name = f"videos/{camera}"
            path = info["video_path"].format(video_key=camera, **at(name))
            clips[camera] = Clip(root / path, row[f"{name}/from_timestamp"])
        path = root / info["data_path"].format(**at("data"))
        episodes.append(Episode(row["episode_index"], row["length"], path, clips))
    return [tasks[i] for i in range(len(tasks))], episodes


def table(path: Path, columns: list[str] | None = None) -> Any:
    """Read a parquet file as it is: its schema alone decides.

    Raises:
        WorkbenchError: it is missing, damaged, or lacks a column.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # ParquetFile, because read_table would take the folder chunk-000 for a partition
        with pyarrow.parquet.ParquetFile(path) as file:
            if absent := sorted(set(columns or ()) - set(file.schema_arrow.names)):
                raise WorkbenchError(f"{path}: got no column {absent[0]}; expected it: {MEND}.")
            return file.read(columns)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise WorkbenchError(f"{path}: cannot be read as parquet ({reason}): {MEND}.") from error


def _json(path: Path) -> dict[str, Any]:
    found = _json_lines(path, whole=True)[0]
    if not isinstance(found, dict):
        raise WorkbenchError(f"{path}: got {type(found).__name__}; expected a JSON object: {MEND}.")
    return found


def _json_lines(path: Path, whole: bool = False) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(part) for part in ([text] if whole else text.splitlines()) if part.strip()]
    except (OSError, ValueError) as error:
        raise WorkbenchError(
            f"{path}: cannot be read as JSON ({error}); expected LeRobot's metadata: {MEND}."
        ) from error
