"""Forms of a data set on disk, told apart by the path: our own stores, robomimic's HDF5 and LeRobot's folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from diffusion_core.errors import WorkbenchError
from policy.data import lerobot, reader, robomimic, writer
from policy.data.reader import Content, StoredArray

Form: TypeAlias = Literal["store", "robomimic", "lerobot"]


@dataclass(frozen=True)
class Wish:
    """How to write.

    Args:
        format: "lerobot" for a folder of that format; empty: the name decides.
        zarr_format: 2 is what diffusion_policy reads, or 3.
        overwrite: replace what is there.
        fps: control rate in Hz that LeRobot wants; 0: what the buffer says.
        task: LeRobot's instruction for a buffer that has none.
        images: in a LeRobot folder, "png" (lossless) or "video" (lossy).
    """

    format: str = ""
    zarr_format: int = 2
    overwrite: bool = False
    fps: float = 0.0
    task: str = ""
    images: str = "png"


def form_of(path: Path) -> Form:
    """Name the form of what is there; what is neither HDF5 nor a LeRobot folder is taken for a store."""
    if path.suffix == robomimic.SUFFIX:
        return "robomimic"
    return "lerobot" if lerobot.is_dataset(path) else "store"


def read(
    path: Path,
    keys: Sequence[str] | None = None,
    as_uint8: Sequence[str] = (),
    fill_absent_chunks: bool = False,
    filter_key: str | None = None,
) -> Content:
    """Read a data set of any form; arguments as `reader.read` and `robomimic.read`.

    Raises:
        WorkbenchError: it cannot be read whole, or is asked for a filter key that its form does not have.
    """
    form = form_of(path)
    if filter_key is not None and form != "robomimic":
        raise WorkbenchError(f"{path}: got filter={filter_key}; expected robomimic's .hdf5 with it: drop filter=...")
    if form == "store":
        return reader.read(path, keys, as_uint8, fill_absent_chunks)
    found = robomimic.read(path, keys, filter_key) if form == "robomimic" else lerobot.read(path, keys)
    arrays = {k: reader.as_bytes(v, f"{path}: {k}") if k in as_uint8 else v for k, v in found.arrays.items()}
    return Content(arrays, found.episode_ends, found.attributes)


def describe(path: Path) -> tuple[str, dict[str, StoredArray]]:
    """Tell the form and what the metadata say, as `reader.describe`.

    Raises:
        WorkbenchError: the metadata cannot be used.
    """
    form = form_of(path)
    if form == "store":
        return reader.describe(path)
    return lerobot.describe(path) if form == "lerobot" else ("robomimic HDF5", robomimic.describe(path))


def check(path: Path, wish: Wish) -> None:
    """Refuse what `write` could not do; worth a call before hours of work.

    Raises:
        WorkbenchError: as `writer.check`.
    """
    if wish.format not in ("", "lerobot"):
        raise WorkbenchError(f"format: got {wish.format!r}; expected lerobot, or nothing where the name decides.")
    if wish.format == "lerobot" and path.suffix in (*writer.SUFFIXES, robomimic.SUFFIX):
        raise WorkbenchError(f"{path}: got format=lerobot and suffix {path.suffix!r}; expected a folder's name.")
    if _target(path, wish) != "store":
        writer.check_place(path, wish.overwrite)
    elif path.suffix in writer.SUFFIXES:
        writer.check(path, wish.zarr_format, wish.overwrite)
    else:
        raise WorkbenchError(
            f"{path}: got suffix {path.suffix!r}; expected a name ending in .zarr, .zarr.zip, .npz or .hdf5, or "
            "format=lerobot for a folder."
        )


def write(
    path: Path, arrays: Mapping[str, np.ndarray], ends: np.ndarray, attributes: Mapping[str, Any], wish: Wish
) -> None:
    """Write a data set, all or nothing (see `writer.placed`).

    Raises:
        WorkbenchError: `check` refuses it, the form cannot hold the content, or the disk refuses.
    """
    check(path, wish)
    form = _target(path, wish)
    if form == "store":
        writer.write(path, arrays, ends, attributes, wish.zarr_format, wish.overwrite)
        return
    with writer.placed(path) as fresh:
        if form == "robomimic":
            robomimic.write(fresh, arrays, ends, attributes)
        else:
            fresh.mkdir()
            fps = wish.fps or rate(attributes)
            lerobot.write(fresh, arrays, ends, attributes, fps, wish.task, wish.images)


def rate(attributes: Mapping[str, Any]) -> float:
    """The control rate in Hz that a buffer tells of itself, or 0: `fps`, or robomimic's `control_freq`."""
    args = robomimic.env_args(attributes) or {}
    return float(attributes.get("fps") or args.get("env_kwargs", {}).get("control_freq") or 0.0)


def _target(path: Path, wish: Wish) -> Form:
    if wish.format == "lerobot":
        return "lerobot"
    return "robomimic" if path.suffix == robomimic.SUFFIX else "store"
