"""Train a prior of motions: ``python -m planning.locomotion.train``.

Episodes are made if they are not there, a prior and a value are trained, and the planner is judged.
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
from planning.locomotion import data, evaluate
from planning.locomotion.config import TASK, MotionConfig
from planning.locomotion.prior import MotionPrior, assemble, normalizers, sampling_tables

logger = logging.getLogger("workbench.planning")


def train(config: MotionConfig, here: Run) -> MotionPrior:
    """Train what ``config`` describes in the run ``here``, or go on there; returns the average of its weights.

    Raises:
        WorkbenchError: the data or the configuration do not fit.
    """
    device = processes().device
    torch.manual_seed(config.train.seed)
    episodes = data.load(config.data)
    about = f"{episodes.provenance}; {len(episodes.rewards)} steps, sha256 {episodes.content_sha256}"
    motions = data.Motions(episodes, config.horizon, config.data.lookahead, config.data.discount, device)
    prior = assemble(config, *normalizers(motions))
    # an impossible combination is refused now, not after training
    for table in sampling_tables(config, prior):
        if table is not None:
            prior.denoiser.bind(table.times)
    logger.info("data: %s; %d windows", about, len(motions))
    logger.info("run: %s; %d parameters", here.path, sum(p.numel() for p in prior.parameters()))
    require_same_data(here, about, "motions")
    meta = {"domain": "locomotion", "task": TASK, "data": about, "commit": results.commit()}
    average = fit(prior, motions, config.train, here, saved_config=plain(config), meta=meta)
    assert isinstance(average, MotionPrior)
    return average


def run(config: MotionConfig) -> Path:
    """Train and evaluate; returns the run's folder."""
    distributed = processes()
    here = open_run(config, f"planning-{TASK}", distributed)
    here.log_to_file()
    train(config, here)
    if distributed.is_main_process:
        words = command("planning.locomotion.train")
        evaluate.evaluate_and_report(checkpoint.find(here.path), config, here.path / "evaluation", words, here)
    return here.path


@hydra.main(version_base=None, config_path="../conf", config_name="locomotion")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(resumable(MotionConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
