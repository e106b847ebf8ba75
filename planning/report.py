"""What a person looks at: candidates over the maze, the way out of noise, episodes, one page with all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import OmegaConf

from diffusion_core.configure import plain
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, INK, MUTED, WARM, Page, save_figure, subplots, write_video
from diffusion_core.run import read_metrics
from envs.maze2d import MAPS, RADIUS, Maze, picture
from planning import published
from planning.config import PlanningConfig
from planning.execute import Episode
from planning.plan import Plan, Problem
from planning.planner import DiffusionPlanner

NAMES = {
    "score": "D4RL score",
    "success_rate": "success (in the goal at some step)",
    "steps_to_goal": "steps to the goal (successes)",
    "path_ratio": "way, in units of the shortest through cells",
    "collided": "episodes that touched a wall",
    "plan_valid": "plans that fit, end to end",
    "tracking_error": "distance from the plan, mean",
    "planning_p50": "time to plan, median",
    "planning_p95": "time to plan, 95th percentile",
}
SHOWN = 6
"""Problems whose candidates are drawn."""


def write(
    out: Path,
    found: dict[str, Any],
    rows: Mapping[str, Sequence[Episode]],
    planner: DiffusionPlanner,
    config: PlanningConfig,
    film: int,
    run: Path | None,
) -> Path:
    """Write figures, videos and ``report.html`` into ``out``; returns the page's path.

    Args:
        found: the results, as in ``evaluation.json``.
        rows: episodes by row, the planner's first.
        film: how many of the planner's first episodes become videos.
        run: the folder whose ``metrics.jsonl`` holds the learning curve, if there is one.
    """
    ours = next(iter(rows.values()))
    kind = "Multi2D" if found["multi"] else "Maze2D"
    page = Page(
        f"Plans in {kind} {found['maze']}: D4RL score {found['metrics']['score'].value:.1f}",
        f"{len(ours)} problems, seeds {found['seeds'][0]} to {found['seeds'][1]}; trained on {found['data']}. "
        + ("Planning sees the map." if found["sees_the_map"] else "Planning sees no map."),
    )
    page.numbers({NAMES[name]: estimate for name, estimate in found["metrics"].items()})
    page.heading("Beside others")
    page.table(*table(found), 0)
    page.text(
        "The upper rows had the same problems in this run. Published rows learned from D4RL's own data and were judged "
        "on other draws of starts and goals. D4RL's 100 is a controller that drives at old waypoints (D4RL issues #159 "
        "and #215), which is why going round the walls is worth more."
    )
    maze = Maze(MAPS[config.task.maze])
    asked = [Problem(maze, e.states[0], e.goal) for e in ours[:SHOWN]]
    page.heading("Candidates")
    page.figure(
        candidates_figure(out / "candidates.png", planner, asked, ours, found["seeds"][0]),
        f"{len(planner.dt)} candidates for each of the first {len(asked)} problems: blue ones fit through the maze, "
        "orange ones do not. Black: what the ball did.",
    )
    page.heading("How plans come out of noise")
    page.figure(
        denoising_figure(out / "denoising.png", planner, asked[0], found["seeds"][0]),
        "The candidates of the first problem during denoising, from noise (left) to plans (right).",
    )
    if film:
        page.heading("Episodes")
        paths = [video(out / f"seed_{found['seeds'][0] + k}.mp4", maze, e) for k, e in enumerate(ours[:film])]
        page.videos(paths, [describe(found["seeds"][0] + k, e) for k, e in enumerate(ours[:film])])
        page.text("The first seeds, not chosen by outcome; four times as fast as they were.")
    if run is not None and any("loss" in r for r in read_metrics(run)):
        page.heading("Learning curve")
        page.figure(learning_figure(out / "learning_curve.png", run), "Training loss of the prior and its critic.")
    page.heading("How to get these numbers again")
    page.code(
        "\n".join(
            [
                found["command"],
                f"# checkpoint {found['checkpoint']}, step {found['step']}",
                f"# trained at commit {found['trained_at_commit']}, evaluated at commit {found['commit']}",
                f"# {found['hardware']}",
            ]
        )
    )
    page.code(OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    return page.write(out / "report.html")


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: ours, peers, published."""
    head = ["", "D4RL score", "success", "steps to goal", "time to plan", "knows"]

    def row(name: str, m: dict[str, Any], knows: str) -> list[str]:
        values = [f"{m['score'].value:.1f} ± {m['score'].stderr:.1f}", f"{m['success_rate'].value:.2f}"]
        return [name, *values, f"{m['steps_to_goal'].value:.0f}", f"{m['planning_p50'].value:.0f} ms", knows]

    rows = [row("this planner", found["metrics"], "data, map, ball" if found["sees_the_map"] else "data")]
    knows = ("map", "map, ball")
    rows += [row(name, m, known) for (name, m), known in zip(found["peers"].items(), knows, strict=True)]
    for line in published.ROWS:
        score = line.score(found["maze"], found["multi"])
        if score is not None:
            rows.append([f"{line.method} (published)", f"{score:.1f}", "", "", "", "D4RL's data"])
    return head, rows


def describe(seed: int, episode: Episode) -> str:
    """One line on an episode."""
    came = f"in the goal after {episode.first} steps" if episode.success else "never in the goal"
    return f"seed {seed}: {came}, {episode.collisions} steps with a contact"


def background(axis: Any, maze: Maze) -> None:
    """The maze behind a panel, in metres."""
    width, height = maze.walls.shape
    axis.imshow(picture(maze), extent=(-0.7, width - 0.7, -0.7, height - 0.7), interpolation="nearest")
    axis.set(xticks=[], yticks=[], xlim=(-0.7, width - 0.7), ylim=(-0.7, height - 0.7), aspect="equal")
    for spine in axis.spines.values():
        spine.set_visible(False)


def draw_candidates(axis: Any, planner: DiffusionPlanner, problem: Problem, xy: Float[np.ndarray, "n h 2"]) -> None:
    """Every candidate, by whether it fits; the worse ones below."""
    background(axis, problem.maze)
    plans = [Plan(way, float(dt)) for way, dt in zip(xy, planner.dt, strict=True)]
    fits = [plan.clearance(problem.maze) >= RADIUS for plan in plans]
    for good, colour in ((False, WARM), (True, ACCENT)):
        for plan, fit in zip(plans, fits, strict=True):
            if fit == good:
                axis.plot(*plan.xy.T, color=colour, lw=0.7, alpha=0.45)
    axis.plot(*problem.start[:2], "o", color=INK, ms=4)
    axis.plot(*problem.goal, "*", color=INK, ms=8)


def candidates_figure(
    path: Path, planner: DiffusionPlanner, asked: Sequence[Problem], ours: Sequence[Episode], seed: int
) -> Path:
    """Candidates of some problems, and what the ball did."""
    columns = min(3, len(asked))
    figure, axes = subplots(-(-len(asked) // columns), columns, 10.0, 4.4 * -(-len(asked) // columns))
    for axis in axes.flat[len(asked) :]:
        axis.set_visible(False)
    for k, (axis, problem) in enumerate(zip(axes.flat, asked, strict=False)):
        draw_candidates(axis, planner, problem, planner.candidates([problem], [seed + k])[0])
        axis.plot(*ours[k].states[: ours[k].first or None, :2].T, color=INK, lw=1.6)
    return save_figure(figure, path)


def denoising_figure(path: Path, planner: DiffusionPlanner, problem: Problem, seed: int, moments: int = 6) -> Path:
    """Candidates at some times of their denoising."""
    n = len(planner.dt)
    ends = torch.as_tensor(np.stack([problem.start[:2], problem.goal])).expand(n, 2, 2)
    noise = PerSample([torch.Generator().manual_seed(seed)], each=n)
    states = list(planner.states(ends, planner.dt, noise, problem.maze))
    shown = [states[round(k)] for k in np.linspace(0, len(states) - 1, moments)]
    figure, axes = subplots(1, moments, 13.0, 3.4)
    for axis, state in zip(axes[0], shown, strict=True):
        xy = planner.prior.normalizer.unnormalize(state.x).double().cpu().numpy()
        draw_candidates(axis, planner, problem, xy)
        axis.set_title(f"t = {float(state.t):.2f}", fontsize=9, color=MUTED)
    return save_figure(figure, path)


def learning_figure(path: Path, run: Path) -> Path:
    """The training loss."""
    records = [r for r in read_metrics(run) if "loss" in r]
    figure, axes = subplots(1, 1, 6.0, 2.8)
    axes[0, 0].plot([r["step"] for r in records], [r["loss"] for r in records], color=ACCENT, lw=1.2)
    axes[0, 0].set(xlabel="step", ylabel="loss")
    return save_figure(figure, path)


def video(path: Path, maze: Maze, episode: Episode) -> Path:
    """An episode until a while after it came to the goal, every 16th step."""
    stop = min(len(episode.states), (episode.first or len(episode.states)) + 60)
    return write_video(path, [picture(maze, episode.goal, xy) for xy in episode.states[:stop:16, :2]], fps=25)
