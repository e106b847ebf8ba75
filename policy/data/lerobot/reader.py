"""Reader of LeRobot folders."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.errors import WorkbenchError
from policy.data.lerobot.layout import MEND, Folder, default_feature, open_folder, table
from policy.data.lerobot.video import frames_at
from policy.data.reader import Content, StoredArray

log = logging.getLogger(__name__)


def read(root: Path, keys: Sequence[str] | None = None) -> Content:
    """Read a dataset: tables, images in them, and videos.

    Args:
        root: folder with meta/info.json.
        keys: arrays to read, by their names in the buffer; all when None. Text is not kept, and said so in the log.

    Raises:
        WorkbenchError: metadata, a file or a column missing or damaged, or files that disagree with the metadata.
    """
    folder = open_folder(root)
    numeric = _numeric(folder)
    if missing := sorted(set(keys or ()) - set(numeric)):
        raise WorkbenchError(
            f"{root}: got arrays {', '.join(numeric)}; expected also {', '.join(missing)}: choose among those."
        )
    chosen = numeric if keys is None else {key: numeric[key] for key in keys}
    columns = [f for f in dict.fromkeys([*chosen.values(), "timestamp"]) if f not in folder.cameras]
    found, times = _tables(folder, columns)
    fps = folder.info["fps"]
    lengths = [episode.length for episode in folder.episodes]
    even = (np.concatenate([np.arange(n) for n in lengths]) / fps).astype(np.float32)
    arrays = {}
    for key, feature in chosen.items():
        values = _film(folder, feature, times) if feature in folder.cameras else found[feature]
        told = folder.ours.get("arrays", {}).get(key)
        arrays[key] = values.reshape(len(values), *told["shape"]).astype(told["dtype"], copy=False) if told else values
    explicit = "timestamp" in folder.ours.get("arrays", {}) or (keys is not None and "timestamp" in keys)
    if not explicit and "timestamp" in arrays and np.array_equal(arrays["timestamp"], even):
        del arrays["timestamp"]
    if not folder.ours.get("tasks", True) and keys is None:
        arrays.pop("task_index", None)
    return Content(arrays, np.cumsum(lengths, dtype=np.int64), _attributes(folder, arrays))


def describe(root: Path) -> tuple[str, dict[str, StoredArray]]:
    """Tell the format of a dataset and, as its metadata have it, what it holds; sizes of columns are not known.

    Raises:
        WorkbenchError: as `read`, as far as metadata go.
    """
    folder = open_folder(root)
    steps = sum(episode.length for episode in folder.episodes)
    found = {}
    for key, feature in _numeric(folder).items():
        about = folder.info["features"][feature]
        shape = (steps, *(() if list(about["shape"]) == [1] else about["shape"]))
        picture = about["dtype"] in ("image", "video")
        size = sum(p.stat().st_size for p in {e.clips[feature].path for e in folder.episodes if feature in e.clips})
        codec = about["dtype"] if picture else "parquet"
        found[key] = StoredArray("uint8" if picture else about["dtype"], shape, shape, codec, size)
    return f"LeRobot {folder.info['codebase_version']}", found


def _numeric(folder: Folder) -> dict[str, str]:
    kinds = {key: folder.info["features"][feature]["dtype"] for key, feature in folder.features.items()}
    words = [key for key, kind in kinds.items() if kind not in ("image", "video", "bool") and not _is_number(kind)]
    if words:
        log.warning("%s: %s are no numbers and are left out", folder.root, ", ".join(words))
    return {key: feature for key, feature in folder.features.items() if key not in words}


def _is_number(kind: str) -> bool:
    return kind.startswith(("float", "int", "uint"))


def _tables(folder: Folder, columns: list[str]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    parts: dict[str, list[np.ndarray]] = {column: [] for column in columns}
    times = []
    for path, group in groupby(folder.episodes, lambda episode: episode.table):
        read_once = table(path, [*columns, "episode_index", "frame_index"])
        numbers, frames = (_values(path, read_once, name, folder) for name in ("episode_index", "frame_index"))
        held = {column: _values(path, read_once, column, folder) for column in columns}
        for episode in group:
            rows = np.flatnonzero(numbers == episode.index)
            if not np.array_equal(frames[rows], np.arange(episode.length)):
                raise WorkbenchError(
                    f"{path}: got {len(rows)} rows of episode {episode.index}, frame_index {frames[rows][:3]}...; "
                    f"expected {episode.length}, counted from 0 in order, as the metadata say: {MEND}."
                )
            for column in columns:
                parts[column].append(held[column][rows])
            times.append(held["timestamp"][rows])
    return {column: np.concatenate(values) for column, values in parts.items()}, times


def _values(path: Path, read_once: Any, column: str, folder: Folder) -> np.ndarray:
    import pyarrow

    about = folder.info["features"][column]
    found = read_once[column].combine_chunks()
    if about["dtype"] == "image":
        return np.stack([_picture(path, folder.root, cell) for cell in found.to_pylist()])
    n_rows, nulls = len(found), found.null_count
    while pyarrow.types.is_nested(found.type):
        found = found.flatten()
        nulls += found.null_count
    values = found.to_numpy(zero_copy_only=False) if not nulls else np.empty(0)
    shape = () if list(about["shape"]) == [1] else tuple(about["shape"])
    if nulls or values.size != n_rows * int(np.prod(shape, dtype=int)):
        raise WorkbenchError(
            f"{path}: got {values.size} numbers and {nulls} nulls in {n_rows} rows of {column}; expected shape "
            f"{shape} in each, as meta/info.json says: {MEND}."
        )
    # a copy, because arrow's memory cannot be written
    return np.array(values.reshape(n_rows, *shape), dtype=np.dtype(about["dtype"]))


def _picture(path: Path, root: Path, cell: dict[str, Any] | None) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        if cell is None:
            raise ValueError("a null")
        stream = io.BytesIO(cell["bytes"]) if cell.get("bytes") else root / cell["path"]
        return np.asarray(Image.open(stream).convert("RGB"))
    except (OSError, ValueError, TypeError, UnidentifiedImageError) as error:
        raise WorkbenchError(
            f"{path}: got an image that cannot be read ({error}); expected png bytes: {MEND}."
        ) from error


def _film(folder: Folder, camera: str, times: list[np.ndarray]) -> np.ndarray:
    height, width = _size(folder.info["features"][camera])
    fps = float(folder.info["fps"])
    out = np.empty((sum(e.length for e in folder.episodes), height, width, 3), np.uint8)
    row = 0
    for path, group in groupby(zip(folder.episodes, times, strict=True), lambda pair: pair[0].clips[camera].path):
        shown = np.concatenate([episode.clips[camera].start + of.astype(np.float64) for episode, of in group])
        for frame in frames_at(path, shown.tolist(), fps):
            if frame.shape != out.shape[1:]:
                raise WorkbenchError(
                    f"{path}: got a frame of {frame.shape}; expected {out.shape[1:]}, as meta/info.json says: {MEND}."
                )
            out[row] = frame
            row += 1
    return out


def _size(feature: dict[str, Any]) -> tuple[int, int]:
    named = dict(zip(feature.get("names") or (), feature["shape"], strict=False))
    if {"height", "width"} <= set(named):
        return named["height"], named["width"]
    # without names, colour comes first in some datasets and last in others
    channel_first = feature["shape"][0] == 3
    height, width = feature["shape"][1:] if channel_first else feature["shape"][:2]
    return height, width


def _attributes(folder: Folder, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    info = folder.info
    if folder.ours:
        told = {"tasks": folder.tasks} if folder.ours.get("tasks", True) else {}
        return {"fps": info["fps"]} | told | folder.ours.get("attributes", {})
    odd = {k: folder.features[k] for k, v in arrays.items() if default_feature(k, v) != folder.features[k]}
    names = {k: info["features"][folder.features[k]].get("names") for k in arrays}
    own = {"robot_type": info.get("robot_type"), "features": odd, "names": {k: v for k, v in names.items() if v}}
    return {"fps": info["fps"], "tasks": folder.tasks, "lerobot": {k: v for k, v in own.items() if v}}
