"""Judge a policy in its simulator: ``python -m policy.evaluate checkpoint=pretrained/pusht``."""

from __future__ import annotations

import copy
import csv
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import Leaf, build, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample
from diffusion_core.results import Estimate
from diffusion_core.run import Run, command, launch, make_folder, one_line_errors
from diffusion_core.solvers import Table
from envs.rollout import Observation, Rollout, rollouts, stack
from policy import workers
from policy.compose import Composition
from policy.config import EvaluateConfig, EvaluationConfig, PolicyConfig
from policy.model import Policy, restore, sampling_table

logger = logging.getLogger("workbench.policy")
PRETRAINED = Path(__file__).parent / "pretrained"
SCORE = "mean_max_score"


class Actor:
    """A policy at work on many episodes at once, each with its own stream of noise.

    In float64 the rounding that depends on the size of a batch disappears when the action is rounded to float32,
    so an episode's result does not depend on which episodes run beside it.

    Args:
        policy: not modified; a copy in ``precision`` is used.
        table: the sampler.
        precision: "float64" or "float32".
    """

    def __init__(self, policy: Policy | Composition, table: Table | None, precision: str = "float64") -> None:
        self.policy = copy.deepcopy(policy).to(torch.float64 if precision == "float64" else torch.float32)
        self.table = table
        self.noise: dict[int, torch.Generator] = {}

    def __call__(self, observations: Observation, seeds: Sequence[int]) -> np.ndarray:
        """The next actions of the episodes ``seeds``: (episodes, n_action_steps, action_dim) float32."""
        for seed in seeds:
            self.noise.setdefault(seed, torch.Generator().manual_seed(seed))
        chunk = self.policy.plan(
            self.policy.seen(observations), self.table, PerSample([self.noise[seed] for seed in seeds])
        )
        return self.policy.executed(chunk).to("cpu", torch.float32).numpy()


def rollout(
    policy: Policy | Composition,
    config: PolicyConfig,
    seeds: Sequence[int],
    table: Table | None,
    batch: int = 50,
    film: Sequence[int] = (),
    precision: str = "float64",
    run: Run | None = None,
    threads: int = 1,
) -> list[Rollout]:
    """One episode per seed, in the order of ``seeds``; with a progress bar if ``run`` is given."""
    episodes: Iterable[Rollout] = rollouts(
        lambda: build(config.task.env),
        Actor(policy, table, precision),
        seeds,
        policy.n_obs_steps,
        batch,
        film,
        threads,
    )
    if run is not None:
        episodes = run.progress(episodes, "rollouts", len(seeds))
    return _in_order(list(episodes), seeds)


def _in_order(episodes: Sequence[Rollout], seeds: Sequence[int]) -> list[Rollout]:
    by_seed = {episode.seed: episode for episode in episodes}
    return [by_seed[seed] for seed in seeds]


def metrics(episodes: Sequence[Rollout]) -> dict[str, Estimate]:
    """What the episodes say.

    ``mean_max_score`` is the published metric: the best reward in an episode, averaged over episodes. Coverages are
    given where the task has them.
    """
    solved = [e for e in episodes if e.success]
    found = {
        "mean_max_score": results.mean([max(e.rewards) for e in episodes]),
        "success_rate": results.rate(len(solved), len(episodes)),
    }
    if all(e.coverage for e in episodes):
        found["final_coverage"] = results.mean([e.coverage[-1] for e in episodes])
        found["max_coverage"] = results.mean([max(e.coverage) for e in episodes])
    found["steps_to_success"] = results.mean([float(e.steps) for e in solved], "steps")
    return found


def latency(policy: Policy, table: Table | None, observations: Sequence[Observation]) -> dict[str, Estimate]:
    """Milliseconds to plan one chunk for one robot: batch 1, float32.

    Args:
        observations: each stacked (n_obs_steps, ...), replanned one after the other, the first five to warm up.
    """
    actor = Actor(policy, table, "float32")
    times = []
    for i, obs in enumerate(observations):
        start = time.perf_counter()
        actor(stack([obs]), [i])
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "replan_p50": results.quantile(times[5:], 0.50, "ms"),
        "replan_p95": results.quantile(times[5:], 0.95, "ms"),
    }


def evaluate(
    saved: Checkpoint, config: PolicyConfig, evaluation: EvaluationConfig, run: Run, film: bool = True
) -> tuple[dict[str, Any], list[Rollout], Policy]:
    """Roll out one checkpoint; returns its results, its episodes and the policy.

    Args:
        config: the checkpoint's configuration, with the sampler to use.
    """
    policy, _ = restore(saved)
    if torch.cuda.is_available():
        policy = policy.cuda()
    plan = sampling_table(config, policy)
    seeds = list(range(evaluation.first_seed, evaluation.first_seed + evaluation.n))
    start = time.perf_counter()
    filmed = seeds[: evaluation.film] if film else []
    batch, precision = evaluation.batch, evaluation.precision
    if evaluation.jobs > 1:
        shared = workers.episodes(saved.path, config, seeds, filmed, batch, precision, evaluation.jobs)
        episodes = _in_order(list(run.progress(shared, "rollouts", len(seeds))), seeds)
    else:
        episodes = rollout(policy, config, seeds, plan, batch, filmed, precision, run, evaluation.threads)
    seconds = time.perf_counter() - start
    lost = [e.seed for e in episodes if not e.success and not e.frames][: evaluation.failures if filmed else 0]
    # the same start and noise: the same episode, but seen
    again = rollout(policy, config, lost, plan, batch, lost, precision)
    episodes = _in_order([*episodes, *again], seeds)
    found = metrics(episodes) | latency(policy, plan, _some_observations(config, seeds, policy.n_obs_steps))
    return (
        {
            "checkpoint": _shown(saved.path),
            "step": saved.step,
            "metrics": found,
            "task": config.task.name,
            "data": saved.meta["data"],
            "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
            "seeds": [seeds[0], seeds[-1]],
            "precision": evaluation.precision,
            "commit": results.commit(),
            "trained_at_commit": saved.meta["commit"],
            "seconds": round(seconds, 1),
            "hardware": results.hardware(),
        },
        episodes,
        policy,
    )


def _shown(path: Path) -> str:
    """A path as one would type it here: results travel to other machines."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else "/".join(path.parts[-3:])


def _some_observations(config: PolicyConfig, seeds: Sequence[int], n_obs_steps: int, n: int = 105) -> list[Observation]:
    env = build(config.task.env)
    starts = [env.reset(seed=seed)[0] for seed in seeds[:10]]
    env.close()
    return [stack([starts[i % len(starts)]] * n_obs_steps) for i in range(n)]


def evaluate_and_report(
    saved: Sequence[Checkpoint],
    config: PolicyConfig,
    evaluation: EvaluationConfig,
    out: Path,
    command: str,
    run: Run,
) -> dict[str, Any]:
    """Evaluate checkpoints (the newest last), write everything into ``out``, return the newest one's results.

    Of the older ones only the score is kept: ``aggregates`` holds its maximum and its mean over checkpoints.
    """
    from policy import report

    scores = []
    for older in saved[:-1]:
        found, _, _ = evaluate(older, config, evaluation, run, film=False)
        scores.append(found["metrics"]["mean_max_score"].value)
        logger.info("step %d: mean max score %s", older.step, found["metrics"]["mean_max_score"])
    found, episodes, policy = evaluate(saved[-1], config, evaluation, run)
    scores.append(found["metrics"]["mean_max_score"].value)
    if len(scores) > 1:
        found["aggregates"] = {
            "checkpoints": len(scores),
            "steps": [c.step for c in saved],
            "max": max(scores),
            "mean": float(np.mean(scores)),
        }
    found["command"] = command
    out.mkdir(parents=True, exist_ok=True)
    results.write_json(out / "evaluation.json", found)
    with (out / "episodes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "max_reward", "success", "final_coverage", "max_coverage", "steps"])
        for e in episodes:
            covered = (e.coverage[-1], max(e.coverage)) if e.coverage else ("", "")
            writer.writerow([e.seed, max(e.rewards), int(e.success), *covered, e.steps])
    page = report.write(out, found, episodes, policy, config, checkpoint.run_of(saved[-1].path))
    summary = ", ".join(f"{name} {value}" for name, value in found["metrics"].items())
    logger.info("evaluated %d episodes: %s", len(episodes), summary)
    logger.info("report: %s", page)
    return found


def with_sampler(config: PolicyConfig, sampler: Leaf | None, grid: Leaf | None, steps: int) -> PolicyConfig:
    """``config`` with another sampler, grid or number of steps, where they are given."""
    return replace(config, sampler=sampler or config.sampler, grid=grid or config.grid, steps=steps or config.steps)


def run(request: EvaluateConfig) -> dict[str, Any]:
    """Evaluate what ``request`` names."""
    if not request.checkpoint:
        raise WorkbenchError(
            "checkpoint: got none; expected checkpoint=<run folder>, a checkpoint folder, or "
            "checkpoint=pretrained/pusht."
        )
    newest = checkpoint.find(request.checkpoint, PRETRAINED).require("policy", request.expect_task or None)
    home = checkpoint.run_of(newest.path)
    saved = [newest]
    if request.last > 1:
        paths = [path for path in checkpoint.listing(home) if path.name <= newest.path.name] if home else []
        if len(paths) < request.last:
            raise WorkbenchError(
                f"last: got {request.last}, but {request.checkpoint} has {max(len(paths), 1)} checkpoints; expected at "
                "most that many (train.keep sets how many a run keeps)."
            )
        saved = [checkpoint.load(path) for path in paths[-request.last :]]
    config = with_sampler(typed(PolicyConfig, newest.config), request.sampler, request.grid, request.steps)
    own = typed(PolicyConfig, newest.config).evaluation
    others = {"n": (request.n, own.n), "seed": (request.first_seed, own.first_seed)}
    out = make_folder(Path(request.out) if request.out else checkpoint.evaluation_folder(newest, request, others))
    return evaluate_and_report(saved, config, request, out, command("policy.evaluate"), Run(out))


@hydra.main(version_base=None, config_path="conf", config_name="evaluate")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(EvaluateConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
