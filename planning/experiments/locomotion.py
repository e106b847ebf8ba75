"""What a value, a wanted return and a choice add to a prior of motions, on a half cheetah.

    python -m planning.experiments.locomotion --priors runs/a runs/b runs/c --n 10 --out ... --figure ...

Every row plays the same episodes; each prior, of one training seed, gets its share. The prior alone does what the data
did: eight policies of a random search, from one that hardly moves to one that runs. Rows differ in how the better part
is asked for: by the gradient of a value (Diffuser), by a return that the prior is told (Decision Diffuser), by a choice
among unguided plans (Diffusion Veteran), or by several of these. Cloning, of all and of the best tenth, learns from the
same episodes; the policies that made them stand beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core import checkpoint, results
from diffusion_core.report import ACCENT, MUTED, save_figure, subplots
from diffusion_core.run import Run
from envs.cheetah import ACTIONS, OBS, score
from envs.cheetah_search import stages
from planning.experiments import lab
from planning.locomotion import data
from planning.locomotion.config import MotionConfig, MotionPlannerConfig
from planning.locomotion.evaluate import Act, played
from planning.locomotion.planner import MotionPlanner
from planning.locomotion.prior import MotionPrior, restore, sampling_tables

PLAIN = MotionPlannerConfig(candidates=1, select="first")
ROWS: dict[str, tuple[MotionPlannerConfig, int]] = {
    "prior": (PLAIN, 10),
    "prior x value, strength 1": (replace(PLAIN, guide=1.0), 10),
    "prior x value, strength 10": (replace(PLAIN, guide=10.0), 10),
    "prior x value, strength 100": (replace(PLAIN, guide=100.0), 10),
    "prior, told the 0.9 of the returns": (replace(PLAIN, target=0.9), 10),
    "prior, told 0.9, guidance scale 2": (replace(PLAIN, target=0.9, guidance_scale=2.0), 10),
    "prior, told all of it": (replace(PLAIN, target=1.0), 10),
    "prior, best of 8 by the value": (replace(PLAIN, candidates=8, select="critic"), 10),
    "prior, told 0.9, best of 8": (replace(PLAIN, candidates=8, select="critic", target=0.9), 10),
    "the same, 4 steps from the last plan": (
        replace(PLAIN, candidates=8, select="critic", target=0.9, warm=4, warm_start=0.4),
        10,
    ),
    "the same, 4 steps from noise": (replace(PLAIN, candidates=8, select="critic", target=0.9), 4),
    "the same, 10 steps, 4 actions a plan": (
        replace(PLAIN, candidates=8, select="critic", target=0.9, every=4),
        10,
    ),
}
"""What of `MotionPlannerConfig` makes each, and the sampler's steps."""
SEED = 500_000
BEST = 0.1


@dataclass(frozen=True, eq=False)
class Cloned:
    """A network of an observation, trained to do what was done."""

    network: nn.Module
    mean: Float[Tensor, "17"]
    std: Float[Tensor, "17"]

    @torch.no_grad()
    def __call__(self, obs: Float[np.ndarray, "n 17"]) -> Float[np.ndarray, "n 6"]:
        seen = (torch.as_tensor(obs, dtype=torch.float32) - self.mean) / self.std
        return torch.tanh(self.network(seen)).double().numpy()


def cloned(episodes: data.Episodes, share: float, seed: int, steps: int = 5_000) -> Cloned:
    """Behaviour cloning of the episodes of the highest returns.

    Args:
        share: of the episodes that is learned from.
        seed: of weights and batches.
        steps: of training, 256 transitions each.
    """
    wanted = episodes.returns >= np.quantile(episodes.returns, 1.0 - share)
    rows = wanted[np.cumsum(np.r_[False, episodes.ends[:-1]])]
    obs, actions = (torch.as_tensor(x[rows]) for x in (episodes.observations, episodes.actions))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(OBS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, ACTIONS))
    found = Cloned(network, obs.mean(0), obs.std(0))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        batch = torch.randint(len(obs), (256,), generator=generator)
        guess = torch.tanh(network((obs[batch] - found.mean) / found.std))
        optimizer.zero_grad()
        (guess - actions[batch]).square().mean().backward()
        optimizer.step()
    return found


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """All rows."""
    trained = [_trained(name) for name in asked.priors]
    silent = Run(Path("."), main=False)
    rows = []
    for name, (config, steps) in ROWS.items():
        totals, times = [], []
        for k, (prior, own) in enumerate(trained):
            tables = sampling_tables(replace(own, planner=config, steps=steps), prior)
            planner = MotionPlanner(prior, *tables, config, SEED + k)
            total, ms = played(planner.act, asked.n, SEED + 1000 * k, silent, name)
            totals.append(total.tolist())
            times.append(ms)
        evaluations = config.warm or steps
        rows.append(_row(name, totals, times, evaluations))
    episodes = data.load(trained[0][1].data)
    for share, name in ((1.0, "behaviour cloning"), (BEST, "behaviour cloning of the best tenth")):
        found = [
            played(cloned(episodes, share, k), asked.n, SEED + 1000 * k, silent, name) for k in range(len(trained))
        ]
        rows.append(_row(name, [total.tolist() for total, _ in found], [ms for _, ms in found], 0))
    policies = stages()
    for name, one in (("the search's last policy", policies[-1]), ("its middle one", policies[len(policies) // 2])):
        act: Act = one
        found = [played(act, asked.n, SEED + 1000 * k, silent, name) for k in range(len(trained))]
        rows.append(_row(name, [total.tolist() for total, _ in found], [ms for _, ms in found], 0))
    of_data = {"row": "the episodes learned from", "return": results.mean(episodes.returns.tolist())}
    of_data["score"] = results.mean([score(x) for x in episodes.returns], "D4RL")
    rows.append(of_data)
    measurements = {
        "task": "gymnasium's HalfCheetah-v5, own data",
        "data": episodes.provenance,
        "training_seeds": [own.train.seed for _, own in trained],
        "episodes_each": asked.n,
        "rows": rows,
    }
    return measurements, partial(figure, rows, episodes.returns)


def _trained(name: str) -> tuple[MotionPrior, MotionConfig]:
    return restore(checkpoint.find(name))


def _row(name: str, totals: Sequence[Sequence[float]], ms: Sequence[float], evaluations: int) -> dict[str, Any]:
    every = [x for total in totals for x in total]
    by_seed = [float(np.mean(total)) for total in totals]
    found = {
        "row": name,
        "return": results.mean(every),
        "by_seed": by_seed,
        "score": results.mean([score(x) for x in every], "D4RL"),
        "worst": float(np.min(every)),
        "evaluations": evaluations,
        "ms": float(np.mean(ms)),
    }
    lab.logger.info("%s: return %s, by seed %s", name, found["return"], np.round(by_seed))
    return found


def figure(rows: Sequence[dict[str, Any]], returns: Float[np.ndarray, " n"], path: Path) -> None:
    """Returns of all rows, beside those of the data."""
    fig, axes = subplots(1, 1, 8.0, 0.34 * len(rows) + 1.2)
    axis = np.ravel(axes)[0]
    shown = rows[:-1]
    for k, row in enumerate(shown):
        found = row["return"]
        colour = ACCENT if row["row"] in ROWS else MUTED
        axis.errorbar(found.value, k, xerr=lab.bars([found]), fmt="o", color=colour, ms=5)
    axis.scatter(returns, np.full(len(returns), len(shown)), s=8, color=MUTED, alpha=0.4, lw=0)
    axis.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axis.invert_yaxis()
    axis.set(xlabel="return of 1,000 steps; intervals of 95 %", xlim=(0, None))
    axis.grid(axis="x", alpha=0.3)
    save_figure(fig, path)


if __name__ == "__main__":
    lab.run(measured, lab.arguments(__doc__), "locomotion")
