"""Published sets: MNIST and CIFAR-10, found on this machine or downloaded, and in either case proven."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import logging
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int64, UInt8

from diffusion_core.download import cache, file_sha256, put_aside, retrieve
from diffusion_core.errors import WorkbenchError

log = logging.getLogger("workbench.images")

Split: TypeAlias = Literal["train", "test"]
Labels: TypeAlias = Int64[np.ndarray, " n"]

MNIST_STAGED = ("mnist.npz", "7a9e9afe3e5a31a40029aea4d65940367b3e0a32c169095d18883ac86d672e09")
MNIST_URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
# sha256 of the four files unpacked: mirrors compress them differently
MNIST_FILES = {
    "train": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    "test": {
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
}

CIFAR10_STAGED = ("cifar10_jpeg.npz", "dd6210aeed87bf6b970aeb61ea9d9a4c204aedbe1709db2115be64e155755750")
CIFAR10_URLS = ("https://www.cs.toronto.edu/~kriz/",)
CIFAR10_ARCHIVE = ("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")
CIFAR10_MEMBERS = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def mnist(split: Split, download: bool = True) -> tuple[UInt8[np.ndarray, "n 28 28"], Labels, str]:
    """Load MNIST in its published order.

    Looked for as `mnist.npz` in `$WORKBENCH_DATA/images/`, then as the four original files in the user's cache, where
    they are downloaded to; both must have the content known here.

    Returns:
        Pixels, digits, and one line of provenance.

    Raises:
        WorkbenchError: not found and not downloaded, or not what it should be.

    Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition.
    """
    if path := _staged(*MNIST_STAGED):
        with np.load(path, allow_pickle=False) as held:
            pixels, labels = held[f"{split}_x"], held[f"{split}_y"]
    else:
        folder = cache("images") / "mnist"
        pixels, labels = (
            _idx(_fetched(folder / f"{name}.gz", MNIST_URLS, "MNIST", digest, gzip.decompress, download))
            for name, digest in MNIST_FILES[split].items()
        )
    proof = f"images sha256 {next(iter(MNIST_FILES[split].values()))}"
    return pixels, labels.astype(np.int64), f"mnist: {len(pixels)} of MNIST's {split} set, {proof}"


def cifar10(split: Split, download: bool = True) -> tuple[UInt8[np.ndarray, "n 3 32 32"], Labels, str, str]:
    """Load CIFAR-10, and say which: the published pixels or their JPEG copy.

    `$WORKBENCH_DATA/images/` may hold the original archive (`cifar-10-binary.tar.gz`) or `cifar10_jpeg.npz`, a mirror
    whose pictures went through JPEG at a quality of about 75 and stand in another order: a distance measured against it
    is not one measured against CIFAR-10. Otherwise the original archive is downloaded to the user's cache.

    Returns:
        Pixels, labels, one line of provenance, and "cifar10" or "cifar10-jpeg".

    Raises:
        WorkbenchError: not found and not downloaded, or not what it should be.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    if not (path := _staged(*CIFAR10_ARCHIVE)) and (path := _staged(*CIFAR10_STAGED)):
        pixels, labels = _jpegs(path, split)
        name, title, digest = "cifar10-jpeg", "CIFAR-10-JPEG", CIFAR10_STAGED[1]
    else:
        name, title, digest = "cifar10", "CIFAR-10", CIFAR10_ARCHIVE[1]
        if path:
            raw = path.read_bytes()
        else:
            path = cache("images") / CIFAR10_ARCHIVE[0]
            raw = _fetched(path, CIFAR10_URLS, title, digest, bytes, download)
        pixels, labels = _records(raw, split)
    return pixels, labels, f"{name}: {len(pixels)} of {title}'s {split} set, {path.name}, sha256 {digest}", name


def _staged(name: str, digest: str) -> Path | None:
    root = os.environ.get("WORKBENCH_DATA")
    path = Path(root).expanduser() / "images" / name if root else None
    if path is None or not path.exists():
        return None
    if (got := file_sha256(path)) != digest:
        raise WorkbenchError(
            f"{path}: got sha256 {got}; expected {digest}: the file is left as it is and not used; replace it, or move "
            "it away to have the published files downloaded."
        )
    return path


def _fetched(
    path: Path, urls: tuple[str, ...], what: str, digest: str, unpack: Callable[[bytes], bytes], download: bool
) -> bytes:
    """Return a file's unpacked bytes, which have the sha256 `digest`; download it if it is not there."""
    if not path.exists():
        _download(path, urls, what, download)
    try:
        content = unpack(path.read_bytes())
        got = f"content of sha256 {hashlib.sha256(content).hexdigest()}"
    except (OSError, EOFError, zlib.error) as error:
        content, got = b"", f"a damaged archive ({error})"
    if got != f"content of sha256 {digest}":
        raise WorkbenchError(
            f"{path}: got {got}; expected content of sha256 {digest}: this is not the published file; it was "
            f"{put_aside(path)}; run again to download it."
        )
    return content


def _download(path: Path, urls: tuple[str, ...], what: str, download: bool) -> None:
    why = "not asked to download"
    for url in urls if download else ():
        try:
            return retrieve(url + path.name, path, f"{what} ({path.name})")
        except Exception as error:  # requests, urllib3 and the disk have each their own
            why = f"the download failed: {type(error).__name__}"
            log.warning("no %s from %s: %s", path.name, url, error)
    root = os.environ.get("WORKBENCH_DATA")
    where = f"{Path(root).expanduser() / 'images'}" if root else "$WORKBENCH_DATA/images (WORKBENCH_DATA is not set)"
    raise WorkbenchError(
        f"{what}: got none in {where} nor at {path}, and {why}; expected it there or at {urls[0]}{path.name}: run "
        "where there is a network, or copy the file there."
    )


def _idx(raw: bytes) -> UInt8[np.ndarray, "..."]:
    """Read the format of MNIST: two zeros, 8 for bytes, the rank, big-endian extents, values."""
    rank = raw[3]
    shape = np.frombuffer(raw, ">i4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _records(archive: bytes, split: Split) -> tuple[UInt8[np.ndarray, "n 3 32 32"], Labels]:
    """Read CIFAR's records of 3,073 bytes: the label, then red, green and blue, row by row."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name in CIFAR10_MEMBERS[split]:
            member = tar.extractfile(f"cifar-10-batches-bin/{name}")
            assert member is not None
            found.append(np.frombuffer(member.read(), np.uint8).reshape(-1, 3073))
    records = np.concatenate(found)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


@functools.lru_cache(maxsize=2)
def _jpegs(path: Path, split: Split) -> tuple[UInt8[np.ndarray, "n 3 32 32"], Labels]:
    from PIL import Image

    with np.load(path, allow_pickle=False) as held:
        if tuple(held["classes"]) != CIFAR10_CLASSES:
            raise WorkbenchError(f"{path}: got classes {tuple(held['classes'])}; expected {CIFAR10_CLASSES}.")
        raw, offsets, labels = (held[f"{split}_{k}"] for k in ("bytes", "offsets", "labels"))
    pixels = np.empty((len(labels), 32, 32, 3), np.uint8)

    for i in range(len(labels)):
        with Image.open(io.BytesIO(raw[offsets[i] : offsets[i + 1]].tobytes())) as picture:
            pixels[i] = np.asarray(picture)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels.astype(np.int64)
