"""What a person looks at: candidates over the maze, the way out of noise, episodes, one page with all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from omegaconf import OmegaConf

from diffusion_core.configure import plain
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, INK, MUTED, WARM, Page, save_figure, subplots, write_video
from diffusion_core.results import Estimate
from diffusion_core.run import read_metrics
from envs.maze2d import Maze, picture
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
    "contact_steps": "steps in contact with a wall",
    "collided": "episodes with a contact",
    "plan_valid": "plans that fit, end to end",
    "tracking_error": "distance from the plan, mean",
    "planning_p50": "time to plan, median",
    "planning_p95": "time to plan, 95th percentile",
}
SHOWN = 6
"""Problems whose candidates are drawn, and moments of the denoising."""
GOAL, SOLID = "#2f8f57", "#d3d9e0"
FPS = 25.0


def write(
    out: Path,
    found: dict[str, Any],
    rows: Mapping[str, Sequence[Episode]],
    planner: DiffusionPlanner,
    asked: Sequence[Problem],
    config: PlanningConfig,
    film: int,
    run: Path | None,
    titles: Mapping[str, tuple[str, str]],
) -> Path:
    """Write figures, videos and ``report.html`` into ``out``; returns the page's path.

    Args:
        found: the results, as in ``evaluation.json``.
        rows: episodes by row, the planner's first.
        asked: the problems of the episodes.
        film: how many of the planner's first episodes become videos.
        run: the folder whose ``metrics.jsonl`` holds the learning curve, if there is one.
        titles: of the peers by name, and what they know.
    """
    ours = next(iter(rows.values()))
    kind = "Multi2D" if found["multi"] else "Maze2D"
    first = found["seeds"][0]
    page = Page(
        f"Plans in {kind} {found['maze']}: D4RL score {found['metrics']['score'].value:.1f}",
        f"{len(ours)} problems, {found['problems']}; trained on {found['data']}. "
        + ("Planning sees the map." if found["sees_the_map"] else "Planning sees no map."),
    )
    page.numbers({NAMES[name]: estimate for name, estimate in found["metrics"].items()})
    page.heading("On the same problems")
    page.table(*peers_table(found, titles))
    page.text(
        "Means with 95 % intervals; differences are paired by problem, those of steps and ways where both arrived. A "
        "controller makes no plan: its time to plan is all that it thought in an episode. 100 points are D4RL's "
        "reference, a controller that drives at the waypoints of its first goal for ever (D4RL issues #159 and #215); "
        "who goes round the walls has more."
    )
    page.heading("Beside the published numbers")
    page.table(*published_table(found, titles), 0)
    page.text(
        "Published rows learned from D4RL's own data and were judged on other draws of starts and goals; ± are their "
        "standard errors where they are given. Ours: one training, the transitions named above, D4RL's score."
    )
    drawn = [Drawn.of(planner, problem, first + k) for k, problem in enumerate(asked[: max(SHOWN, film)])]
    page.heading("Candidates")
    page.figure(
        candidates_figure(out / "candidates.png", drawn[:SHOWN], ours),
        f"{len(planner.dt)} candidates for each of the first {len(drawn[:SHOWN])} problems: blue ones fit through the "
        "maze, orange ones do not; the selected one is bold. Dashed: the ball, until it was in the goal (ring).",
    )
    page.heading("How plans come out of noise")
    page.figure(
        denoising_figure(out / "denoising.png", planner, asked[0], first),
        "Candidates of the first problem during denoising, from noise (left) to plans (right); dots are a plan's "
        "places, dark at its beginning. Both ends are known all the time.",
    )
    if film:
        page.heading("Episodes")
        filmed = list(zip(drawn, ours[:film], strict=False))
        paths = [video(out / f"seed_{first + k}.mp4", d.plan, e, d.problem.maze) for k, (d, e) in enumerate(filmed)]
        page.videos(paths, [describe(first + k, e) for k, (_, e) in enumerate(filmed)])
        page.text(
            "The first problems, not chosen by outcome, in real time until a second after the ball came to the goal. "
            "Grey: the plan; blue: the ball and its way."
        )
    if run is not None and any("loss" in r for r in read_metrics(run)):
        page.heading("Learning curve")
        page.figure(
            learning_figure(out / "learning_curve.png", run), "Training loss, of the critic too if there is one."
        )
    page.heading("How to get these numbers again")
    page.code(
        "\n".join(
            [
                found["command"],
                f"# checkpoint {found['checkpoint']}, step {found['step']}",
                f"# trained at commit {found['trained_at_commit']}",
                f"# evaluated at commit {found['commit']} in {found['seconds']} s",
                f"# {found['hardware']}",
            ]
        )
    )
    page.code(OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    return page.write(out / "report.html")


def peers_table(found: dict[str, Any], titles: Mapping[str, tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each measure of ours, of the peers on the same problems, and what we have more than each."""
    head = ["", "this planner", *(titles[name][0] for name in found["peers"])]
    head += [f"less {titles[name][0]}" for name in found["differences"]]
    rows = [
        ["knows", _knows(found), *(titles[name][1] for name in found["peers"]), *("" for _ in found["differences"])]
    ]
    for measure, title in NAMES.items():
        row = [title, *(_cell(numbers[measure]) for numbers in (found["metrics"], *found["peers"].values()))]
        rows.append(
            row + [_cell(more[measure], True) if measure in more else "" for more in found["differences"].values()]
        )
    return head, rows


def published_table(found: dict[str, Any], titles: Mapping[str, tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: ours, the peers, what was published of this maze."""

    def ours(title: str, knows: str, score: Estimate) -> list[str]:
        return [title, f"{score.value:.1f} ± {score.stderr:.1f}", knows, f"here, n = {score.n}"]

    rows = [ours("this planner", _knows(found), found["metrics"]["score"])]
    rows += [ours(*titles[name], numbers["score"]) for name, numbers in found["peers"].items()]
    for line in published.ROWS:
        score, error = (of(found["maze"], found["multi"]) for of in (line.score, line.error))
        if score is not None:
            shown = f"{score:.1f}" if error is None else f"{score:.1f} ± {error:.1f}"
            acts = "a hand-written controller follows its plans" if line.executed == "PD" else "acts itself"
            rows.append([line.method, shown, acts, line.source])
    return ["method", f"D4RL score, {found['maze']}", "", "source"], rows


def _knows(found: dict[str, Any]) -> str:
    if not found["sees_the_map"]:
        return "data"
    return "data, map" if found["planner"]["refine"] == "none" else "data, map, ball"


def _cell(e: Estimate, signed: bool = False) -> str:
    def shown(x: float, sign: str = "") -> str:
        return format(x, f"{sign}.0f" if abs(x) >= 100.0 else f"{sign}.3g")

    if e.n == 0:
        return "–"
    unit = "" if e.unit in ("1", "D4RL") else f" {e.unit.split()[0]}"
    interval = "" if e.n == 1 else f" [{shown(e.low)}, {shown(e.high)}]"
    return shown(e.value, "+" if signed else "") + interval + unit


def describe(seed: int, episode: Episode) -> str:
    """One line on an episode."""
    came = f"in the goal after {episode.first} steps" if episode.success else "never in the goal"
    return f"seed {seed}: {came}, {episode.collisions} steps with a contact"


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a planner thinks of for a problem.

    Args:
        problem: where from, where to.
        ways: the candidates, m.
        fits: which of them the ball fits along.
        best: the selected one.
        plan: that is carried out.
    """

    problem: Problem
    ways: Float[np.ndarray, "n horizon 2"]
    fits: Bool[np.ndarray, " n"]
    best: int
    plan: Plan

    @classmethod
    def of(cls, planner: DiffusionPlanner, problem: Problem, seed: int) -> Drawn:
        """The same that the planner does for this problem and seed."""
        ways = planner.candidates([problem], [seed])[0]
        plans = [Plan(xy, float(dt)) for xy, dt in zip(ways, planner.dt, strict=True)]
        fits = np.array([plan.clearance(problem.maze) >= problem.maze.world.radius for plan in plans])
        return cls(problem, ways, fits, planner.best(problem, plans), planner.selected(problem, ways))


def draw_maze(axis: Any, problem: Problem) -> None:
    """The walls, the obstacles, the start and the goal, in m."""
    from matplotlib.patches import Circle, Rectangle

    maze, world = problem.maze, problem.maze.world
    for x0, y0, x1, y1 in maze.boxes:
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=SOLID, edgecolor=SOLID, lw=0.3, zorder=1))
    for x, y, radius in maze.discs:
        axis.add_patch(Circle((x, y), radius, facecolor=WARM, alpha=0.55, lw=0, zorder=1))
    side = world.side
    axis.add_patch(Circle(tuple(problem.goal), world.reach, facecolor="none", edgecolor=GOAL, lw=1.2, zorder=4))
    axis.add_patch(Circle(tuple(problem.goal), 0.12 * side, facecolor=GOAL, edgecolor="white", lw=0.6, zorder=6))
    axis.add_patch(Circle(tuple(problem.start[:2]), 0.14 * side, facecolor="white", edgecolor=INK, lw=1.2, zorder=6))
    # half of the border is enough to see that it is there
    low, high = world.corner + 0.5 * side, world.corner + side * (np.array(maze.walls.shape) - 0.5)
    axis.set(xticks=[], yticks=[], xlim=(low, high[0]), ylim=(low, high[1]), aspect="equal")
    axis.spines[:].set_visible(False)


def draw_ways(axis: Any, ways: Float[np.ndarray, "n h 2"], fits: Bool[np.ndarray, " n"], best: int | None) -> None:
    """Every candidate by whether it fits, those that do above; the selected one bold."""
    alpha = float(np.clip(6.0 / np.sqrt(len(ways)) / 2.0, 0.3, 0.9))
    for good, colour in ((False, WARM), (True, ACCENT)):
        for xy in ways[fits == good]:
            axis.plot(*xy.T, color=colour, lw=0.7, alpha=alpha * (0.6 if not good else 1.0), zorder=2 + good)
    if best is not None:
        axis.plot(*ways[best].T, color="white", lw=4.0, zorder=4, solid_capstyle="round")
        axis.plot(*ways[best].T, color=ACCENT if fits[best] else WARM, lw=2.2, zorder=5, solid_capstyle="round")


def draw_episode(axis: Any, drawn: Drawn, episode: Episode) -> None:
    """Candidates of a problem and what the ball did until it was in the goal."""
    draw_maze(axis, drawn.problem)
    draw_ways(axis, drawn.ways, drawn.fits, drawn.best)
    gone = episode.states[: (episode.first or len(episode.actions)) + 1, :2]
    axis.plot(*gone.T, color=INK, lw=1.5, ls=(0, (3, 1.5)), zorder=5)


def candidates_figure(path: Path, drawn: Sequence[Drawn], ours: Sequence[Episode]) -> Path:
    """Candidates of some problems, and what the ball did."""
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    w, h = drawn[0].problem.maze.walls.shape
    figure, axes = subplots(lines, columns, 3.4 * columns, 3.4 * lines * (h - 1) / (w - 1))
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, each, episode in zip(axes.flat, drawn, ours, strict=False):
        draw_episode(axis, each, episode)
    return save_figure(figure, path)


def denoising_figure(path: Path, planner: DiffusionPlanner, problem: Problem, seed: int) -> Path:
    """Some candidates at some times of their denoising; closer to one another towards the end, where ways appear."""
    n = len(planner.dt)
    ends = torch.as_tensor(np.stack([problem.start[:2], problem.goal])).expand(n, 2, 2)
    noise = PerSample([torch.Generator().manual_seed(seed)], each=n)
    states = list(planner.states(ends, planner.dt, noise, problem.maze))
    times = np.array([float(state.t) for state in states])
    wanted = times[0] * np.linspace(1.0, 0.0, SHOWN) ** 2
    chosen = np.unique(np.abs(times[:, None] - wanted).argmin(0))
    w, h = problem.maze.walls.shape
    figure, axes = subplots(1, len(chosen), 2.3 * len(chosen), 2.3 * (h - 1) / (w - 1) + 0.3)
    few = np.linspace(0, n - 1, min(n, 24)).round().astype(int)
    for axis, k in zip(axes[0], chosen, strict=True):
        draw_maze(axis, problem)
        xy = planner.prior.normalizer.unnormalize(states[k].x).double().cpu().numpy()
        for way in xy[few]:
            axis.plot(*way.T, color=MUTED, lw=0.4, alpha=0.45, zorder=2)
            axis.scatter(*way.T, c=np.arange(len(way)), cmap="plasma", s=4, lw=0, zorder=3)
        axis.set_title(f"t = {times[k]:.2f}", fontsize=9, color=MUTED)
    return save_figure(figure, path)


def learning_figure(path: Path, run: Path) -> Path:
    """The training loss."""
    records = [r for r in read_metrics(run) if "loss" in r]
    figure, axes = subplots(1, 1, 7.0, 2.8)
    axis = axes[0, 0]
    axis.plot([r["step"] for r in records], [r["loss"] for r in records], color=ACCENT, lw=1.2)
    axis.set(xlabel="optimizer step", ylabel="loss", yscale="log" if min(r["loss"] for r in records) > 0 else "linear")
    return save_figure(figure, path)


def video(path: Path, plan: Plan, episode: Episode, maze: Maze, scale: int = 40) -> Path:
    """An episode in real time, until a second after the ball was in the goal.

    Args:
        path: of the film.
        plan: drawn below the ball's way.
        episode: its states are a step of the world apart.
        maze: of both.
        scale: px a cell.
    """
    world = maze.world
    stride = max(round(1.0 / (FPS * world.dt)), 1)
    stop = len(episode.states) if episode.first is None else episode.first + round(1.0 / world.dt)
    # the walls are the same in every frame, and the slow part of a picture
    scene = picture(maze, episode.goal, scale=scale)

    def paint(image: np.ndarray, xy: Float[np.ndarray, "n 2"], radius: float, colour: tuple[int, int, int]) -> None:
        reach = np.arange(-np.ceil(radius), np.ceil(radius) + 1)
        offsets = np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2)
        offsets = offsets[np.linalg.norm(offsets, axis=1) <= radius]
        column, row = ((xy - world.corner) / world.side * scale - 0.5).T
        at = np.stack([column, len(image) - 1 - row], -1)[:, None] + offsets
        # round would go to the even neighbour and leave holes
        at = np.floor(at + 0.5).astype(int).reshape(-1, 2)
        inside = ((at >= 0) & (at < (image.shape[1], image.shape[0]))).all(1)
        image[at[inside, 1], at[inside, 0]] = colour

    paint(scene, plan.dense(0.02 * world.side), 1.0, (150, 158, 168))
    frames = []
    for k in range(0, min(stop, len(episode.states)), stride):
        gone = episode.states[: k + 1, :2]
        # at 5 m/s the ball moves 2 px in a step: no gaps, with this radius
        paint(scene, gone[-stride - 1 :], 1.5, (110, 160, 225))
        frame = scene.copy()
        paint(frame, gone[-1:], world.radius / world.side * scale + 1.0, (35, 90, 200))
        frames.append(frame)
    return write_video(path, frames, fps=FPS)
