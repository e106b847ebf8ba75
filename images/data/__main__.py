"""Look at the pictures of a task before learning from them: `python -m images.data task=digits [out=grid.png]`.

Takes the words of `python -m images.train` that begin with task (such as task=folder task.path=FOLDER task.size=32),
finds or downloads the source, reads and checks every file, and says what was found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from diffusion_core.configure import composed
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch
from images.config import ImagesConfig, TaskConfig
from images.data.pictures import save_grid
from images.data.sources import Split, load


def describe(task: TaskConfig, split: Split) -> str:
    """Return lines that say what a split holds: provenance, shape, channel means, and the count of each class."""
    pictures = load(task, split)
    values = pictures.pixels.double() / 255
    mean, std = (" ".join(f"{v:.4f}" for v in f(values.transpose(0, 1).flatten(1), 1)) for f in (torch.mean, torch.std))
    counts = torch.bincount(pictures.labels, minlength=pictures.n_classes)
    classes = ", ".join(f"{name} {count}" for name, count in zip(pictures.classes, counts, strict=False)) or "none"
    size = " x ".join(map(str, pictures.shape))
    return f"{pictures.provenance}\n  {size}, {pictures.levels} levels; mean {mean}, std {std}\n  classes: {classes}"


def main() -> None:
    """Describe both splits; with `out`, also write 64 training pictures beside each other."""
    words = [w for w in sys.argv[1:] if not w.startswith("out=")]
    if not words or (wrong := [w for w in words if not w.startswith(("task=", "task."))]):
        got = " ".join(wrong if words else []) or "nothing"
        raise WorkbenchError(f"data: got {got}; expected task=NAME [task.KEY=VALUE ...] [out=grid.png].")
    task = composed(ImagesConfig, "images.conf", "train", words).task
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        print(describe(task, split))
    for out in (Path(w.removeprefix("out=")) for w in sys.argv[1:] if w.startswith("out=")):
        save_grid(load(task, "train").pixels[:64], out, columns=8)


if __name__ == "__main__":
    launch(main)
