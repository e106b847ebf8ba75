"""Downloads: fetch a public file once, and keep only what proves to be the file that was meant."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

log = logging.getLogger("workbench.download")


def cache(domain: str) -> Path:
    """Return the user's folder for downloaded files of a domain; it need not exist."""
    import pooch

    return Path(pooch.os_cache("diffusion-workbench")) / domain


def retrieve(url: str, target: Path, what: str, progress: bool = False) -> None:
    """Fetch a file; half a download never stands at its target.

    Nothing is checked here: the caller compares the content with what it knows.

    Args:
        url: where it is.
        target: where it goes; its folder is made.
        what: name for the log.
        progress: draw a bar.

    Raises:
        Exception: whatever requests, urllib3 or the disk raise; each has its own.
    """
    import pooch

    log.warning("downloading %s from %s to %s", what, url, target)
    # Its advice to paste the hash it computed would defeat the check that the caller makes.
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(timeout=30, progressbar=progress)
    pooch.retrieve(url, known_hash=None, fname=target.name, path=target.parent, downloader=downloader)


def put_aside(path: Path) -> str:
    """Rename a file that failed its check to `<name>.bad-<sha256 begins>`, and say so."""
    aside = path.with_name(f"{path.name}.bad-{file_sha256(path)[:8]}")
    path.replace(aside)
    return f"put aside as {aside} and not used"


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_sha256(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
    """Return the sha256 of named arrays, whatever file they came from.

    Over the names in sorted order: "name dtype shape" and a line feed, then the C-ordered little-endian bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()
