"""Every head on every task at the same processor time: success over training seeds.

    python -m policy.experiments.heads --data DIR --tasks push3d metaworld_push --heads diffusion flow act \\
        --minutes 5 --out benchmarks/results/policy/heads.json

``DIR/<task>.zarr.zip`` holds the demonstrations of each task (``python -m policy.data generate task=...``); ``--data
human`` are the published ones of Push-T. A head may bring words: ``"diffusion network=transformer"``. A training gets
as many steps as fit the processor time, by the clock of its first ones. A cell is one task, head and seed; it is
written when it is done, and a second call leaves out what is there, so that several machines may take ``--shard i/n``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from diffusion_core import results
from diffusion_core.configure import composed, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.run import launch
from policy import train
from policy.config import PolicyConfig

logger = logging.getLogger("workbench.policy")

HEADS = ("diffusion", "flow", "consistency", "regression", "lstm_gmm", "bet", "act", "ibc", "forcing")
WARM_UP, TIMED = 5, 30
KEPT = ("mean_max_score", "success_rate", "steps_to_success", "replan_p50")


def configuration(task: str, head: str, seed: int, data: str, runs: Path, words: Sequence[str]) -> PolicyConfig:
    """What a cell is trained with, but for its steps.

    Raises:
        WorkbenchError: the task's demonstrations are not there.
    """
    store = "human" if data == "human" else Path(data) / f"{task}.zarr.zip"
    if isinstance(store, Path) and not store.exists():
        raise WorkbenchError(
            f"{store}: got no demonstrations; expected them: python -m policy.data generate task={task} out={store}."
        )
    overrides = [
        f"task={task}",
        *f"head={head}".split(),
        f"data.source={store}",
        f"train.seed={seed}",
        f"data.seed={seed}",
    ]
    quiet = ["validate_every=0", "evaluation.film=0", "train.checkpoint_every=0", f"runs={runs}"]
    return composed(PolicyConfig, "policy.conf", "train", [*overrides, *quiet, *words])


def steps_within(config: PolicyConfig, minutes: float) -> int:
    """Training steps that take so much processor time."""
    torch.set_num_threads(max(config.train.threads, 1))
    data = train.load_data(config)
    policy = train.untrained(config, data)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    began = 0.0
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            began = time.process_time()
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, len(data.training), (config.train.batch_size,), generator=generator)
        policy(data.training.batch(rows), Draws(generator)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    each = (time.process_time() - began) / TIMED
    return max(int(60.0 * minutes / each), 1)


def cell(config: PolicyConfig, minutes: float) -> dict[str, Any]:
    """Train one policy, or go on with it, and judge it."""
    begun = [path.parent for path in sorted(Path(config.runs).glob("*/*/config.yaml"))]
    if begun:
        config = replace(typed(PolicyConfig, OmegaConf.load(begun[-1] / "config.yaml")), resume=str(begun[-1]))
    else:
        config = replace(config, train=replace(config.train, steps=steps_within(config, minutes)))
    run = train.run(config)
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    return {
        "task": config.task.name,
        "seed": config.train.seed,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "data": found["data"],
        "commit": found["commit"],
        **{name: found["metrics"][name] for name in KEPT},
    }


def experiment(asked: argparse.Namespace) -> None:
    """Fill the cells of this shard and write the table of all that are there."""
    cells = asked.work / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    part, parts = (int(n) for n in asked.shard.split("/"))
    todo = list(itertools.product(range(asked.seeds), asked.tasks, asked.heads))
    for seed, task, head in todo[part::parts]:
        name = re.sub(r"[^\w.-]+", "_", f"{task}-{head}-{seed}")
        path = cells / f"{name}.json"
        if path.exists():
            continue
        config = configuration(task, head, seed, asked.data, asked.work / name, asked.words)
        row = {"head": head, **cell(replace(config, evaluation=replace(config.evaluation, n=asked.n)), asked.minutes)}
        results.write_json(path, row)
        logger.info("%s: success %.2f", name, row["success_rate"]["value"])
    if asked.out:
        rows = [json.loads(path.read_text()) for path in sorted(cells.glob("*.json"))]
        found = {
            "command": f"python -m policy.experiments.heads {shlex.join(sys.argv[1:])}",
            "minutes": asked.minutes,
            "episodes": asked.n,
            "rows": rows,
            "commit": results.commit(),
            "hardware": results.hardware(),
        }
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        results.write_json(asked.out, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", required=True, help="folder of <task>.zarr.zip, or human")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), help="a head, or one with words")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds, from 0")
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time of a training")
    parser.add_argument("--n", type=int, default=50, help="episodes of a cell")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/heads"), help="folder of the runs and of finished cells"
    )
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell from the i-th on")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    parser.add_argument("--words", nargs="*", default=[], help="overrides of every configuration")
    launch(lambda: experiment(parser.parse_args()))


if __name__ == "__main__":
    main()
