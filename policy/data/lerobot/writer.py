"""Writer of LeRobot folders, format 3.0: many episodes in one parquet file, and in one video file of each camera."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.errors import WorkbenchError
from policy.data.lerobot.layout import INFO, OURS, default_feature, is_image
from policy.data.lerobot.statistics import statistics
from policy.data.lerobot.video import CODEC, PIXELS, Film

TABLES, EPISODES = (
    "data/chunk-{chunk:03d}/file-{file:03d}.parquet",
    "meta/episodes/chunk-{chunk:03d}/file-{file:03d}.parquet",
)
VIDEOS = "videos/{camera}/chunk-{chunk:03d}/file-{file:03d}.mp4"
TABLE_MB, VIDEO_MB, FILES_PER_CHUNK = 100, 200, 1000
_MB = 2**20


@dataclass
class _Numbered:
    """The number of the file that is being written."""

    chunk: int = 0
    file: int = 0

    def step(self) -> None:
        self.chunk, self.file = divmod(self.chunk * FILES_PER_CHUNK + self.file + 1, FILES_PER_CHUNK)


def write(
    root: Path,
    arrays: Mapping[str, np.ndarray],
    ends: np.ndarray,
    attributes: Mapping[str, Any],
    fps: float,
    task: str = "",
    images: str = "png",
) -> None:
    """Write a folder that is not there yet.

    Args:
        root: of the dataset.
        arrays: (steps, ...); those of bytes (steps, height, width, 3) are images.
        ends: exclusive ends of the episodes.
        attributes: of the buffer; `tasks` are the instructions that the array `task_index` counts.
        fps: control rate, Hz.
        task: the one instruction of a buffer without `task_index`.
        images: "png" in the tables, without loss, or "video" (h264, lossy).

    Raises:
        WorkbenchError: no control rate, `task_index` without its instructions, two arrays of one feature, or images of
            a size that a video cannot have.
    """
    if not 0 < fps < 100_000:
        raise WorkbenchError(f"{root.name}: got fps={fps}; expected the control rate in Hz: add fps=10, say.")
    if images not in ("png", "video"):
        raise WorkbenchError(f"{root.name}: got images={images}; expected png (lossless) or video (lossy).")
    tasks = _tasks(root, arrays, attributes, task)
    named = _features(root, arrays, attributes)
    lengths = np.diff(ends, prepend=0)
    frame = np.concatenate([np.arange(n) for n in lengths])
    columns: dict[str, np.ndarray] = {named[key]: values for key, values in arrays.items()}
    columns.setdefault("timestamp", (frame / fps).astype(np.float32))
    columns |= {"frame_index": frame, "episode_index": np.repeat(np.arange(len(ends)), lengths)}
    columns["index"] = np.arange(len(frame))
    columns.setdefault("task_index", np.zeros(len(frame), np.int64))
    filmed = [name for name, values in columns.items() if images == "video" and is_image(values)]
    rows = _write_tables(root, {k: v for k, v in columns.items() if k not in filmed}, ends)
    for camera in filmed:
        _write_videos(root, camera, columns[camera], ends, fps, rows)
    for row, end, length in zip(rows, ends, lengths, strict=True):
        part = slice(end - length, end)
        row["tasks"] = [tasks[i] for i in np.unique(columns["task_index"][part])]
        for name, values in columns.items():
            row |= {f"stats/{name}/{what}": of.tolist() for what, of in statistics(values[part]).items()}
    _write_episodes(root, rows)
    _write_tasks(root, tasks)
    own = attributes.get("lerobot", {})
    shapes = {name: values.shape[1:] or (1,) for name, values in columns.items()}
    info = {
        "codebase_version": "v3.0",
        "robot_type": own.get("robot_type"),
        "total_episodes": len(ends),
        "total_frames": len(frame),
        "total_tasks": len(tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": TABLE_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": int(fps) if fps.is_integer() else fps,
        "splits": {"train": f"0:{len(ends)}"},
        "data_path": TABLES.replace("chunk:", "chunk_index:").replace("file:", "file_index:"),
        "video_path": VIDEOS.replace("chunk:", "chunk_index:")
        .replace("file:", "file_index:")
        .replace("camera", "video_key")
        if filmed
        else None,
        "features": {
            name: _about(values, name in filmed, fps, shapes[name], _names(own, named, name))
            for name, values in columns.items()
        },
    }
    whole = {name: {k: v.tolist() for k, v in statistics(values).items()} for name, values in columns.items()}
    told = {k: {"feature": named[k], "shape": v.shape[1:], "dtype": str(v.dtype)} for k, v in arrays.items()}
    ours = {"tasks": "task_index" in arrays or bool(task), "arrays": told, "attributes": dict(attributes)}
    for name, content in {INFO: info, "meta/stats.json": whole, OURS: ours}.items():
        (root / name).write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _tasks(root: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], task: str) -> list[str]:
    if "task_index" not in arrays:
        return [task]
    tasks, index = list(attributes.get("tasks", [])), arrays["task_index"]
    if index.ndim != 1 or index.dtype != np.int64 or index.min() < 0 or index.max() >= len(tasks):
        raise WorkbenchError(
            f"{root.name}: got task_index of {index.dtype} {index.shape} from {index.min()} to {index.max()} and "
            f"{len(tasks)} instructions; expected int64 numbers of attributes['tasks'], one per step."
        )
    return tasks


def _features(root: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> dict[str, str]:
    odd = attributes.get("lerobot", {}).get("features", {})
    named = {key: odd.get(key) or default_feature(key, values) for key, values in arrays.items()}
    if bad := [key for key, name in named.items() if "/" in name or list(named.values()).count(name) > 1]:
        raise WorkbenchError(
            f"{root.name}: got array {bad[0]!r}, whose feature {named[bad[0]]!r} is taken or holds a slash; expected "
            "names that differ: rename it, or leave it out with keys=..."
        )
    return named


def _names(own: Mapping[str, Any], named: Mapping[str, str], feature: str) -> Any:
    return next((own.get("names", {}).get(key) for key, name in named.items() if name == feature), None)


def _about(values: np.ndarray, filmed: bool, fps: float, shape: Sequence[int], names: Any) -> dict[str, Any]:
    if not is_image(values):
        return {"dtype": str(values.dtype), "shape": list(shape), "names": names}
    height, width, channels = shape
    told = {"shape": list(shape), "names": ["height", "width", "channels"]}
    if not filmed:
        return {"dtype": "image"} | told
    video = {"height": height, "width": width, "codec": CODEC, "pix_fmt": PIXELS, "is_depth_map": False, "fps": fps}
    video |= {"channels": channels}
    return {"dtype": "video"} | told | {"info": {f"video.{k}": v for k, v in video.items()} | {"has_audio": False}}


def _write_tables(root: Path, columns: Mapping[str, np.ndarray], ends: np.ndarray) -> list[dict[str, Any]]:
    import pyarrow.parquet

    at, writer, size, begin = _Numbered(), None, 0, 0
    rows: list[dict[str, Any]] = []
    try:
        for episode, end in enumerate(ends.tolist()):
            part = pyarrow.table({name: _column(values[begin:end]) for name, values in columns.items()})
            if writer is not None and size + part.nbytes > TABLE_MB * _MB:
                writer.close()
                writer, size = None, 0
                at.step()
            if writer is None:
                path = root / TABLES.format(chunk=at.chunk, file=at.file)
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pyarrow.parquet.ParquetWriter(path, part.schema)
            writer.write_table(part)
            size += part.nbytes
            row = {"episode_index": episode, "tasks": [], "length": end - begin}
            row |= {"data/chunk_index": at.chunk, "data/file_index": at.file}
            rows.append(row | {"dataset_from_index": begin, "dataset_to_index": end})
            begin = end
    finally:
        if writer is not None:
            writer.close()
    return rows


def _column(values: np.ndarray) -> Any:
    import pyarrow

    if is_image(values):
        names = (f"frame-{i:06d}.png" for i in range(len(values)))
        return pyarrow.array([{"bytes": _png(image), "path": name} for image, name in zip(values, names, strict=True)])
    cells = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    # a single number stands in its column as it is, not as a list of one
    for n in reversed(values.shape[1:] if values.shape[1:] != (1,) else ()):
        cells = pyarrow.FixedSizeListArray.from_arrays(cells, n)
    return cells


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def _write_videos(
    root: Path, camera: str, images: np.ndarray, ends: np.ndarray, fps: float, rows: list[dict[str, Any]]
) -> None:
    at, film, begin = _Numbered(), None, 0
    try:
        for row, end in zip(rows, ends.tolist(), strict=True):
            if film is not None and film.path.stat().st_size > VIDEO_MB * _MB:
                film.close()
                film = None
                at.step()
            if film is None:
                path = root / VIDEOS.format(camera=camera, chunk=at.chunk, file=at.file)
                film = Film(path, fps, *images.shape[1:3])
            place = {"chunk_index": at.chunk, "file_index": at.file, "from_timestamp": float(film.seconds)}
            film.add(images[begin:end])
            place["to_timestamp"] = float(film.seconds)
            row |= {f"videos/{camera}/{name}": value for name, value in place.items()}
            begin = end
    finally:
        if film is not None:
            film.close()


def _write_episodes(root: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow.parquet

    path = root / EPISODES.format(chunk=0, file=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | place for row in rows]), path)


def _write_tasks(root: Path, tasks: Sequence[str]) -> None:
    import pyarrow.parquet

    told: dict[str, Any] = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    words: dict[str, Any] = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    columns = [{"name": "task_index", "field_name": "task_index"} | told]
    columns += [{"name": "task", "field_name": "task"} | words]
    # lerobot reads this table with pandas and looks instructions up in its index
    index = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    found = pyarrow.table({"task_index": np.arange(len(tasks)), "task": list(tasks)})
    found = found.replace_schema_metadata({"pandas": json.dumps(index)})
    pyarrow.parquet.write_table(found, root / "meta/tasks.parquet")
