"""What latency costs on Push-T, and what strategies at the joins of chunks win back.

    python -m policy.experiments.realtime --n 100 --every 1 --out benchmarks/results/policy/realtime.json

Every strategy meets every latency on the same starts with the same first chunks. At latency d an inference that begins
at step k delivers at step k + d, one at a time, and the robot carries on with what it has. With ``--every 1`` the next
inference begins when the last has delivered; without, every ``n_action_steps`` steps, and latency 0 is the usual
evaluation, which is what all rows are compared with.
The rows are written as they are found, so that a run that was cut short is not lost.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_core import checkpoint, results
from diffusion_core.configure import build
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch
from envs.pusht import DT, SUBSTEPS
from envs.rollout import Rollout, rollouts
from policy.config import PolicyConfig
from policy.evaluate import PRETRAINED, metrics, with_sampler
from policy.model import Policy, restore, sampling_table
from policy.runtime.chunks import Ensemble
from policy.runtime.joins import Conditioned, Join, RealTimeChunking, WarmStart, from_middle, independent, inpainting
from policy.runtime.simulate import Delayed
from policy.runtime.smoothness import smoothness

logger = logging.getLogger("workbench.policy")
FIRST_SEED = 100_000
MIDDLE = 0.5

STRATEGIES: dict[str, Callable[[PolicyConfig, Policy], Join]] = {
    "late": lambda config, policy: Join(independent),
    "naive": lambda config, policy: Join(independent),
    "ensemble": lambda config, policy: Join(independent, Ensemble(), every=1),
    "inpainting": lambda config, policy: Join(inpainting),
    "rtc": lambda config, policy: Join(RealTimeChunking()),
    "conditioned": lambda config, policy: Join(Conditioned()),
    "warm": lambda config, policy: Join(WarmStart(from_middle(config, policy, MIDDLE))),
}
"""``late`` executes every chunk from its first action on, ``naive`` from the action of the step it arrives in."""


def measured(
    strategy: str, delay: int, policy: Policy, config: PolicyConfig, seeds: Sequence[int], every: int, drop: float
) -> tuple[dict[str, Any], list[Rollout]]:
    """One row: a strategy at a latency.

    Raises:
        WorkbenchError: no such strategy.
    """
    if strategy not in STRATEGIES:
        raise WorkbenchError(f"strategy: got {strategy!r}; expected some of {', '.join(STRATEGIES)}.")
    join = STRATEGIES[strategy](config, policy)
    join = Join(join.draw, join.choose, join.every or every)
    actor = Delayed(policy, sampling_table(config, policy), join, delay, drop, aligned=strategy != "late")
    began = time.perf_counter()
    found = rollouts(lambda: build(config.task.env), actor, seeds, policy.n_obs_steps, len(seeds))
    by_seed = {episode.seed: episode for episode in found}
    episodes = [by_seed[seed] for seed in seeds]
    records = [actor.records[seed] for seed in seeds]
    row = {
        "strategy": strategy,
        "latency": delay,
        **{name: value for name, value in metrics(episodes).items() if "coverage" not in name},
        "joins": smoothness(records, DT * SUBSTEPS, "px"),
        "starved_steps": sum(record.starved for record in records),
        "lost_observations": sum(record.held for record in records),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return row, episodes


def paired(row: dict[str, Any], episodes: Sequence[Rollout], reference: Sequence[Rollout]) -> dict[str, Any]:
    """``row`` beside the reference on the same starts: how many were lost and won, and the share that was kept."""
    both = list(zip(episodes, reference, strict=True))
    solved = sum(old.success for _, old in both)
    return row | {
        "lost": sum(old.success and not new.success for new, old in both),
        "won": sum(new.success and not old.success for new, old in both),
        "kept": sum(new.success for new, _ in both) / solved if solved else float("nan"),
    }


def arguments() -> argparse.ArgumentParser:
    """What the experiment is told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="pretrained/pusht")
    parser.add_argument("--n", type=int, default=100, help=f"episodes per row, from seed {FIRST_SEED} on")
    parser.add_argument("--latencies", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5, 6], help="control steps")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), help=", ".join(STRATEGIES))
    parser.add_argument("--every", type=int, default=0, help="steps between inferences; 0: the policy's n_action_steps")
    parser.add_argument("--drop", type=float, default=0.0, help="probability that an observation is lost")
    parser.add_argument("--steps", type=int, default=0, help="denoising steps; 0: as trained")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    return parser


def main() -> None:
    """Measure with one thread."""
    asked = arguments().parse_args()
    torch.set_num_threads(1)
    policy, config = restore(checkpoint.find(asked.checkpoint, PRETRAINED).require("policy"))
    config = with_sampler(config, None, None, asked.steps)
    seeds = list(range(FIRST_SEED, FIRST_SEED + asked.n))
    about = {
        "what": "strategies at chunk joins under simulated latency (control steps of 0.1 s), same starts and noise",
        "command": f"python -m policy.experiments.realtime {shlex.join(sys.argv[1:])}",
        "checkpoint": asked.checkpoint,
        "task": config.task.name,
        "horizon": policy.horizon,
        "every": asked.every or policy.n_action_steps,
        "drop": asked.drop,
        "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
        "seeds": [seeds[0], seeds[-1]],
        "commit": results.commit(),
        "hardware": results.hardware(),
        "reference": "the usual evaluation: naive at latency 0, every n_action_steps; lost, won and kept are counted "
        "against it, start by start",
    }
    _, reference = measured("naive", 0, policy, config, seeds, 0, asked.drop)
    rows: list[dict[str, Any]] = []
    for delay in asked.latencies:
        for strategy in asked.strategies:
            row, episodes = measured(strategy, delay, policy, config, seeds, asked.every, asked.drop)
            rows.append(paired(row, episodes, reference))
            success, kept = row["success_rate"], rows[-1]["kept"]
            logger.info(
                "latency %d, %s: success %s, kept %.2f, gap %s", delay, strategy, success, kept, row["joins"]["gap"]
            )
            if asked.out:
                results.write_json(asked.out, about | {"rows": rows})


if __name__ == "__main__":
    launch(main)
