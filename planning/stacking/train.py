"""Train a prior of moves with blocks: ``python -m planning.stacking.train``.

Moves are made if they are not there, a prior is trained, and the planner is judged in three tasks.
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
from planning.stacking import data, evaluate
from planning.stacking.config import TASK, BlocksConfig
from planning.stacking.prior import MovePrior, assemble, sampling_table

logger = logging.getLogger("workbench.planning")


def train(config: BlocksConfig, here: Run) -> MovePrior:
    """Train what ``config`` describes in the run ``here``, or go on there; returns the average of its weights."""
    device = processes().device
    torch.manual_seed(config.train.seed)
    moves = data.load(config.data)
    prior = assemble(config)
    # an impossible combination is refused now, not after training
    prior.denoiser.bind(sampling_table(config, prior).times)
    logger.info("data: %s", moves.provenance)
    logger.info("run: %s; %d parameters", here.path, sum(p.numel() for p in prior.parameters()))
    require_same_data(here, moves.provenance, "moves")
    meta = {"domain": "stacking", "task": TASK, "data": moves.provenance, "commit": results.commit()}
    windows = data.Windows(moves, config.horizon, device)
    average = fit(prior, windows, config.train, here, saved_config=plain(config), meta=meta)
    assert isinstance(average, MovePrior)
    return average


def run(config: BlocksConfig) -> Path:
    """Train and evaluate; returns the run's folder."""
    distributed = processes()
    here = open_run(config, f"planning-{TASK}", distributed)
    here.log_to_file()
    train(config, here)
    if distributed.is_main_process:
        words = command("planning.stacking.train")
        evaluate.evaluate_and_report(checkpoint.find(here.path), config, here.path / "evaluation", words, here)
    return here.path


@hydra.main(version_base=None, config_path="../conf", config_name="stacking")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(resumable(BlocksConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
