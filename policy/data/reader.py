"""Reader of replay stores: diffusion_policy's layout on disk, read with suspicion.

    <root>/data/<key>            one array per quantity, axis 0 = the steps of all episodes end to end
    <root>/meta/episode_ends     int64, exclusive cumulative ends

as zarr format 2 or 3, a directory or a zip (root anywhere inside it), or a flat .npz. zarr itself is lenient: a chunk
that is missing reads as the fill value, and a Blosc chunk cut short reads whatever lies behind it in memory. Both are
errors here, so chunks are fetched by this module and zarr only decodes them.
"""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from diffusion_core.errors import WorkbenchError

MEND = "fetch it again (python -m policy.data fetch human), make it again (generate), or convert an intact copy"
ENDS = "meta/episode_ends"
_SLAB_BYTES = 32_000_000
_MARKERS = (".zgroup", ".zarray", ".zattrs", "zarr.json")


@dataclass(frozen=True)
class StoredArray:
    """What the metadata of one array say; `stored_bytes` is its size on disk."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    codec: str
    stored_bytes: int


@dataclass(frozen=True)
class Content:
    """What was read of a store."""

    arrays: dict[str, np.ndarray]
    episode_ends: np.ndarray
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _Files:
    """The files of a store by their name below its root."""

    path: Path
    form: Literal["directory", "zip"]
    names: frozenset[str]
    read: Callable[[str], bytes]
    size: Callable[[str], int]
    zarr_format: Literal[2, 3] = 2


def read(
    path: Path,
    keys: Sequence[str] | None = None,
    as_uint8: Sequence[str] = (),
    fill_absent_chunks: bool = False,
) -> Content:
    """Read and decode a store; the values themselves are not judged here.

    Args:
        path: .zarr directory, .zip of one, or .npz.
        keys: arrays under data/ to decode; all when None, none when empty.
        as_uint8: of these, arrays to store as bytes whatever their dtype on disk; they must hold integers 0 to 255.
            Images kept as float32 then need a quarter of the memory.
        fill_absent_chunks: accept that a chunk is not there, as zarr does. Right only for a store written with
            `write_empty_chunks=False`, where it means "all fill value".

    Raises:
        WorkbenchError: no such path, not a store, layout incomplete, or a chunk missing, cut short or corrupt.
    """
    if path.suffix == ".npz" and path.exists():
        return _read_npz(path, keys, as_uint8)
    with _open_files(path) as files:
        chosen = _choose(path, _names(files), keys)
        ends = _as_ends(path, _decode(files, ENDS, None, False, False))
        arrays = {k: _decode(files, f"data/{k}", ends, k in as_uint8, fill_absent_chunks) for k in chosen}
        return Content(arrays, ends, _attributes(files))


def describe(path: Path) -> tuple[str, dict[str, StoredArray]]:
    """Tell the form of a store ("zarr v2 zip", "npz"...) and what its metadata say, without decoding a chunk.

    Raises:
        WorkbenchError: as `read`, as far as metadata go.
    """
    if path.suffix == ".npz" and path.exists():
        arrays = _read_npz(path, None, ()).arrays
        return "npz", {k: StoredArray(str(v.dtype), v.shape, v.shape, "npz", v.nbytes) for k, v in arrays.items()}
    with _open_files(path) as files:
        return f"zarr v{files.zarr_format} {files.form}", {k: _describe(files, f"data/{k}") for k in _names(files)}


def as_bytes(values: np.ndarray, name: str, first: int = 0) -> np.ndarray:
    """Return integers 0 to 255 as bytes, without a copy if they are bytes already.

    Args:
        values: of any number type.
        name: what they are, for the message.
        first: step of the first row, for the message.

    Raises:
        WorkbenchError: a value that is no such integer.
    """
    values = np.asarray(values)
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid="ignore"):
        cast = values.astype(np.uint8)
    if not np.array_equal(cast, values):
        at = np.argwhere(cast != values)[0]
        raise WorkbenchError(
            f"{name}: got {values[tuple(at)]} at step {first + at[0]}; expected integers 0 to 255, which fit "
            "bytes: rescale the images."
        )
    return cast


@contextmanager
def _open_files(path: Path) -> Iterator[_Files]:
    if not path.exists():
        raise WorkbenchError(f"{path}: got no such file or directory; expected a replay store: check the path.")
    if path.is_dir():
        # Only where the layout can be: a mistaken path may hold millions of files.
        roots = [p for p in (path, *path.glob("*"), *path.glob("*/*")) if (p / ENDS).exists()] or [path]
        walk = (p for root in roots for p in (*root.glob("*"), *root.glob("data/**/*"), *root.glob("meta/**/*")))
        names = frozenset(p.relative_to(path).as_posix() for p in walk if p.is_file())

        def read_file(name: str) -> bytes:
            return (path / name).read_bytes()

        def size_of(name: str) -> int:
            return (path / name).stat().st_size

        yield _at_root(_Files(path, "directory", names, read_file, size_of))
        return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        with path.open("rb") as head:
            zipped = head.read(4) == b"PK\x03\x04"
        fault = "a zip that is cut short (no table of contents at its end)" if zipped else "a file that is no zip"
        raise WorkbenchError(
            f"{path}: got {fault} of {path.stat().st_size} bytes; expected a .zarr directory, a .zarr.zip or an .npz: "
            f"{MEND}."
        ) from error
    with archive:
        names = frozenset(i.filename for i in archive.infolist() if not i.is_dir())
        yield _at_root(_Files(path, "zip", names, archive.read, lambda name: archive.getinfo(name).compress_size))


def _at_root(files: _Files) -> _Files:
    roots = {n[: -len(m) - len(ENDS) - 1] for n in files.names for m in _MARKERS if n.endswith(f"{ENDS}/{m}")}
    if len(roots) > 1:
        raise WorkbenchError(f"{files.path}: got {len(roots)} stores in it ({', '.join(sorted(roots))}); expected 1.")
    if not roots:
        if not any(PurePosixPath(n).name in _MARKERS for n in files.names):
            raise WorkbenchError(
                f"{files.path}: got no zarr metadata in it; expected a zarr store of format 2 or 3: check the path."
            )
        raise WorkbenchError(f"{files.path}: got a zarr store without {ENDS}; expected data/<key> and {ENDS}: {MEND}.")
    root = roots.pop()
    names = frozenset(n[len(root) :] for n in files.names if n.startswith(root))
    if not any(n.startswith("data/") for n in names):
        raise WorkbenchError(f"{files.path}: got a zarr store without data/; expected data/<key> and {ENDS}: {MEND}.")
    return _Files(
        files.path,
        files.form,
        names,
        lambda name: files.read(root + name),
        lambda name: files.size(root + name),
        3 if f"{ENDS}/zarr.json" in names else 2,
    )


def _names(files: _Files) -> list[str]:
    return sorted({n.split("/")[1] for n in files.names if n.startswith("data/") and n.count("/") >= 2})


def _as_ends(path: Path, values: np.ndarray) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0:
        raise WorkbenchError(
            f"{path}: got episode_ends of type {values.dtype} and shape {values.shape}; expected a list of "
            f"integers, one per episode: {MEND}."
        )
    return values.astype(np.int64)


def _choose(path: Path, names: list[str], keys: Sequence[str] | None) -> list[str]:
    missing = sorted(set(keys or ()) - set(names))
    if missing:
        raise WorkbenchError(
            f"{path}: got arrays {', '.join(names)}; expected also {', '.join(missing)}: use a store that has them."
        )
    return names if keys is None else list(keys)


def _array(files: _Files, name: str, chunks: Mapping[str, bytes]) -> Any:
    import zarr
    from zarr.core.buffer import Buffer, cpu
    from zarr.storage import MemoryStore

    try:
        found = {f"{name}/{m}": files.read(f"{name}/{m}") for m in _MARKERS if f"{name}/{m}" in files.names}
        memory: dict[str, Buffer] = {k: cpu.Buffer.from_bytes(v) for k, v in {**found, **chunks}.items()}
        array = zarr.open_array(MemoryStore(memory, read_only=True), path=name, mode="r")
    except Exception as error:  # zarr raises whatever its JSON, dtype and codec parsers raise
        raise WorkbenchError(
            f"{files.path}: the metadata of {name} cannot be used: {_first_line(error)}; expected a zarr v2 or v3 "
            f"array with an installed codec: leave it out with keys=... or {MEND}."
        ) from error
    if array.dtype.kind not in "biuf" or array.ndim < 1:
        raise WorkbenchError(
            f"{files.path}: got {name} of dtype {array.dtype} and shape {array.shape}; expected numbers along a step "
            "axis: leave it out with keys=..."
        )
    return array


def _decode(files: _Files, name: str, ends: np.ndarray | None, as_uint8: bool, fill_absent_chunks: bool) -> np.ndarray:
    bare = _array(files, name, {})
    stored = bare.shards or bare.chunks
    grid = list(itertools.product(*(range(math.ceil(n / c)) for n, c in zip(bare.shape, stored, strict=True))))
    names = {at: f"{name}/{bare.metadata.encode_chunk_key(at)}" for at in grid}
    absent = [at for at in grid if names[at] not in files.names]
    if absent and not fill_absent_chunks:
        more = f" and {len(absent) - 1} more chunks" if len(absent) > 1 else ""
        where = _where(absent[0][0], stored[0], bare.shape[0], ends)
        raise WorkbenchError(
            f"{files.path}: chunk {names[absent[0]]}{more} missing, {where}; expected {len(grid)} chunks (zarr would "
            f"read its fill value here): {MEND}; if the writer left empty chunks out on purpose, use fill_absent=true "
            "with convert."
        )
    blosc = bare.shards is None and "blosc" in str(bare.compressors[-1:]).lower()

    def damaged(at: tuple[int, ...], reason: object) -> WorkbenchError:
        where = _where(at[0], stored[0], bare.shape[0], ends)
        return WorkbenchError(f"{files.path}: chunk {names[at]} is damaged ({reason}), {where}: {MEND}.")

    chunks = {}
    for at in grid:
        if names[at] in files.names:
            try:
                raw = files.read(names[at])
            except Exception as error:  # zip and its decompressors have a dozen kinds
                raise damaged(at, _first_line(error)) from error
            # numcodecs takes the compressed length from the Blosc header and reads past the end of a shorter buffer.
            expected = int.from_bytes(raw[12:16], "little")
            if blosc and (len(raw) < 16 or expected != len(raw)):
                raise damaged(at, f"got {len(raw)} bytes, its header says {expected}")
            chunks[names[at]] = raw
    array = _array(files, name, chunks)
    out = np.empty(array.shape, np.uint8 if as_uint8 else array.dtype.newbyteorder("="))
    rows = max(stored[0], _SLAB_BYTES // max(out[:1].nbytes, 1) // stored[0] * stored[0])
    for first in range(0, array.shape[0], rows):
        steps = slice(first, first + rows)
        try:
            values = array[steps]
        except Exception:  # every codec has exceptions of its own; the loop below finds and names the chunk
            for at in grid:
                if first <= at[0] * stored[0] < first + rows:
                    try:
                        array[tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, stored, strict=True))]
                    except Exception as error:
                        raise damaged(at, _first_line(error)) from error
            raise
        out[steps] = as_bytes(values, f"{files.path}: {name}", first) if as_uint8 else values
    return out


def _where(chunk: int, rows: int, n_steps: int, ends: np.ndarray | None) -> str:
    first, last = chunk * rows, min((chunk + 1) * rows, n_steps) - 1
    if ends is None:
        return f"entries {first} to {last}"
    a, b = np.searchsorted(ends, [first, last], side="right").clip(max=max(len(ends) - 1, 0))
    return f"steps {first} to {last}, episodes {a} to {b}"


def _describe(files: _Files, name: str) -> StoredArray:
    array = _array(files, name, {})
    codec = ", ".join(str(c) for c in array.compressors) or "none"
    size = sum(files.size(n) for n in files.names if n.startswith(f"{name}/"))
    return StoredArray(str(array.dtype), array.shape, array.shards or array.chunks, codec, size)


def _attributes(files: _Files) -> dict[str, Any]:
    name = "zarr.json" if files.zarr_format == 3 else ".zattrs"
    if name not in files.names:
        return {}
    try:
        found = json.loads(files.read(name))
        return dict(found.get("attributes", {}) if files.zarr_format == 3 else found)
    except (ValueError, AttributeError, TypeError) as error:
        raise WorkbenchError(f"{files.path}: {name} is no JSON object ({_first_line(error)}): {MEND}.") from error


def _read_npz(path: Path, keys: Sequence[str] | None, as_uint8: Sequence[str]) -> Content:
    try:
        with np.load(path, allow_pickle=False) as found:
            if "episode_ends" not in found.files:
                raise WorkbenchError(f"{path}: got {', '.join(found.files)}; expected also episode_ends: {MEND}.")
            names = [n for n in found.files if n not in ("episode_ends", "attributes")]
            arrays = {k: found[k] for k in _choose(path, names, keys)}
            ends = _as_ends(path, found["episode_ends"])
            attributes = json.loads(str(found["attributes"])) if "attributes" in found.files else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise WorkbenchError(f"{path}: cannot be read as .npz: {_first_line(error)}: {MEND}.") from error
    arrays = {k: as_bytes(v, f"{path}: {k}") if k in as_uint8 else v for k, v in arrays.items()}
    return Content(arrays, ends, attributes)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
