"""Train a model of crystals: ``python -m materials.train task=prototypes``.

Makes or finds crystals, trains, generates and predicts structures, judges them, and leaves a run folder with
checkpoints, records and ``evaluation/report.html``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.configure import plain
from diffusion_core.resume import open_run, require_same_data, resumable
from diffusion_core.run import Run, command, launch, one_line_errors
from diffusion_core.train import fit, processes
from materials import evaluate
from materials.config import MaterialsConfig
from materials.data import sources
from materials.data.batches import Batches
from materials.models import CrystalModel, assemble

logger = logging.getLogger("workbench.materials")


def train(config: MaterialsConfig, here: Run) -> CrystalModel:
    """Train what ``config`` describes in the run ``here``, or go on there; returns the average of its weights.

    Raises:
        WorkbenchError: the data or the configuration do not fit.
    """
    device = processes().device
    torch.manual_seed(config.train.seed)
    crystals = sources.load(config.task, config.data, "train")
    batches = Batches(crystals, config.task.max_atoms, config.labels, device)
    model = assemble(config).to(device)
    model.fit_scales(batches.tensors, batches.label_scale)
    # a solver that does not fit is refused now, not after training
    model.plan(config)
    trained = sum(p.numel() for p in model.parameters())
    logger.info("data: %s", crystals.provenance)
    logger.info("run: %s; %d parameters", here.path, trained)
    require_same_data(here, crystals.provenance, "crystals")
    meta = {
        "domain": "materials",
        "task": config.task.name,
        "data": crystals.provenance,
        "commit": results.commit(),
    }
    average = fit(model, batches, config.train, here, saved_config=plain(config), meta=meta)
    assert isinstance(average, CrystalModel)
    return average


def run(config: MaterialsConfig) -> Path:
    """Train, evaluate and report; returns the run's folder."""
    distributed = processes()
    here = open_run(config, f"materials-{config.task.name}", distributed)
    here.log_to_file()
    train(config, here)
    if distributed.is_main_process:
        out = here.path / "evaluation"
        evaluate.evaluate_and_report(
            checkpoint.find(here.path), config, config.evaluation, out, command("materials.train"), here
        )
    return here.path


@hydra.main(version_base=None, config_path="conf", config_name="train")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(resumable(MaterialsConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
