"""Blocks: Diffuser's three tasks, and two constraints composed when the move is made.

    python -m planning.experiments.stacking --priors runs/a runs/b runs/c --n 10 --out ... --figure ...

The prior is one of single moves and was told of no task. Rows: one sample of it; the best of some by what is asked; the
same with what is asked as energies; and the scripted hand that made the demonstrations, which is told which block to
put"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core import checkpoint, results
from diffusion_core.report import ACCENT, MUTED, WARM, save_figure, subplots
from diffusion_core.run import Run
from envs.stacking import BLOCKS, on, scattered
from planning.energies import Cost
from planning.experiments import lab
from planning.stacking.config import BlocksConfig, BlocksPlannerConfig
from planning.stacking.data import opened
from planning.stacking.energies import FAR, Either, Goes, OnTop
from planning.stacking.evaluate import Hand, Played, filmed, metrics, planned, played, scripted
from planning.stacking.planner import BlocksPlanner, carry_out
from planning.stacking.prior import MovePrior, restore, sampling_table
from planning.stacking.tasks import TASKS

SEED = 700_000
ROWS = {
    "prior": BlocksPlannerConfig(candidates=1, strength=0.0, again=0),
    "prior, best of 64": BlocksPlannerConfig(strength=0.0),
    "prior x energies": BlocksPlannerConfig(candidates=1, again=0),
    "prior x energies, best of 64": BlocksPlannerConfig(),
}
CONSTRAINTS = ("something on block 1", "block 0 goes", "both")


def constrained(prior: MovePrior, config: BlocksConfig, which: str, n: int, seed: int) -> list[tuple[bool, bool, bool]]:
    """Moves under one constraint or both: whether something came to stand on block 1, block 0 went, and it is that."""
    env, planner = opened(), BlocksPlanner(prior, sampling_table(config, prior), BlocksPlannerConfig(), seed)
    something = Either(tuple(OnTop(k, 1) for k in range(BLOCKS) if k != 1))
    costs: dict[str, list[Cost]] = dict(zip(CONSTRAINTS, ([something], [Goes(0)], [something, Goes(0)]), strict=True))
    found = []
    for k in range(n):
        blocks = scattered(np.random.default_rng(seed + k))
        after = carry_out(env, planner(env.reset(blocks), costs[which]))[-1][4:].reshape(BLOCKS, 3)
        stands = any(on(after, k, 1) for k in range(BLOCKS) if k != 1)
        found.append((stands, bool(np.linalg.norm(after[0] - blocks[0]) > FAR / 2), on(after, 0, 1)))
    return found


def measured(asked: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """All rows."""
    trained = [restore(checkpoint.find(name)) for name in asked.priors]
    silent = Run(Path("."), main=False)

    def row(name: str, hands: Sequence[Hand]) -> dict[str, Any]:
        found: dict[str, Any] = {"row": name}
        for task in TASKS:
            each = [played(hand, task, asked.n, SEED + 1000 * k, silent) for k, hand in enumerate(hands)]
            every: list[Played] = [one for own in each for one in own]
            found[task] = metrics(every) | {"by_prior": [metrics(own)["score"].value for own in each]}
            lab.logger.info("%s, %s: score %s", name, task, found[task]["score"])
        return found

    rows = [
        row(
            name,
            [
                planned(BlocksPlanner(prior, sampling_table(config, prior), setting, SEED + k))
                for k, (prior, config) in enumerate(trained)
            ],
        )
        for name, setting in ROWS.items()
    ]
    rows.append(row("the scripted hand, told block and place", [scripted] * len(trained)))
    constraints = []
    for which in CONSTRAINTS:
        each = [x for k, one in enumerate(trained) for x in constrained(*one, which, asked.n, SEED + 1000 * k)]
        share: dict[str, Any] = {"asked for": which}
        share |= {name: results.rate(sum(one[i] for one in each), len(each)) for i, name in enumerate(CONSTRAINTS)}
        lab.logger.info("%s", {key: str(value) for key, value in share.items()})
        constraints.append(share)
    measurements = {
        "task": "blocks, Franka Panda in MuJoCo, own demonstrations",
        "training_seeds": [config.train.seed for _, config in trained],
        "episodes_each": asked.n,
        "rows": rows,
        "constraints": constraints,
    }
    prior, config = trained[0]
    planner = BlocksPlanner(prior, sampling_table(config, prior), ROWS["prior x energies, best of 64"], SEED)
    return measurements, partial(figure, rows, constraints, planner)


def figure(
    rows: Sequence[dict[str, Any]], constraints: Sequence[dict[str, Any]], planner: BlocksPlanner, path: Path
) -> None:
    """Frames of an episode, the scores, and the constraints."""
    frames = filmed(planner, path.with_suffix(".mp4"), SEED)
    path.with_suffix(".mp4").unlink()
    fig, axes = subplots(2, 6, 12.0, 4.6)
    grid = axes[0, 0].get_gridspec()
    for axis, at in zip(axes[0], np.linspace(0, len(frames) - 1, 6).astype(int), strict=True):
        axis.imshow(frames[at][60:, 100:560])
        axis.axis("off")
    for axis in axes[1]:
        axis.remove()
    bars, shares = fig.add_subplot(grid[1, :4]), fig.add_subplot(grid[1, 4:])
    colours = (MUTED, WARM, "#8fb3dd", ACCENT, "#3a3f47")
    for k, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        values = [row[task]["score"] for task in TASKS]
        at = np.arange(len(TASKS)) + 0.16 * (k - 2)
        spans = lab.bars(values)
        bars.bar(at, [v.value for v in values], 0.15, yerr=spans, color=colour, label=row["row"], ecolor="#555555")
    bars.set_xticks(range(len(TASKS)), list(TASKS))
    bars.set(ylabel="score", ylim=(0, 135))
    bars.legend(fontsize=7, ncols=3, loc="upper left", frameon=False)
    for k, (name, colour) in enumerate(zip(CONSTRAINTS, (MUTED, WARM, ACCENT), strict=True)):
        found = [one[name] for one in constraints]
        spans = lab.bars(found)
        at = np.arange(3) + 0.25 * (k - 1)
        shares.bar(at, [v.value for v in found], 0.23, yerr=spans, color=colour, label=name, ecolor="#555555")
    shares.set_xticks(range(3), [one["asked for"] for one in constraints], fontsize=8)
    shares.set(ylabel="met", ylim=(0, 1.3), xlabel="asked for")
    shares.legend(fontsize=7, ncols=3, loc="upper left", frameon=False)
    save_figure(fig, path)


if __name__ == "__main__":
    lab.run(measured, lab.arguments(__doc__), "stacking")
