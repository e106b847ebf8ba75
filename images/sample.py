"""Draw images: ``python -m images.sample checkpoint=pretrained/digits-conditional n=64 label=3``.

Writes the images one by one, and a grid of them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from diffusion_core.configure import typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run, launch, make_folder, one_line_errors
from images.config import SampleConfig
from images.data.pictures import save_grid, save_images
from images.evaluate import asked_for, generate, with_sampler
from images.model import find, restore, sampling
from images.systems import System

logger = logging.getLogger("workbench.images")


def label_of(word: str, classes: list[str]) -> int:
    """The number of the class that ``word`` names.

    Raises:
        WorkbenchError: there is no such class.
    """
    if word in classes:
        return classes.index(word)
    if word.isdecimal() and int(word) < len(classes):
        return int(word)
    named = f" ({', '.join(classes)})" if classes else ""
    raise WorkbenchError(f"label: got {word}; expected one of the {len(classes)} classes{named}, by name or number.")


def run(request: SampleConfig) -> Path:
    """Draw what ``request`` asks for; returns the folder of the files."""
    saved = find(request.checkpoint)
    system, config = restore(saved, request.expect_system)
    if not isinstance(system, System):
        raise WorkbenchError(
            f"checkpoint: got {request.checkpoint} of {saved.meta['system']}, which draws no images by itself; "
            "expected a generative system: name the one that is built on it."
        )
    if torch.cuda.is_available():
        system = system.cuda()
    config = with_sampler(config, request.sampler, request.grid, request.steps, request.guidance_scale)
    labels = asked_for(system, request.n, next(system.parameters()).device)
    if request.label:
        if not system.conditional:
            raise WorkbenchError(
                f"label: got {request.label}; expected none: {request.checkpoint} was trained without labels: leave "
                "label out, or name a checkpoint of system=conditional."
            )
        labels = torch.full_like(labels, label_of(request.label, saved.meta["classes"]))
    name = "sample-" + request.checkpoint.strip("/").replace("/", "-")
    here = Run(make_folder(Path(request.out))) if request.out else Run.create(Path("runs"), name)
    images = generate(system, labels, sampling(config), request.seed, run=here).cpu()
    save_images(images, here.path)
    save_grid(images, here.path / "grid.png", min(10, len(images)))
    logger.info("%d images are in %s", len(images), here.path)
    return here.path


@hydra.main(version_base=None, config_path="conf", config_name="sample")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(SampleConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
