"""Plans per second on one core, by candidates, sampler steps and what the prior is multiplied with.

    python -m benchmarks.planning_speed --prior runs/<run> --out benchmarks/results/planning_speed.json

A plan is the whole call of `planning.planner.DiffusionPlanner`, selection included, for one problem at a time. The
published rates are of other networks, of plans in locomotion tasks and of a GPU or a large CPU: the number of network
evaluations is what they have in common with ours, and is given.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_core import results
from diffusion_core.configure import table
from diffusion_core.run import launch
from envs.maze2d import Maze2d
from planning.experiments.lab import Trained, described
from planning.planner import DiffusionPlanner
from planning.problems import drawn

SETTINGS: dict[str, dict[str, Any]] = {
    "prior": {"walls": 0.0, "select": "first", "refine": "none", "durations": [288]},
    "prior, by the critic": {"walls": 0.0, "select": "critic", "refine": "none"},
    "prior x walls": {"refine": "none"},
    "prior x walls, refined": {},
}
"""What of `PlannerConfig` makes each."""


def measured(prior: str, plans: int) -> dict[str, Any]:
    """The table."""
    one = Trained.of(prior)
    problems = drawn(Maze2d("large", multi=True), range(400_000, 400_000 + plans))
    rows = []
    for name, changes in SETTINGS.items():
        for candidates, steps in ((1, 5), (1, 20), (64, 5), (64, 10), (64, 20)):
            if candidates == 1 and changes.get("select") == "critic":
                continue
            config = replace(one.config.planner, candidates=candidates, **changes)
            config = replace(config, durations=[288]) if candidates == 1 else config
            solver = table(one.config.sampler, one.config.grid, steps, one.prior.denoiser.schedule)
            planner = DiffusionPlanner(one.prior, solver, config)
            planner(problems[0], 0)
            seconds, valid = [], []
            for seed, problem in enumerate(problems):
                began = time.perf_counter()
                plan = planner(problem, seed)
                seconds.append(time.perf_counter() - began)
                valid.append(plan.valid(problem))
            row = {
                "what": name,
                "candidates": candidates,
                "evaluations": steps,
                "plans_per_second": 1.0 / float(np.median(seconds)),
                "p50": results.quantile([1e3 * s for s in seconds], 0.5, "ms"),
                "p95": results.quantile([1e3 * s for s in seconds], 0.95, "ms"),
                "valid": results.rate(sum(valid), len(valid)),
            }
            logging.getLogger("workbench.planning").info("%s", row)
            rows.append(row)
    return {"prior": described([one])[0], "rows": rows}


def main() -> None:
    """Measure with one thread and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", required=True, help="a run of planning.train task=maze2d_large")
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(asked.prior, asked.plans)
    found |= {
        "command": f"python -m benchmarks.planning_speed --prior {asked.prior}",
        "commit": results.commit(),
        "hardware": results.hardware(),
    }
    if asked.out:
        results.write_json(asked.out, found)


if __name__ == "__main__":
    launch(main)
