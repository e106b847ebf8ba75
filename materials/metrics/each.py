"""Measure many crystals: in several processes, with what was measured before taken from disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion_core.download import cache
from diffusion_core.run import make_folder
from materials.crystal import Crystal

CHUNK = 32


def key(crystal: Crystal) -> str:
    """A digest of what is measured: types, coordinates and lattice to six decimals."""
    digest = hashlib.sha256()
    for array in (crystal.atom_types, crystal.frac_coords.round(6) + 0.0, crystal.lattice.round(6) + 0.0):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


class Kept:
    """Values by key, in one file that several processes may use; a crash loses no more than a chunk.

    Args:
        path: of the file, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        self.path = path
        with closing(self._open()) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS kept (name TEXT, key TEXT, value TEXT, PRIMARY KEY(name, key))"
            )

    def get(self, name: str, keys: Iterable[str]) -> dict[str, Any]:
        """Those of ``keys`` that are there."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Any] = {}
        with closing(self._open()) as connection:
            for i in range(0, len(wanted), 500):
                part = wanted[i : i + 500]
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT key, value FROM kept WHERE name=? AND key IN ({marks})", [name, *part]
                )
                found.update({k: json.loads(value) for k, value in rows})
        return found

    def put(self, name: str, values: dict[str, Any]) -> None:
        """Keep ``values``; they must be what JSON can hold."""
        with closing(self._open()) as connection, connection:
            rows = [(name, k, json.dumps(value)) for k, value in values.items()]
            connection.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60.0)


def kept() -> Kept:
    """The user's own."""
    return Kept(cache("materials") / "measured.sqlite")


def each(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    name: str,
    workers: int = 1,
    keys: Sequence[str] | None = None,
    store: Kept | None = None,
    progress: bool = True,
) -> list[Any]:
    """``[function(item) for item in items]``.

    Args:
        function: of a module, so that other processes find it; what it returns must be what JSON can hold.
        items: what it is applied to.
        name: of what is measured, with a version: values are kept under it.
        workers: processes; 1: none but this one.
        keys: of the items, for what is kept; None: nothing is.
        store: where; None: the user's own.
        progress: draw a bar.
    """
    found: dict[int, Any] = {}
    if keys is not None:
        store = kept() if store is None else store
        before = store.get(name, keys)
        found = {i: before[k] for i, k in enumerate(keys) if k in before}
    left = [i for i in range(len(items)) if i not in found]
    chunks = [left[i : i + CHUNK] for i in range(0, len(left), CHUNK)]
    bar = tqdm(total=len(items), initial=len(found), desc=name, disable=None if progress else True, dynamic_ncols=True)
    with bar:
        for chunk, values in zip(chunks, _mapped(function, items, chunks, workers), strict=True):
            found.update(zip(chunk, values, strict=True))
            if keys is not None and store is not None:
                store.put(name, {keys[i]: value for i, value in zip(chunk, values, strict=True)})
            bar.update(len(chunk))
    return [found[i] for i in range(len(items))]


def _mapped(
    function: Callable[[Any], Any], items: Sequence[Any], chunks: Sequence[Sequence[int]], workers: int
) -> Iterator[list[Any]]:
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            yield _chunk(function, [items[i] for i in chunk])
        return
    # torch has threads, which a forked process would wait for
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, initializer=_one_thread) as pool:
        yield from pool.map(_chunk, [function] * len(chunks), [[items[i] for i in chunk] for chunk in chunks])


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


def _chunk(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]
