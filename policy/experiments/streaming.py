"""Streaming against drawing every chunk anew, on Push-T: success, evaluations and time per control step.

    python -m policy.train task=pusht head=forcing horizon=17
    python -m policy.experiments.streaming --checkpoint RUN --n 100 --out benchmarks/results/policy/streaming.json

Each row carries out so many actions of a chunk before it looks again: ``stream`` goes on with its chunk, ``anew``
draws another in as many denoising steps as an action of the stream sees, ``short`` in as many evaluations as a turn of
the stream has. All rows have the same starts.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core import checkpoint, results
from diffusion_core.configure import build, table
from diffusion_core.run import launch
from envs.rollout import Observation, rollouts, stack
from policy.config import PolicyConfig
from policy.evaluate import PRETRAINED, Actor, metrics
from policy.model import Policy, restore
from policy.runtime.streaming import Streaming

logger = logging.getLogger("workbench.policy")
FIRST_SEED = 100_000
LATENCY_CALLS = 200
WAYS = ("stream", "anew", "short")


def actor_of(way: str, every: int, policy: Policy, config: PolicyConfig, precision: str) -> tuple[Any, int]:
    """What acts, and its evaluations of the network a turn."""
    stream = Streaming(policy, config, every, precision)
    if way == "stream":
        return stream, stream.evaluations
    steps = config.steps if way == "anew" else stream.evaluations
    solver = table(config.sampler, config.grid, steps, policy.denoiser.schedule)
    policy.n_action_steps = every
    return Actor(policy, solver, precision), steps


def milliseconds(actors: Sequence[Any], observation: Observation) -> list[float]:
    """Median time of a turn of one robot, the first left out; the actors take turns."""
    taken = []
    for _ in range(LATENCY_CALLS):
        row = []
        for actor in actors:
            began = time.perf_counter()
            actor(observation, [0])
            row.append(1e3 * (time.perf_counter() - began))
        taken.append(row)
    return [float(middle) for middle in np.median(taken[1:], axis=0)]


def measured(way: str, every: int, policy: Policy, config: PolicyConfig, n: int) -> dict[str, Any]:
    """One row, but for its time."""
    actor, evaluations = actor_of(way, every, policy, config, "float64")
    seeds = range(FIRST_SEED, FIRST_SEED + n)
    episodes = list(rollouts(lambda: build(config.task.env), actor, seeds, policy.n_obs_steps, min(n, 50)))
    found = {name: value for name, value in metrics(episodes).items() if "coverage" not in name}
    return {"way": way, "every": every, "steps": config.steps, "evaluations": evaluations, **found}


def experiment(asked: argparse.Namespace) -> None:
    """All rows, written as they are found."""
    policy, config = restore(checkpoint.find(asked.checkpoint, PRETRAINED))
    env = build(config.task.env)
    first = stack([stack([env.reset(seed=FIRST_SEED)[0]] * policy.n_obs_steps)])
    env.close()
    rows: list[dict[str, Any]] = []
    for every in asked.every:
        groups = (policy.horizon - policy.n_obs_steps + 1) // every
        own = replace(config, steps=groups * max(round(asked.steps / groups), 1))
        alone = [actor_of(way, every, policy, own, "float32")[0] for way in WAYS]
        for way, taken in zip(WAYS, milliseconds(alone, first), strict=True):
            row = measured(way, every, policy, own, asked.n) | {"milliseconds": round(taken, 3)}
            rows.append(row)
            logger.info("%s every %d: success %.2f, %.2f ms", way, every, row["success_rate"].value, taken)
            if asked.out:
                found = {
                    "command": f"python -m policy.experiments.streaming {shlex.join(sys.argv[1:])}",
                    "train_steps": config.train.steps,
                    "n": asked.n,
                    "rows": rows,
                    "commit": results.commit(),
                    "hardware": results.hardware(),
                }
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                results.write_json(asked.out, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", required=True, help="a run of head=forcing")
    parser.add_argument("--n", type=int, default=100, help=f"episodes per row, from seed {FIRST_SEED} on")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 2, 4, 8], help="actions a turn")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of an action, to the nearest that fit")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    launch(lambda: experiment(parser.parse_args()))


if __name__ == "__main__":
    main()
