"""Train a prior of plans: ``python -m planning.train task=maze2d_large``.

Makes or loads transitions, trains, plans and carries plans out, and leaves a run folder with checkpoints, records and
``evaluation/report.html``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.configure import plain
from diffusion_core.normalize import MinMax
from diffusion_core.resume import open_run, require_same_data, resumable
from diffusion_core.run import Run, command, launch, one_line_errors
from diffusion_core.train import fit, processes
from planning import evaluate, tasks
from planning.config import PlanningConfig
from planning.prior import TrajectoryPrior, assemble, sampling_table
from planning.trajectories import Trajectories, breaks, within

logger = logging.getLogger("workbench.planning")


def train(config: PlanningConfig, here: Run) -> TrajectoryPrior:
    """Train what ``config`` describes in the run ``here``, or go on there; returns the average of its weights.

    Raises:
        WorkbenchError: the data or the configuration do not fit.
    """
    device = processes().device
    torch.manual_seed(config.train.seed)
    data = tasks.transitions(config.task, config.data)
    xy, ends, dt = data.observations[:, :2], tasks.ends(config.task, data), tasks.world(config.task).dt
    # of all places, so that priors of different regions can be composed
    normalizer = MinMax.fit(torch.as_tensor(xy, dtype=torch.float32))
    if config.data.region:
        xy, ends = within(xy, breaks(xy) if ends is None else ends, config.data.region)
    trajectories = Trajectories(xy, config.horizon, config.strides, device, ends, dt)
    prior = assemble(config, normalizer)
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
    """Train, evaluate and report; returns the run's folder."""
    distributed = processes()
    evaluate.check(config, config.evaluation)
    here = open_run(config, f"planning-{config.task.name}", distributed)
    here.log_to_file()
    train(config, here)
    if distributed.is_main_process:
        out = here.path / "evaluation"
        evaluate.evaluate_and_report(
            checkpoint.find(here.path), config, config.evaluation, out, command("planning.train"), here
        )
    return here.path


@hydra.main(version_base=None, config_path="conf", config_name="train")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(resumable(PlanningConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
