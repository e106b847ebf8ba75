"""Folder: a user's own pictures, every file looked at, none changed or left out silently."""

from __future__ import annotations

import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps

from diffusion_core.errors import WorkbenchError
from images.config import TaskConfig
from images.data import split as splits
from images.data.area import area_average

log = logging.getLogger("workbench.images")

Split: TypeAlias = Literal["train", "test"]
Pixels: TypeAlias = UInt8[np.ndarray, "channels size size"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_NAMES = {"train", "test", "val", "valid", "validation"}
SHOWN = 3


class UnfitError(Exception):
    """A sound picture that cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class Listing:
    """The picture files of one split.

    Args:
        root: folder that `names` are relative to.
        names: with forward slashes.
        labels: of each; 0 when there are no classes.
        classes: sorted names of the class folders.
    """

    root: Path
    names: tuple[str, ...]
    labels: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]

    def take(self, rows: Int64[np.ndarray, " rows"]) -> Listing:
        """Keep these rows."""
        return Listing(self.root, tuple(self.names[i] for i in rows), self.labels[rows], self.classes)


def load(
    task: TaskConfig, split: Split
) -> tuple[UInt8[np.ndarray, "n channels size size"], Int64[np.ndarray, " n"], tuple[str, ...], str]:
    """Read the pictures of one split, each cropped at its centre to a square and averaged down to `task.size`.

    Returns:
        Pixels, labels, class names, and a line of provenance.

    Raises:
        WorkbenchError: nothing there, files that cannot be read (unless `task.skip_damaged`), or that do not fit.
    """
    listing = held_out(task, split)
    whole = len(listing.names)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        results = list(pool.map(lambda name: _read(listing.root / name, task), listing.names, chunksize=64))
    failed = [(n, r) for n, r in zip(listing.names, results, strict=True) if isinstance(r, Exception)]
    _refuse_unfit(task, [(n, r) for n, r in failed if isinstance(r, UnfitError)], whole)
    _report_damage(task, [(n, r) for n, r in failed if not isinstance(r, UnfitError)], whole)
    listing = listing.take(np.array([i for i, r in enumerate(results) if isinstance(r, np.ndarray)], np.int64))
    pixels = np.stack([r for r in results if isinstance(r, np.ndarray)])
    line = f"folder {Path(task.path).resolve().name}: {len(pixels)} pictures, {split}"
    return pixels, listing.labels, listing.classes, line + (f", {len(failed)} damaged left out" if failed else "")


def held_out(task: TaskConfig, split: Split) -> Listing:
    """List the files of one split.

    Sub-folders `train` and `test` are the splits where there are both. Otherwise `task.test` pictures, or one in ten,
    are held out, each class in its share, chosen by the sha256 of `task.seed` and the file's name.

    Raises:
        WorkbenchError: no folder, no pictures, or folders that are not what `task.labels` says.
    """
    root = _root(task)
    parts = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    if {"train", "test"} <= parts.keys():
        if unread := sorted(parts.keys() - {"train", "test"}):
            log.warning("%s: %s not read; train and test are", root, ", ".join(unread))
        train = _list(task, parts["train"])
        listing = train if split == "train" else _list(task, parts["test"], train.classes)
        return listing.take(splits.choose(listing.labels, getattr(task, split), task.seed, f"task.{split}"))
    if task.labels == "folders" and (like := sorted(parts.keys() & SPLIT_NAMES)):
        raise WorkbenchError(
            f"{root}: got sub-folders {', '.join(like)}; expected both train and test, or one per class: rename them, "
            "or set task.labels=none."
        )
    listing = _list(task, root)
    n, n_test = len(listing.names), task.test or max(1, round(len(listing.names) / 10))
    if not n_test < n:
        raise WorkbenchError(
            f"{root}: got {n} pictures of which {n_test} are held out; expected some to learn from: add pictures or "
            "lower task.test."
        )
    order = splits.stratified(listing.labels, splits.keys_of(listing.names, task.seed))
    if split == "test":
        return listing.take(np.sort(order[:n_test]))
    rest = listing.take(np.sort(order[n_test:]))
    return rest.take(splits.choose(rest.labels, task.train, task.seed, "task.train"))


def decode(raw: bytes, size: int, channels: int) -> Pixels:
    """Decode one file: turn it upright, crop its centre to a square, and average areas down to `size`.

    Palettes, bits and opaque alpha are expanded, which loses nothing; grey is repeated for three channels, and colour
    becomes luma for one.

    Raises:
        UnfitError: transparent, more than 8 bits per channel, not RGB, several frames, or smaller than `size`.
        Exception: damaged; every decoder has its own.
    """
    with Image.open(io.BytesIO(raw)) as probe:
        # Loading a PNG does not compare its checksums, and verifying uses the object up.
        probe.verify()
    with Image.open(io.BytesIO(raw)) as opened:
        if (frames := getattr(opened, "n_frames", 1)) > 1:
            raise UnfitError(f"{frames} frames; expected one picture: save its frames as files")
        _refuse_deep(opened, raw)
        opened.load()
        picture = _opaque(ImageOps.exif_transpose(opened))
    side = min(picture.size)
    if side < size:
        found = f"{picture.width} x {picture.height} pixels"
        raise UnfitError(f"{found}; expected at least {size} each way: lower task.size or remove it")
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    grey = picture.convert("L" if channels == 1 else "RGB")
    square = np.asarray(grey)[top : top + side, left : left + side].reshape(1, side, side, channels)
    return area_average(square.transpose(0, 3, 1, 2), size)[0]


def _opaque(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGB", "L"):
        if "transparency" not in picture.info:
            return picture
        picture = picture.convert("RGBA")
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode in ("PA", "La", "RGBa"):
        picture = picture.convert("RGBA")
    if picture.mode in ("RGBA", "LA"):
        if picture.getchannel("A").getextrema() != (255, 255):
            raise UnfitError("transparent pixels; expected none: flatten it onto a background")
        picture = picture.convert(picture.mode[:-1])
    if picture.mode not in ("RGB", "L"):
        raise UnfitError(f"colour mode {picture.mode}; expected grey or RGB: convert it with its colour profile")
    return picture


def _refuse_deep(picture: Image.Image, raw: bytes) -> None:
    """Refuse what Pillow would cut to 8 bits without a word, or keep as wide integers."""
    bits = raw[24] if picture.format == "PNG" else 8
    if picture.format == "TIFF":
        bits = max(np.atleast_1d(picture.tag_v2.get(258, 8)))  # type: ignore[attr-defined]
    if bits > 8 or picture.mode.startswith(("I", "F")):
        depth = f"{bits} bits per channel" if bits > 8 else f"colour mode {picture.mode}"
        raise UnfitError(f"{depth}; expected 8: choose how its range maps to 0 to 255 and save it so")


def _read(path: Path, task: TaskConfig) -> Pixels | Exception:
    try:
        return decode(path.read_bytes(), task.size, task.channels)
    except MemoryError:
        raise
    except Exception as error:  # every decoder has its own; none is swallowed: the caller names each
        return error


def _refuse_unfit(task: TaskConfig, failed: list[tuple[str, Exception]], whole: int) -> None:
    if failed:
        shown = "; ".join(f"{name} has {error}" for name, error in failed[:SHOWN])
        more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
        for name, error in failed:
            log.error("%s: %s has %s", task.path, name, error)
        raise WorkbenchError(f"{task.path}: got {len(failed)} of {whole} pictures that do not fit: {shown}{more}.")


def _report_damage(task: TaskConfig, failed: list[tuple[str, Exception]], whole: int) -> None:
    for name, error in failed:
        log.log(
            logging.WARNING if task.skip_damaged else logging.ERROR,
            "%s: %s %s: %s",
            task.path,
            "left out damaged" if task.skip_damaged else "damaged",
            name,
            _reason(error),
        )
    if failed and (not task.skip_damaged or len(failed) == whole):
        shown = "; ".join(f"{name}: {_reason(error)}" for name, error in failed[:SHOWN])
        more = f"; and {len(failed) - SHOWN} more, all in the log" if len(failed) > SHOWN else ""
        remedy = "mend or remove them" if task.skip_damaged else "mend or remove them, or set task.skip_damaged=true"
        raise WorkbenchError(
            f"{task.path}: got {len(failed)} damaged of {whole} files ({shown}{more}); expected pictures: {remedy}."
        )


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "in no known picture format"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _root(task: TaskConfig) -> Path:
    if not task.path:
        raise WorkbenchError("task.path: got none; expected a folder of pictures: set task.path=FOLDER.")
    root = Path(task.path).expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise WorkbenchError(f"task.path: got {found} at {root}; expected a folder of pictures: correct task.path.")
    if task.labels not in ("folders", "none"):
        raise WorkbenchError(f"task.labels: got {task.labels!r}; expected folders or none.")
    return root


def _list(task: TaskConfig, root: Path, classes: tuple[str, ...] | None = None) -> Listing:
    """List the pictures below `root`; `classes`, if given, are those its folders must be among."""
    names, others, seen = [], 0, set()
    for folder, inside, files in os.walk(root, followlinks=True):
        # A link back to a folder above would list its pictures again and again, in both splits.
        if (real := os.path.realpath(folder)) in seen:
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(d for d in inside if not d.startswith("."))
        for file in files:
            if file.startswith("."):
                continue
            if file.lower().endswith(ENDINGS):
                names.append((Path(folder) / file).relative_to(root).as_posix())
            else:
                others += 1
    names.sort()
    if others:
        log.warning("%s: %d files with other endings not read", root, others)
    if not names:
        raise WorkbenchError(f"{root}: got no pictures; expected files ending in {', '.join(ENDINGS)}: add some.")
    if task.labels == "none":
        return Listing(root, tuple(names), np.zeros(len(names), np.int64), ())
    if beside := [n for n in names if "/" not in n]:
        raise WorkbenchError(
            f"{root}: got {len(beside)} pictures outside a class folder, the first {beside[0]}; expected "
            "CLASS/PICTURE: move them, or set task.labels=none."
        )
    tops = [n.split("/", 1)[0] for n in names]
    found = tuple(sorted(set(tops)))
    folders = {p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if empty := sorted(folders - set(found)):
        raise WorkbenchError(f"{root}: got no picture in {', '.join(empty)}; expected some in each: fill or remove it.")
    if classes is not None and (unknown := sorted(set(found) - set(classes))):
        raise WorkbenchError(f"{root}: got classes {', '.join(unknown)}; expected only those of train: rename them.")
    number = {name: i for i, name in enumerate(classes or found)}
    return Listing(root, tuple(names), np.array([number[t] for t in tops], np.int64), classes or found)
