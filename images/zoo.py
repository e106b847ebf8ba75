"""The zoo: trained systems by what they were configured with, so that none is trained twice.

``python -m images.zoo`` lists the shared checkpoints that ship; ``python -m images.zoo digits-ddpm`` trains one anew
from its one command, into ``images/pretrained``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from diffusion_core import checkpoint
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import plain, save
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run, launch, make_folder
from images.config import ImagesConfig, configuration
from images.model import PRETRAINED
from images.train import train

logger = logging.getLogger("workbench.images")

QUICK = ("task=digits", "preset=quick", "network=unet2d_small")
FULL = ("task=mnist", "preset=cpu", "network=unet2d_small")
SCENES = ("task=scenes", "preset=cpu", "network=unet2d_small")
SHARED: dict[str, tuple[str, ...]] = {
    "digits-ddpm": (*QUICK, "system=ddpm"),
    "digits-conditional": (*QUICK, "system=conditional"),
    "scenes-conditional": (*SCENES, "system=conditional"),
}
"""The checkpoints that ship (config, seed, recipe and sha256 in each; at most 4 MB), and the words that train them."""


def key(config: ImagesConfig) -> str:
    """Eight hex digits of all that decides what a training ends with: its configuration and that of its parent."""
    return hashlib.sha256(json.dumps(_decisive(plain(config)), sort_keys=True).encode()).hexdigest()[:8]


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    beside = {"runs", "resume", "parent", "evaluation", "sampler", "grid", "steps", "guidance_scale"}
    kept = {name: value for name, value in config.items() if name not in beside}
    unseen = {"log_every", "checkpoint_every", "keep", "threads"}
    kept["train"] = {name: value for name, value in kept["train"].items() if name not in unseen}
    if kept["parent_config"]:
        # whoever trained the parent first may have had another sampler or folder in mind
        kept["parent_config"] = _decisive(kept["parent_config"])
    return kept


@cache
def _shared() -> dict[str, str]:
    """The key of each shared checkpoint."""
    return {name: key(configuration(words)) for name, words in SHARED.items()}


def trained(
    overrides: Sequence[str], folder: Path, parent: Checkpoint | None = None
) -> tuple[Checkpoint, ImagesConfig]:
    """The system that these words train: the shipped one, the one in ``folder``, or trained (or resumed) there now.

    Args:
        overrides: of ``python -m images.train``.
        folder: of this zoo's runs; a run is named by its `key`.
        parent: what the system is built on.

    Returns:
        The checkpoint, and the configuration of these words (whoever trained it may have had another sampler in mind).
    """
    config = configuration(overrides)
    if parent is not None:
        config.parent, config.parent_config = str(parent.path), parent.config
    for name, shared in _shared().items():
        shipped = PRETRAINED / name
        if parent is None and (shipped / "meta.json").exists() and shared == key(config):
            saved = checkpoint.load(shipped)
            if saved.meta.get("key") == shared:
                return saved, config
    system = str(config.system["_target_"]).rpartition(".")[2].lower()
    here = Run(make_folder(folder / f"{config.task.name}-{system}-{key(config)}"))
    with (here.path / "lock").open("w") as lock:
        # another process may be training the same system: wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = checkpoint.listing(here.path)[-1:]
        if not newest or checkpoint.load(newest[0]).step < config.train.steps:
            logger.info("zoo: training %s: %s", here.path.name, " ".join(overrides))
            save(config, here.path / "config.yaml")
            train(config, here)
    return checkpoint.find(here.path), config


def ship(name: str) -> Path:
    """Train the shared checkpoint ``name`` and put it, without what resuming needs, into ``images/pretrained``."""
    if name not in SHARED:
        raise WorkbenchError(f"zoo: got {name}; expected one of {', '.join(SHARED)}.")
    config = configuration(SHARED[name])
    # by its key: a folder that other words were trained in would be taken for the finished training of these
    here = Run(make_folder(Path(config.runs) / "zoo" / f"{name}-{key(config)}"))
    save(config, here.path / "config.yaml")
    train(config, here)
    saved = checkpoint.find(here.path)
    meta = saved.meta | {"key": key(config), "command": "python -m images.train " + " ".join(SHARED[name])}
    written = checkpoint.save(here.path / "ship", saved.step, {"model": saved.tensors("model")}, saved.config, meta)
    shutil.rmtree(PRETRAINED / name, ignore_errors=True)
    return Path(shutil.move(written, PRETRAINED / name))


def main() -> None:
    """List the shared checkpoints, or train those that are named."""
    for name in sys.argv[1:]:
        logger.info("%s", ship(name))
    if not sys.argv[1:]:
        for name, words in SHARED.items():
            file = PRETRAINED / name / "model.safetensors"
            digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "not trained yet"
            logger.info("%-22s %s\n    python -m images.train %s", name, digest, " ".join(words))


if __name__ == "__main__":
    launch(main)
