"""Writer of replay stores: diffusion_policy's layout (see `reader`), written all or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffusion_core.durable import flush
from diffusion_core.errors import WorkbenchError
from policy.data.reader import ENDS

CHUNK_BYTES = 2_000_000
SUFFIXES = (".zarr", ".zip", ".npz")


def write(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    episode_ends: np.ndarray,
    attributes: Mapping[str, Any],
    zarr_format: int = 2,
    overwrite: bool = False,
) -> None:
    """Write a store beside its final place, flush it to the disk, then rename it into place.

    Whatever interrupts the writing, `path` holds what it held before; after a kill a hidden sibling
    `.<name>.<pid>.tmp` may remain. One exception: an existing *directory* cannot be replaced by a single rename; a
    kill between the two leaves it as `.<name>.<pid>.old`. The same content gives the same bytes (no timestamps).

    Args:
        path: named *.zarr (directory), *.zip or *.npz.
        zarr_format: 2 is what diffusion_policy reads.
        overwrite: replace what is there.

    Raises:
        WorkbenchError: `check` refuses it, or the disk does.
    """
    check(path, zarr_format, overwrite)
    encode = _encode_npz if path.suffix == ".npz" else _encode_zarr
    encoded = encode(arrays, episode_ends, attributes, zarr_format)
    with placed(path) as fresh:
        if path.suffix == ".zarr":
            _write_directory(fresh, encoded)
        else:
            _write_zip(fresh, encoded, zipfile.ZIP_DEFLATED if path.suffix == ".npz" else zipfile.ZIP_STORED)


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of `path` to write to, a file or a folder; afterwards flush it and rename it to `path`.

    Raises:
        WorkbenchError: the disk refuses; an error inside goes on, and nothing is left of what was written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _remove(fresh)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        for written in [fresh, *fresh.rglob("*")] if fresh.is_dir() else [fresh]:
            flush(written)
        _rename(fresh, path)
    except OSError as error:
        raise WorkbenchError(
            f"{path}: could not be written: {error.strerror or error}; nothing was changed there: free space or choose "
            "another place."
        ) from error
    finally:
        _remove(fresh)


def check(path: Path, zarr_format: int, overwrite: bool) -> None:
    """Refuse what `write` could not do; worth a call before hours of work.

    Raises:
        WorkbenchError: a name or format that is not known, a path that is taken, or a place where none may write.
    """
    if path.suffix not in SUFFIXES:
        raise WorkbenchError(f"{path}: got suffix {path.suffix!r}; expected a name ending in .zarr, .zarr.zip or .npz.")
    if zarr_format not in (2, 3):
        raise WorkbenchError(f"zarr_format: got {zarr_format}; expected 2 (diffusion_policy reads it) or 3.")
    check_place(path, overwrite)


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a path that is taken, or where none may write.

    Raises:
        WorkbenchError: so it is.
    """
    if path.exists() and not overwrite:
        raise WorkbenchError(f"{path}: got a path that exists; expected a free one: remove it or add overwrite=true.")
    near = next(p for p in path.absolute().parents if p.exists())
    if not near.is_dir() or not os.access(near, os.W_OK):
        raise WorkbenchError(f"{path}: got {near}, where nothing can be written; expected a writable directory.")


def _encode_zarr(
    arrays: Mapping[str, np.ndarray], ends: np.ndarray, attributes: Mapping[str, Any], zarr_format: int
) -> dict[str, bytes]:
    import numcodecs
    import zarr
    from zarr.codecs import BloscCodec
    from zarr.core.buffer import Buffer
    from zarr.storage import MemoryStore

    memory: dict[str, Buffer] = {}
    form: Literal[2, 3] = 3 if zarr_format == 3 else 2
    root = zarr.open_group(MemoryStore(memory), mode="w", zarr_format=form, attributes=dict(attributes))
    root.create_group("data")
    root.create_group("meta")
    named = {f"data/{k}": v for k, v in arrays.items()} | {ENDS: np.asarray(ends, np.int64)}
    for name, values in named.items():
        rows = max(1, min(len(values), CHUNK_BYTES // max(values[:1].nbytes, 1)))
        shuffle = numcodecs.Blosc.BITSHUFFLE
        v2, v3 = numcodecs.Blosc("zstd", 5, shuffle), BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")
        array = root.create_array(
            name,
            shape=values.shape,
            chunks=(rows, *values.shape[1:]),
            dtype=values.dtype,
            compressors=v2 if form == 2 else v3,
            config={"write_empty_chunks": True},
        )
        array[...] = values
    return {k: memory[k].to_bytes() for k in sorted(memory)}


def _encode_npz(
    arrays: Mapping[str, np.ndarray], ends: np.ndarray, attributes: Mapping[str, Any], zarr_format: int
) -> dict[str, memoryview]:
    named = dict(arrays) | {"episode_ends": np.asarray(ends, np.int64), "attributes": np.array(json.dumps(attributes))}
    encoded: dict[str, memoryview] = {}
    for name, values in named.items():
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.asarray(values), allow_pickle=False)
        encoded[f"{name}.npy"] = stream.getbuffer()
    return encoded


def _write_zip(path: Path, files: Mapping[str, bytes | memoryview], compression: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = compression
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


def _write_directory(path: Path, files: Mapping[str, bytes | memoryview]) -> None:
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _rename(fresh: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.is_dir():
        path.rename(old)
    try:
        fresh.replace(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _remove(old)
    # The rename itself is only on the disk once the directory is.
    flush(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
