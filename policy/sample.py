"""Draw action chunks from a policy: ``python -m policy.sample checkpoint=pretrained/pusht n=64 seed=100000``.

Writes ``chunks.npz`` (the chunks and every intermediate state of their denoising), a picture of the denoising
and a film of one episode.
"""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig

from diffusion_core import checkpoint
from diffusion_core.configure import typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.report import write_video
from diffusion_core.run import launch, make_folder, one_line_errors
from policy import evaluate, report
from policy.config import PolicyConfig, SampleConfig
from policy.model import restore, sampling_table

logger = logging.getLogger("workbench.policy")


def run(request: SampleConfig) -> Path:
    """Sample what ``request`` asks for; returns the folder of the files.

    ``chunks.npz`` holds ``chunks`` (n, horizon, action_dim) in the environment's units, ``path`` (moments, n,
    horizon, action_dim) the denoising in those units, ``times`` (moments,), and what was observed.
    """
    if not request.checkpoint:
        raise WorkbenchError("checkpoint: got none; expected a run, a checkpoint folder or pretrained/pusht.")
    saved = checkpoint.find(request.checkpoint, evaluate.PRETRAINED).require("policy")
    policy, _ = restore(saved)
    config = evaluate.with_sampler(typed(PolicyConfig, saved.config), request.sampler, request.grid, request.steps)
    plan = sampling_table(config, policy)
    out = Path(request.out or "runs/sample-" + request.checkpoint.strip("/").replace("/", "-"))
    make_folder(out)
    denoising = report.denoise_start(policy, config, request.seed, request.n)
    observed = denoising.observation
    np.savez_compressed(
        out / "chunks.npz",
        chunks=denoising.actions[-1],
        path=denoising.actions,
        times=denoising.times,
        **(observed if isinstance(observed, dict) else {"observation": observed}),
    )
    report.denoising_figure(out / "denoising.png", denoising)
    episode = evaluate.rollout(policy, config, [request.seed], plan, film=[request.seed])[0]
    write_video(out / f"seed_{request.seed}.mp4", episode.frames, fps=10.0)
    logger.info("%s; chunks, picture and film are in %s", report.describe(episode), out)
    return out


@hydra.main(version_base=None, config_path="conf", config_name="sample")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(SampleConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
