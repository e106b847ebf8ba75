"""Splits: which pictures are held out and which are used, each class in its share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int64

from diffusion_core.errors import WorkbenchError


def stratified(labels: Int64[np.ndarray, " n"], keys: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Order rows so that every beginning holds each class in its share, to about one picture.

    The row of rank r (by its key, from 0) among the m rows of its class stands at place (r + 1/2) / m; equal places
    stand in the order of their keys.

    Args:
        labels: class of every row.
        keys: random numbers, one per row.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows[np.argsort(keys[rows], kind="stable")]] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((keys, place))


def keys_of(names: Iterable[str], seed: int) -> Float64[np.ndarray, " n"]:
    """Return a number in [0, 1) for every name, from the sha256 of seed and name.

    A new name changes no other's number, so adding files moves few of the old ones to another split.
    """
    digests = [hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()[:8] for name in names]
    return np.array([int.from_bytes(d, "big") / 2**64 for d in digests], dtype=np.float64)


def choose(labels: Int64[np.ndarray, " n"], n: int, seed: int, what: str) -> Int64[np.ndarray, " chosen"]:
    """Draw n rows, each class in its share, and return them rising; all when n is 0.

    Raises:
        WorkbenchError: more asked for than there are.
    """
    if n > len(labels):
        raise WorkbenchError(f"{what}: got {n}; expected at most the {len(labels)} pictures there are, or 0 for all.")
    if n == 0:
        return np.arange(len(labels))
    return np.sort(stratified(labels, np.random.default_rng(seed).random(len(labels)))[:n])
