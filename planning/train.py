"""Train a prior of plans: ``python -m planning.train task=maze2d_large``.

Makes or loads transitions, trains, and leaves a run folder with checkpoints and records.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from diffusion_core import results
from diffusion_core.configure import plain
from diffusion_core.normalize import MinMax
from diffusion_core.resume import open_run, require_same_data, resumable
from diffusion_core.run import Run, launch, one_line_errors
from diffusion_core.train import fit, processes
from planning.config import PlanningConfig
from planning.data import sources
from planning.prior import TrajectoryPrior, assemble, sampling_table
from planning.trajectories import Trajectories

logger = logging.getLogger("workbench.planning")


def train(config: PlanningConfig, here: Run) -> TrajectoryPrior:
    """Train what ``config`` describes in the run ``here``, or go on there; returns the average of its weights.

    Raises:
        WorkbenchError: the data or the configuration do not fit.
    """
    device = processes().device
    torch.manual_seed(config.train.seed)
    data = sources.load(config.task.maze, config.data.source, config.data.steps, config.data.seed)
    trajectories = Trajectories(data.observations[:, :2], config.horizon, config.strides, device)
    prior = assemble(config, MinMax.fit(trajectories.xy.cpu()))
    # an impossible combination (eps at zero signal, a grid of another schedule) is refused now, not after training
    prior.denoiser.bind(sampling_table(config, prior).times)
    trained = sum(p.numel() for p in prior.parameters())
    logger.info("data: %s; %d windows", data.provenance, len(trajectories))
    logger.info("run: %s; %d parameters", here.path, trained)
    require_same_data(here, data.provenance, "transitions")
    meta = {
        "domain": "planning",
        "task": config.task.name,
        "data": data.provenance,
        "commit": results.commit(),
    }
    average = fit(prior, trajectories, config.train, here, saved_config=plain(config), meta=meta)
    assert isinstance(average, TrajectoryPrior)
    return average


def run(config: PlanningConfig) -> Path:
    """Train; returns the run's folder."""
    distributed = processes()
    here = open_run(config, f"planning-{config.task.name}", distributed)
    here.log_to_file()
    train(config, here)
    return here.path


@hydra.main(version_base=None, config_path="conf", config_name="train")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(resumable(PlanningConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
