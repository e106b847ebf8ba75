"""Judge a planner in its maze: ``python -m planning.evaluate checkpoint=runs/<date>/planning-maze2d_large-...``.

Every problem is planned and carried out for a whole episode; the correct waypoint controller, which made the
demonstrations, and a search that knows the map and the ball get the same problems in the same run, so that differences
are paired. Problems are planned one at a time, with one thread: a plan depends on nothing but its problem and its seed,
and its time is what one robot would wait.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from jaxtyping import Float
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import plain, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from diffusion_core.run import Run, command, launch, make_folder, one_line_errors
from envs.maze2d import DT, Maze2d
from planning import pointmaze, problems, report
from planning.config import EvaluateConfig, EvaluationConfig, PlanningConfig
from planning.execute import STIFF, Episode, Gains, Peer, execute
from planning.peers.bfs import Bfs
from planning.peers.chomp import Chomp
from planning.peers.mppi import Mppi
from planning.peers.offline import Clone, Iql
from planning.peers.ompl_planner import Ompl
from planning.peers.waypoint import Waypoint
from planning.plan import Plan, Problem
from planning.planner import DiffusionPlanner
from planning.prior import restore, sampling_table

logger = logging.getLogger("workbench.planning")


@dataclass(frozen=True)
class Contender:
    """Who gets the problems.

    Args:
        title: for tables.
        make: the planner or the maker of controllers.
        gains: that its plans are tracked with.
        knows: what it was told or learned from.
    """

    title: str
    make: Callable[[], Peer]
    gains: Gains
    knows: str


PLANNER = "planner"
"""The name of the row of what is judged."""
PEERS: dict[str, Contender] = {
    "waypoint": Contender("correct waypoint controller", Waypoint, Gains(), "map"),
    "bfs": Contender("search through cells (BFS)", Bfs, STIFF, "map, ball"),
    "rrtconnect": Contender("RRTConnect (OMPL)", lambda: Ompl("rrtconnect"), STIFF, "map, ball"),
    "bitstar": Contender("BIT* (OMPL)", lambda: Ompl("bitstar"), STIFF, "map, ball"),
    "chomp": Contender("CHOMP", Chomp, STIFF, "map, ball"),
    "clone": Contender("behaviour cloning", Clone, Gains(), "data"),
    "iql": Contender("implicit Q-learning (IQL)", Iql, Gains(), "data"),
    "mppi": Contender("MPPI", Mppi, Gains(), "map, ball, shortest ways"),
}


def attempt(
    env: Maze2d, problem: Problem, peer: Peer, seed: int, gains: Gains
) -> tuple[Episode, WorkbenchError | None]:
    """One episode, and why there was no plan if there was none: the ball is held where it starts then."""
    failed = None
    began = time.perf_counter()
    try:
        made = peer(problem, seed)
    except WorkbenchError as error:
        failed, made = error, Plan(np.stack([problem.start[:2]] * 2), DT)
    seconds = time.perf_counter() - began
    episode = execute(env, problem, made, seed, gains)
    valid = None if episode.valid is None else episode.valid and failed is None
    return replace(episode, valid=valid, planning_seconds=[seconds + sum(episode.planning_seconds)]), failed


def episodes(
    env: Maze2d, asked: Sequence[Problem], peer: Peer, seeds: Sequence[int], gains: Gains, name: str, run: Run
) -> list[Episode]:
    """One of each problem, planned one by one; an episode depends on nothing but its problem and its seed.

    Raises:
        WorkbenchError: there was a plan for none of the problems.
    """
    found, failed = [], []
    for problem, seed in run.progress(zip(asked, seeds, strict=True), name, len(seeds)):
        episode, error = attempt(env, problem, peer, seed, gains)
        found.append(episode)
        failed += [error] if error else []
    if len(failed) == len(found):
        raise failed[0]
    if failed:
        logger.warning("%s: no plan for %d of %d problems, the first: %s", name, len(failed), len(found), failed[0])
    return found


def values(found: Sequence[Episode]) -> dict[str, Float[np.ndarray, " n"]]:
    """Numbers of each episode that can be averaged and compared by problem; nan where one says nothing."""
    return {
        "score": np.array([e.score for e in found]),
        "success_rate": np.array([float(e.success) for e in found]),
        "steps_to_goal": np.array([np.nan if e.first is None else float(e.first) for e in found]),
        "path_ratio": np.array([e.path_ratio for e in found]),
        "contact_steps": np.array([float(e.collisions) for e in found]),
        "tracking_error": np.array([e.tracking_mean for e in found]),
    }


UNITS = {"score": "D4RL", "steps_to_goal": "steps of 0.01 s", "contact_steps": "steps of 0.01 s", "tracking_error": "m"}
COMPARED = ("score", "success_rate", "steps_to_goal", "path_ratio", "contact_steps")


def metrics(found: Sequence[Episode]) -> dict[str, Estimate]:
    """What the episodes say; the score is D4RL's, of the steps spent in the goal."""
    plans = [e.valid for e in found if e.valid is not None]
    milliseconds = [1e3 * seconds for e in found for seconds in e.planning_seconds]
    means = {name: _mean(x, UNITS.get(name, "1")) for name, x in values(found).items()}
    return means | {
        "success_rate": results.rate(sum(e.success for e in found), len(found)),
        "collided": results.rate(sum(e.collisions > 0 for e in found), len(found)),
        "plan_valid": results.rate(sum(plans), len(plans)),
        "planning_p50": results.quantile(milliseconds, 0.50, "ms"),
        "planning_p95": results.quantile(milliseconds, 0.95, "ms"),
    }


def differences(ours: Sequence[Episode], theirs: Sequence[Episode]) -> dict[str, Estimate]:
    """Ours less theirs, problem by problem; of those problems on which both say something."""
    one, two = values(ours), values(theirs)
    return {name: _mean(one[name] - two[name], UNITS.get(name, "1")) for name in COMPARED}


def _mean(x: Float[np.ndarray, " n"], unit: str) -> Estimate:
    return results.mean(x[np.isfinite(x)].tolist(), unit)


@contextmanager
def _one_thread() -> Iterator[None]:
    # the number of threads changes roundings, and with them plans
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contenders(names: Sequence[str]) -> dict[str, Contender]:
    """The peers of these names.

    Raises:
        WorkbenchError: there is no such peer.
    """
    if unknown := [name for name in names if name not in PEERS]:
        raise WorkbenchError(
            f"peers: got {', '.join(unknown)}; expected some of {', '.join(PEERS)}: correct the names."
        )
    return {name: PEERS[name] for name in names}


def evaluate(
    saved: Checkpoint, config: PlanningConfig, evaluation: EvaluationConfig, run: Run
) -> tuple[dict[str, Any], dict[str, list[Episode]], DiffusionPlanner]:
    """Plan and carry out; returns the results, the episodes of each row and the planner.

    Args:
        config: the checkpoint's, with what is asked for.

    Raises:
        WorkbenchError: a peer or a file of problems does not fit, or there is no plan for any problem.
    """
    prior, _ = restore(saved)
    if torch.cuda.is_available():
        prior = prior.cuda()
    planner = DiffusionPlanner(prior, sampling_table(config, prior), config.planner)
    multi = config.task.multi if evaluation.multi is None else evaluation.multi
    env = Maze2d(config.task.maze, multi=multi)
    asked, where = _asked(env, evaluation)
    seeds = list(range(evaluation.seed, evaluation.seed + len(asked)))
    # a peer whose package is not there is refused now, not after the planner's episodes
    rows: dict[str, tuple[Peer, Gains]] = {PLANNER: (planner, Gains(config.planner.kp, config.planner.kd))}
    rows |= {name: (peer.make(), peer.gains) for name, peer in contenders(evaluation.peers).items()}
    began = time.perf_counter()
    found: dict[str, list[Episode]] = {}
    with _one_thread():
        for name, (peer, gains) in rows.items():
            # the first plan pays for what is loaded only once
            with suppress(WorkbenchError):
                peer(asked[0], seeds[0])
            found[name] = episodes(env, asked, peer, seeds, gains, name, run)
        hardware = results.hardware()
    return (
        {
            "checkpoint": _shown(saved.path),
            "step": saved.step,
            "task": config.task.name,
            "maze": config.task.maze,
            "multi": multi,
            "problems": where,
            "seeds": [seeds[0], seeds[-1]],
            "metrics": metrics(found[PLANNER]),
            "peers": {name: metrics(found[name]) for name in evaluation.peers},
            "differences": {name: differences(found[PLANNER], found[name]) for name in evaluation.peers},
            "planner": plain(config.planner),
            "sees_the_map": config.planner.walls > 0.0
            or config.planner.select in ("shortest", "quickest")
            or config.planner.refine != "none",
            "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
            "training_seed": config.train.seed,
            "data": saved.meta["data"],
            "commit": results.commit(),
            "trained_at_commit": saved.meta["commit"],
            "seconds": round(time.perf_counter() - began, 1),
            "hardware": hardware,
        },
        found,
        planner,
    )


def _asked(env: Maze2d, evaluation: EvaluationConfig) -> tuple[list[Problem], str]:
    """The problems, and where they are from."""
    if not evaluation.problems:
        last = evaluation.seed + evaluation.n - 1
        return problems.drawn(env, range(evaluation.seed, last + 1)), f"seeds {evaluation.seed} to {last}"
    path = Path(evaluation.problems).expanduser()
    found = problems.of_file(env, path)
    return found, f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _shown(path: Path) -> str:
    """A path as one would type it here: results travel to other machines."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else "/".join(path.parts[-4:])


def check(config: PlanningConfig, evaluation: EvaluationConfig) -> None:
    """Refuse now what would be refused after a training.

    Raises:
        WorkbenchError: a peer or a file of problems does not fit, or the selection needs what is not trained.
    """
    if config.planner.select == "critic" and not config.critic:
        raise WorkbenchError(
            "planner.select: got critic, and critic=false; expected a critic to select by: set critic=true, or select "
            "first, shortest or quickest."
        )
    if config.planner.tree and (config.task.env == "maze2d" or not config.critic):
        raise WorkbenchError(
            f"planner.tree: got {config.planner.tree} in {config.task.env} with critic={config.critic}; expected a "
            "point maze and a critic that says where one can go: set tree=0, or choose another task and critic=true."
        )
    if config.task.env == "maze2d":
        for peer in contenders(evaluation.peers).values():
            peer.make()
        _asked(Maze2d(config.task.maze, multi=True), replace(evaluation, n=1))


def evaluate_and_report(
    saved: Checkpoint, config: PlanningConfig, evaluation: EvaluationConfig, out: Path, command: str, run: Run
) -> dict[str, Any]:
    """Evaluate, and write results, episodes, figures, videos and ``report.html`` into ``out``."""
    if config.task.env == "pointmaze":
        return pointmaze.evaluate_and_report(saved, config, evaluation, out, command, run)
    found, rows, planner = evaluate(saved, config, evaluation, run)
    found["command"] = command
    maze = Maze2d(config.task.maze, multi=True).maze
    asked = [Problem(maze, e.states[0], e.goal) for e in rows[PLANNER]]
    make_folder(out)
    results.write_json(out / "evaluation.json", found)
    _write_episodes(out / "episodes.csv", rows, evaluation.seed)
    home = checkpoint.run_of(saved.path)
    titles = {name: (peer.title, peer.knows) for name, peer in contenders(evaluation.peers).items()}
    page = report.write(out, found, rows, planner, asked, config, evaluation.film, home, titles)
    summary = ", ".join(f"{name} {value}" for name, value in found["metrics"].items())
    logger.info("evaluated %d problems: %s", len(rows[PLANNER]), summary)
    logger.info("report: %s", page)
    return found


def _write_episodes(path: Path, rows: Mapping[str, Sequence[Episode]], seed: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        ends = ["start_x", "start_y", "start_vx", "start_vy", "goal_x", "goal_y"]
        writer.writerow(["row", "seed", *ends, *COMPARED, "tracking_error", "plan_valid", "planning_ms"])
        for name, each in rows.items():
            numbers = values(each)
            for k, e in enumerate(each):
                found = [f"{numbers[n][k]:.6g}" for n in (*COMPARED, "tracking_error")]
                ends = [f"{x:.6g}" for x in (*e.states[0], *e.goal)]
                writer.writerow([name, seed + k, *ends, *found, e.valid, f"{1e3 * e.planning_seconds[0]:.4g}"])


def opened(name: str, task: str = "") -> Checkpoint:
    """The checkpoint that ``name`` means.

    Args:
        task: that it must be of; empty: any.

    Raises:
        WorkbenchError: there is none, it is not a planner's, or of another task.
    """
    if not name:
        raise WorkbenchError(
            "checkpoint: got none; expected checkpoint=<run folder> or one of its checkpoints; python -m "
            "planning.train task=maze2d_large makes one."
        )
    return checkpoint.find(name).require("planning", task or None)


def run(request: EvaluateConfig) -> dict[str, Any]:
    """Evaluate what ``request`` names."""
    saved = opened(request.checkpoint, request.expect_task)
    own = typed(PlanningConfig, saved.config)
    others = {name: (getattr(request, name), getattr(own.evaluation, name)) for name in ("n", "seed", "multi")}
    others |= {name: (value, getattr(own.planner, name)) for name, value in request.changed.items()}
    others["problems"] = (Path(request.problems).stem, Path(own.evaluation.problems).stem)
    out = Path(request.out) if request.out else checkpoint.evaluation_folder(saved, request, others)
    words = command("planning.evaluate")
    return evaluate_and_report(saved, request.of(own), request, out, words, Run(make_folder(out)))


@hydra.main(version_base=None, config_path="conf", config_name="evaluate")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(EvaluateConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
