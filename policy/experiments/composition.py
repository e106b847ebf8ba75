"""Composed policies on Push-T: policies of two sides, one of them as a negative prompt, costs made at test time.

    python -m policy.experiments.composition split --out DIR
    python -m policy.train task=pusht data.source=DIR/first.zarr.zip data.mirror=false units=pretrained/pusht
    python -m policy.experiments.composition run --first RUN --second RUN --out ...

A side is one of the goal's mirror axis, x + y = 512 px: where the finger is most of an episode's time. The half of the
shipped demonstrations that keeps most to one side teaches the first policy, the other half the second.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_core import checkpoint, results
from diffusion_core.run import launch
from envs.rollout import Rollout
from policy import evaluate
from policy.compose import Composition, Wish
from policy.config import PolicyConfig
from policy.data import sources
from policy.model import Policy, restore, sampling_table

logger = logging.getLogger("workbench.policy")

AXIS = 512.0
START = 0.99
"""Products whose exponents do not sum to 1 begin here."""
FIRST_SEED = 100_000
REGION = (140.0, 372.0, 70.0)
"""Centre and radius in px of what is avoided: beside the goal, on the axis."""


def side(xy: np.ndarray) -> np.ndarray:
    """Distance in px from the goal's mirror axis, above 0 on the first side."""
    return (xy[..., 0] + xy[..., 1] - AXIS) / np.sqrt(2.0)


def inside(xy: np.ndarray) -> np.ndarray:
    """Which places are in the region."""
    x, y, radius = REGION
    return np.hypot(xy[..., 0] - x, xy[..., 1] - y) < radius


def split(out: Path) -> None:
    """Write the demonstrations of each side."""
    buffer, _ = sources.load("expert", ["keypoint", "state"])
    begins = np.concatenate([[0], buffer.episode_ends[:-1]])
    pieces = zip(begins, buffer.episode_ends, strict=True)
    share = np.array([(side(buffer.arrays["state"][a:b, :2]) > 0.0).mean() for a, b in pieces])
    order = np.argsort(-share, kind="stable")
    half = len(order) // 2
    out.mkdir(parents=True, exist_ok=True)
    for name, episodes in (("first", order[:half]), ("second", order[half:])):
        buffer.subset(sorted(episodes.tolist())).save(out / f"{name}.zarr.zip", overwrite=True)
        logger.info("%s: %d episodes, %.2f of the time there", name, len(episodes), share[episodes].mean())


def wrong_side(actions: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
    """How far chunks are on the second side, in units of 50 px, squared."""
    distance = (actions[..., 0] + actions[..., 1] - AXIS) / 2.0**0.5
    return (torch.relu(-distance) / 50.0).square().sum(1)


def in_region(actions: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
    """How deep chunks are in the region, in units of 20 px, squared."""
    x, y, radius = REGION
    depth = radius - torch.hypot(actions[..., 0] - x, actions[..., 1] - y)
    return (torch.relu(depth) / 20.0).square().sum(1)


def measured(episodes: Sequence[Rollout]) -> dict[str, Any]:
    """Success, score, and where the finger was."""
    found = evaluate.metrics(episodes)
    paths = [np.stack(e.states)[:, :2] for e in episodes]
    return {
        **{name: found[name] for name in ("success_rate", "mean_max_score", "steps_to_success")},
        "first_side": results.mean([float((side(p) > 0.0).mean()) for p in paths]),
        "in_region": results.mean([float(inside(p).mean()) for p in paths]),
    }


def arms(whole: Policy, first: Policy, second: Policy) -> dict[str, Composition]:
    """What is compared."""
    return {
        "shipped policy": Composition([whole], [1.0]),
        "first side's policy": Composition([first], [1.0]),
        "second side's policy": Composition([second], [1.0]),
        "product, 0.5 and 0.5": Composition([first, second], [0.5, 0.5]),
        "product, 1 and 1": Composition([first, second], [1.0, 1.0]),
        **{
            f"shipped, second side as a negative, {w:g}": Composition([whole, second], [1.0 + w, -w])
            for w in (0.25, 0.5, 1.0)
        },
        **{
            f"shipped, a cost of the second side, {s:g}": Composition([whole], [1.0], [Wish(wrong_side, s)])
            for s in (0.1, 0.3, 1.0)
        },
        **{
            f"shipped, a cost of the region, {s:g}": Composition([whole], [1.0], [Wish(in_region, s)])
            for s in (0.1, 0.3, 1.0)
        },
    }


def experiment(asked: argparse.Namespace) -> None:
    """Roll every arm out on the same starts and noise."""
    torch.set_num_threads(1)
    opened = [
        restore(checkpoint.find(name, evaluate.PRETRAINED)) for name in ("pretrained/pusht", asked.first, asked.second)
    ]
    (whole, config), (first, told), (second, _) = opened
    begun: PolicyConfig = replace(config, grid=config.grid | {"start": START})
    table = sampling_table(begun, whole)
    seeds = list(range(FIRST_SEED, FIRST_SEED + asked.n))
    rows = []
    for name, policy in arms(whole, first, second).items():
        episodes = evaluate.rollout(policy, begun, seeds, table, batch=asked.n)
        rows.append({"policy": name, **measured(episodes)})
        logger.info("%s: success %s, first side %s", name, rows[-1]["success_rate"], rows[-1]["first_side"])
    found = {
        "command": f"python -m policy.experiments.composition {shlex.join(sys.argv[1:])}",
        "seeds": [seeds[0], seeds[-1]],
        "steps_of_sides": told.train.steps,
        "sampler": {"solver": begun.sampler, "grid": begun.grid, "steps": begun.steps},
        "rows": rows,
        "commit": results.commit(),
        "hardware": results.hardware(),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    results.write_json(asked.out, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    verbs = parser.add_subparsers(dest="verb", required=True)
    parts = verbs.add_parser("split", help="the demonstrations of each side")
    parts.add_argument("--out", type=Path, required=True, help="a folder")
    runs = verbs.add_parser("run", help="roll out")
    runs.add_argument("--first", required=True, help="a run of policy.train")
    runs.add_argument("--second", required=True, help="a run of policy.train")
    runs.add_argument("--n", type=int, default=50, help="starts of each row")
    runs.add_argument("--out", type=Path, required=True, help="a JSON file for the results")

    def run() -> None:
        asked = parser.parse_args()
        if asked.verb == "split":
            split(asked.out)
        else:
            experiment(asked)

    launch(run)


if __name__ == "__main__":
    main()
