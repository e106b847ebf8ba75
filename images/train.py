"""Train a system: ``python -m images.train task=scenes system=ddpm``.

Leaves a run folder with checkpoints, records, samples, an evaluation and ``report.html``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.configure import plain
from diffusion_core.noise import PerSample
from diffusion_core.resume import open_run, require_same_data, resumable
from diffusion_core.run import Run, command, launch, one_line_errors
from diffusion_core.train import fit, processes
from images import evaluate
from images.config import ImagesConfig
from images.data.sources import load
from images.model import adopt, assemble, restore, sampling, with_parent
from images.systems import Component, System

logger = logging.getLogger("workbench.images")


def train(config: ImagesConfig, here: Run) -> Component:
    """Train what ``config`` describes in the run ``here``, or go on there; returns the average of its weights.

    Args:
        config: with that of the parent, if it names one: see `model.with_parent`.
        here: a folder, new or of the same training.

    Raises:
        WorkbenchError: the data or the configuration do not fit.
    """
    device = processes().device
    torch.manual_seed(config.train.seed)
    data = load(config.task, "train").to(device)
    component = assemble(config, data.n_classes)
    if not checkpoint.listing(here.path):  # a checkpoint holds the parent's weights, too, and the parent may be gone
        component = adopt(component, config)
    if isinstance(component, System):
        # an impossible combination (eps at zero signal, a grid of another schedule) is refused now, not after training
        how = sampling(config)
        component.sample(torch.tensor([0]), PerSample.from_seeds([0]), replace(how, steps=min(how.steps, 2)))
    trained = sum(p.numel() for p in component.parameters() if p.requires_grad)
    logger.info("data: %s\nrun: %s; %d parameters", data.provenance, here.path, trained)
    require_same_data(here, data.provenance, "images")
    meta = {
        "domain": "images",
        "task": config.task.name,
        "system": str(config.system["_target_"]).rpartition(".")[2],
        "data": data.provenance,
        "classes": list(data.classes),
        "commit": results.commit(),
    }
    average = fit(component, data, config.train, here, saved_config=plain(config), meta=meta)
    assert isinstance(average, Component)
    return average


def run(config: ImagesConfig) -> Path:
    """Train, draw, evaluate and report; returns the run's folder."""
    distributed = processes()
    config = with_parent(config)  # before it is saved: a run is resumed without its parent
    here = open_run(config, f"images-{config.task.name}", distributed)
    here.log_to_file()
    train(config, here)
    if distributed.is_main_process:
        saved = checkpoint.find(here.path)
        component, config = restore(saved)
        out = here.path / "evaluation"
        evaluate.evaluate_and_report(component, saved, config, out, command("images.train"), here)
    return here.path


@hydra.main(version_base=None, config_path="conf", config_name="train")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(resumable(ImagesConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
