"""Sources: the pictures a run can name, one adapter each, and the proof that they are what they say.

One is never put in the place of another, and every one says in one line what it is.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8

from diffusion_core.download import content_sha256
from diffusion_core.errors import WorkbenchError
from images.config import TaskConfig
from images.data import folder, published
from images.data.area import area_average
from images.data.pictures import Pictures, to_bytes
from images.data.split import choose, stratified

log = logging.getLogger("workbench.images")

Split: TypeAlias = Literal["train", "test"]

SOURCES = ("digits", "digits_inverted", "mnist", "mnist_inverted", "cifar10", "scenes", "folder")
N_DIGITS_TEST = 500
# `content_sha256` of scikit-learn's images (float64) and labels (int64)
DIGITS_SHA256 = "bb01e7eefb3eef5b7259929a28e805d91713a6fad721cf995ddde7c5d5c7aa58"
MNIST_SIZES = (32, 28, 16, 14, 8, 7)
CIFAR10_SIZES = (32, 16, 8)
SCENES_SIZES = (8, 16, 32, 64, 128)


def load(task: TaskConfig, split: Split) -> Pictures:
    """Load the pictures of one split of a task.

    `task.train` and `task.test` say how many scenes are drawn; of another source how many pictures are used, each class
    in its share, 0 for all.

    Args:
        task: source, size, channels and what else its source reads.
        split: "train" or "test"; no picture is in both.

    Raises:
        WorkbenchError: the source is not there, is damaged, or has not what the task asks for.
    """
    match task.source:
        case "digits":
            pictures = _limit(_digits(task, split), task, split)
        case "digits_inverted" | "mnist_inverted" as name:
            pictures = _inverted(load(replace(task, source=name.removesuffix("_inverted")), split), name)
        case "mnist":
            pictures = _limit(_mnist(task, split), task, split)
        case "cifar10":
            pictures = _limit(_cifar10(task, split), task, split)
        case "scenes":
            pictures = _scenes(task, split)
        case "folder":
            pixels, labels, classes, line = folder.load(task, split)
            line += f", content sha256 {content_sha256({'labels': labels, 'pixels': pixels})}"
            pictures = _pictures(pixels, labels, classes, "folder", line)
        case _:
            raise WorkbenchError(f"task.source: got {task.source!r}; expected one of {', '.join(SOURCES)}.")
    log.info("%s, %s: %s", task.name, split, pictures.provenance)
    return pictures


def _digits(task: TaskConfig, split: Split) -> Pictures:
    """Load scikit-learn's 1,797 handwritten digits of 8 x 8 pixels and 17 grey levels.

    1,297 to learn from and 500 to test with, drawn once and for all with every digit in its share.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI, its test part (CC BY 4.0).
    """
    from sklearn.datasets import load_digits

    _check(task, (8,), 1)
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    digest = content_sha256({"images": bunch.images, "labels": labels})
    if digest != DIGITS_SHA256:
        raise WorkbenchError(
            f"digits: got content sha256 {digest} from scikit-learn; expected {DIGITS_SHA256}: its data are not those "
            "of scikit-learn 1.9; install that."
        )
    keys = torch.rand(len(labels), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = stratified(labels, keys.numpy())
    rows = np.sort(order[:N_DIGITS_TEST] if split == "test" else order[N_DIGITS_TEST:])
    pixels = np.rint(bunch.images[rows, None] * 255 / 16).astype(np.uint8)
    line = f"digits: {len(rows)} of scikit-learn's {len(labels)} digits, {split}, all of content sha256 {digest}"
    return _pictures(pixels, labels[rows], tuple("0123456789"), "digits", line, levels=17)


def _inverted(plain: Pictures, name: str) -> Pictures:
    """Every picture twice, as it is and with black for white, which are classes of their own."""
    both = torch.cat([plain.pixels, 255 - plain.pixels])
    labels = torch.cat([plain.labels, plain.labels + plain.n_classes])
    classes = (*plain.classes, *(f"{word} inverted" for word in plain.classes))
    return Pictures(both, labels, classes, name, f"{plain.provenance}; each also inverted", plain.levels)


def _mnist(task: TaskConfig, split: Split) -> Pictures:
    """Load MNIST; sizes 32, 16 and 8 have its border of zeros widened to 32 first."""
    _check(task, MNIST_SIZES, 1)
    pixels, labels, line = published.mnist(split)
    if 32 % task.size == 0:
        pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    return _pictures(area_average(pixels[:, None], task.size), labels, tuple("0123456789"), "mnist", line)


def _cifar10(task: TaskConfig, split: Split) -> Pictures:
    _check(task, CIFAR10_SIZES, 3)
    pixels, labels, line, name = published.cifar10(split)
    return _pictures(area_average(pixels, task.size), labels, published.CIFAR10_CLASSES, name, line)


def _scenes(task: TaskConfig, split: Split) -> Pictures:
    _check(task, SCENES_SIZES, 3)
    if not (n := getattr(task, split)):
        raise WorkbenchError(f"task.{split}: got 0 for scenes; expected how many to draw: set task.{split}=2000, say.")
    return _drawn(n, task.size, task.tier, task.seed, split)


@functools.lru_cache(maxsize=4)
def _drawn(n: int, size: int, tier: int, seed: int, split: Split) -> Pictures:
    """Draw scenes; those of one object have a class, colour and shape. Nothing may write to what is returned."""
    from images.scenes import render, scene

    state = np.random.SeedSequence([seed, ("train", "test").index(split)]).generate_state(1, np.uint64)
    drawn = scene.draw(n, torch.Generator().manual_seed(int(state[0] >> np.uint64(1))), tier)
    pixels = to_bytes(2 * render.pictures(drawn, size) - 1)
    labels = drawn.labels() if tier == 1 else torch.zeros(n, dtype=torch.int64)
    line = f"scenes: {n} of tier {tier} drawn with seed {seed}, {split}, content sha256 "
    line += content_sha256({"labels": labels.numpy(), "pixels": pixels.numpy()})
    return Pictures(pixels, labels, scene.CLASSES if tier == 1 else (), "scenes", line)


def _pictures(
    pixels: UInt8[np.ndarray, "n channels height width"],
    labels: np.ndarray,
    classes: tuple[str, ...],
    name: str,
    line: str,
    levels: int = 256,
) -> Pictures:
    held = torch.from_numpy(np.array(pixels, order="C"))  # a copy: the arrays may be cached or read-only
    return Pictures(held, torch.from_numpy(np.array(labels)), classes, name, line, levels)


def _limit(pictures: Pictures, task: TaskConfig, split: Split) -> Pictures:
    n = getattr(task, split)
    if n in (0, len(pictures)):
        return pictures
    return pictures.subset(torch.from_numpy(choose(pictures.labels.numpy(), n, task.seed, f"task.{split}")))


def _check(task: TaskConfig, sizes: tuple[int, ...], channels: int) -> None:
    if task.size not in sizes:
        raise WorkbenchError(f"task.size: got {task.size} for {task.source}; expected one of {sizes}: choose one.")
    if task.channels != channels:
        raise WorkbenchError(f"task.channels: got {task.channels} for {task.source}; expected {channels}: set it so.")
