"""What a person looks at: videos, the denoising of one chunk, the learning curve, one page with all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from diffusion_core.configure import build, plain, target
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, INK, MUTED, WARM, Page, save_figure, side_by_side, subplots, write_video
from diffusion_core.run import read_metrics
from envs.pusht import SUCCESS
from envs.rollout import Observation, Rollout, stack
from policy import published
from policy.config import PolicyConfig
from policy.heads.diffusion import Diffusion
from policy.model import Policy, sampling_table

NAMES = {
    "mean_max_score": "best reward of an episode, mean",
    "success_rate": "success rate",
    "final_coverage": "coverage at the end",
    "max_coverage": "best coverage",
    "steps_to_success": "steps to success (solved episodes)",
    "replan_p50": "time to replan, median",
    "replan_p95": "time to replan, 95th percentile",
}
GRID = 5
"""Films in a row."""
OF_PUSHT = {
    "mean_max_score": "mean max score (published metric)",
    "success_rate": "success rate (coverage above 0.95)",
}


def write(
    out: Path,
    found: dict[str, Any],
    episodes: Sequence[Rollout],
    policy: Policy,
    config: PolicyConfig,
    run: Path | None,
) -> Path:
    """Write videos, figures and ``report.html`` into ``out``; returns the page's path.

    Args:
        found: the results, as in ``evaluation.json``.
        episodes: what was rolled out; those with frames become videos.
        run: the folder whose ``metrics.jsonl`` holds the learning curve, if there is one.
    """
    on_pusht = config.task.name.startswith("pusht")
    headline = "mean_max_score" if on_pusht else "success_rate"
    names = NAMES | OF_PUSHT if on_pusht else NAMES
    page = Page(
        f"Policy on {config.task.name}: {names[headline].split(' (')[0]} {found['metrics'][headline].value:.3f}",
        f"{len(episodes)} episodes from seeds {found['seeds'][0]} to {found['seeds'][1]}; trained on {found['data']}.",
    )
    page.numbers({names.get(name, name): estimate for name, estimate in found["metrics"].items()})
    if on_pusht:
        page.heading("Beside the published numbers")
        page.table(*published_table(found))
        page.text(
            f"Published rows: {published.SOURCE}, three training seeds, best checkpoint and mean of the last ten. "
            "Ours: one training seed, the newest checkpoint unless aggregates are given, the demonstrations named "
            "above. "
            + (
                "Starts and metric are the published ones."
                if found["seeds"][0] == 100_000 and config.task.env.get("resets") == "published"
                else "The metric is the published one, the starts are not."
            )
        )
    filmed = [e for e in episodes if e.frames]
    if filmed:
        page.heading("Episodes")
        fps = float(getattr(target(config.task.env), "metadata", {}).get("render_fps", 10))
        if len(filmed) > 1:
            write_video(out / "grid.mp4", side_by_side([e.frames for e in filmed], GRID), fps)
        paths = [write_video(out / f"seed_{e.seed}.mp4", e.frames, fps) for e in filmed]
        page.videos(paths, [describe(e) for e in filmed])
        page.text(
            "The first seeds, not chosen by outcome, then some that were not solved"
            + ("; grid.mp4 has all side by side." if len(filmed) > 1 else ".")
            + (" The cross is the commanded target of the finger." if on_pusht else "")
        )
    page.heading("All episodes")
    if all(e.coverage for e in episodes):
        words = "coverage", "the line is the success threshold"
    else:
        words = "reward", "solved ones in another colour"
    page.figure(
        episode_figure(out / "episodes.png", episodes),
        f"Left: {words[0]} over time, one line per episode. Right: the best {words[0]} of each episode, sorted; "
        f"{words[1]}.",
    )
    if isinstance(policy.head, Diffusion):
        page.heading("How an action chunk comes out of noise")
        page.figure(
            denoising_figure(out / "denoising.png", denoise_start(policy, config, found["seeds"][0], 32)),
            f"32 samples for the first observation of seed {found['seeds'][0]}, from noise (left) to actions (right); "
            + (
                "each line is one chunk of future finger positions, dark at its beginning."
                if on_pusht
                else "each line is one dimension of one chunk over its steps, a colour for each dimension."
            ),
        )
    if run is not None and any("loss" in r for r in read_metrics(run)):
        page.heading("Learning curve")
        page.figure(
            learning_figure(out / "learning_curve.png", run),
            "Training and validation loss, and the score of "
            "ten validation rollouts during training (other seeds than the test).",
        )
    page.heading("How to get these numbers again")
    page.code(
        "\n".join(
            [
                found["command"],
                f"# checkpoint {found['checkpoint']}, step {found['step']}",
                f"# trained at commit {found['trained_at_commit']}",
                f"# evaluated at commit {found['commit']} in {found['seconds']} s, {found['precision']}",
                f"# {found['hardware']}",
            ]
        )
    )
    page.code(OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    return page.write(out / "report.html")


def published_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]], int]:
    """Head, rows and the index of our own row."""
    score, success = found["metrics"]["mean_max_score"], found["metrics"]["success_rate"]
    aggregates = found.get("aggregates")
    best = f"{score.value:.2f} (newest only)"
    if aggregates:
        best = f"{aggregates['max']:.2f} / {aggregates['mean']:.2f} of {aggregates['checkpoints']}"
    ours = ["this checkpoint", best, f"{success.value:.2f}", "1 x " + str(score.n)]
    rows = [[p.method, f"{p.best:.2f} / {p.last_ten:.2f}", "not given", "3 x 50"] for p in published.PUSHT]
    return (
        ["method", "mean max score: best / mean of the last checkpoints", "success", "training seeds x episodes"],
        [ours, *rows],
        0,
    )


def describe(episode: Rollout) -> str:
    """One line on an episode."""
    end = f"solved in {episode.steps} steps" if episode.success else f"not solved in {episode.steps} steps"
    covered = f", best coverage {max(episode.coverage):.2f}" if episode.coverage else ""
    return f"seed {episode.seed}: {end}{covered}"


def episode_figure(path: Path, episodes: Sequence[Rollout]) -> Path:
    """Coverage (where the task has none: reward) over time, and the best of each episode."""
    figure, axes = subplots(1, 2, 11.0, 3.4)
    left, right = axes[0]
    covered = all(e.coverage for e in episodes)
    word = "coverage of the goal" if covered else "reward"
    curves = [(e.coverage if covered else e.rewards, e.success) for e in episodes]
    for curve, success in curves:
        left.plot(np.arange(1, len(curve) + 1), curve, color=ACCENT if success else WARM, alpha=0.45, lw=1)
    left.set(xlabel="control step", ylabel=word)
    left.plot([], [], color=ACCENT, label="solved")
    left.plot([], [], color=WARM, label="not solved")
    best = sorted(((max(curve), success) for curve, success in curves), reverse=True)
    right.bar(range(len(best)), [b for b, _ in best], color=[ACCENT if s else WARM for _, s in best], width=0.85)
    right.set(xlabel="episode, sorted", ylabel=f"best {word}")
    if covered:
        for axis in (left, right):
            axis.axhline(SUCCESS, color=INK, lw=0.8, ls="--")
            axis.set(ylim=(0, 1.02))
    left.legend(loc="lower right")
    return save_figure(figure, path)


@dataclass(frozen=True)
class Denoising:
    """How chunks came out of noise.

    Args:
        times: (moments,) from 1 to 0.
        actions: (moments, n, horizon, action_dim) in the environment's units.
        observation: stacked (n_obs_steps, ...), what they are conditioned on.
        scene: rendered start, RGB; None where actions are no places in the picture.
    """

    times: np.ndarray
    actions: np.ndarray
    observation: Observation
    scene: np.ndarray | None


def denoise_start(policy: Policy, config: PolicyConfig, seed: int, n: int) -> Denoising:
    """``n`` chunks for the first observation of the episode ``seed``, with all they went through."""
    env = build(config.task.env)
    observation, _ = env.reset(seed=seed)
    scene = np.asarray(env.render()) if config.task.name.startswith("pusht") else None
    env.close()
    history = stack([observation] * policy.n_obs_steps)
    obs = policy.seen(stack([history] * n))
    plan = sampling_table(config, policy)
    assert plan is not None  # a diffusion has one
    states = list(policy.denoising(obs, plan, PerSample.from_seeds(range(n))))
    start = policy.start(obs, plan, PerSample.from_seeds(range(n)))
    moments = [(float(plan.times[0]), start)] + [(s.t, s.x) for s in states]
    actions = np.stack([policy.actions(x, obs).cpu().numpy() for _, x in moments])
    return Denoising(np.array([t for t, _ in moments]), actions, history, scene)


def denoising_figure(path: Path, denoising: Denoising) -> Path:
    """Chunks at up to six moments of the sampler, over the rendered scene."""
    moments = min(6, len(denoising.times))
    figure, axes = subplots(1, moments, 2.2 * moments, 2.5)
    draw_denoising(list(axes[0]), denoising)
    return save_figure(figure, path)


def draw_denoising(axes: Sequence[Any], denoising: Denoising) -> None:
    """As many moments as there are axes, the first and the last among them."""
    chosen = np.linspace(0, len(denoising.times) - 1, len(axes)).round().astype(int)
    for axis, i in zip(axes, chosen, strict=True):
        if denoising.scene is None:
            for dim in range(denoising.actions.shape[-1]):
                axis.plot(denoising.actions[i, :, :, dim].T, color=f"C{dim}", lw=0.5, alpha=0.4)
            axis.set(xlabel="step of the chunk", title=f"t = {denoising.times[i]:.2f}")
            continue
        axis.imshow(denoising.scene, extent=(0, 512, 512, 0), alpha=0.55)
        for chunk in denoising.actions[i]:
            axis.plot(chunk[:, 0], chunk[:, 1], color=MUTED, lw=0.4, alpha=0.5)
            axis.scatter(chunk[:, 0], chunk[:, 1], c=np.arange(len(chunk)), cmap="plasma", s=3, zorder=3, lw=0)
        axis.set(xlim=(0, 512), ylim=(512, 0), xticks=[], yticks=[], title=f"t = {denoising.times[i]:.2f}")
        axis.set_aspect("equal")
        axis.spines[:].set_visible(False)


def learning_figure(path: Path, run: Path) -> Path:
    """Loss and validation score over optimizer steps."""
    records = read_metrics(run)
    figure, axes = subplots(1, 2, 11.0, 3.2)
    left, right = axes[0]

    def series(key: str) -> tuple[list[int], list[float]]:
        found = [(r["step"], r[key]) for r in records if key in r]
        return [s for s, _ in found], [v for _, v in found]

    left.plot(*series("loss"), color=ACCENT, lw=1.2, label="training (raw weights)")
    if series("validation_loss")[0]:
        left.plot(*series("validation_loss"), color=WARM, marker="o", ms=3, lw=1.2, label="held-out (averaged weights)")
    left.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    left.legend()
    right.plot(*series("validation_score"), color=ACCENT, marker="o", ms=4, lw=1.2)
    right.set(xlabel="optimizer step", ylabel="mean max score, 10 rollouts", ylim=(0, 1.02))
    return save_figure(figure, path)
