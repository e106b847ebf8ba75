"""Imagination beside the simulator, on Push-T: how long do imagined pictures stay true?

    python -m policy.experiments.imagination --steps 3000 --out benchmarks/results/policy/imagination.json

Two worlds (`policy.imagine`) learn from the planned demonstrations and from a finger that wanders about the block: one
sees its last pictures under noise while it learns, one does not. Both are then told the actions of episodes that they
never saw and imagine what follows, from two pictures on. What is imagined is compared with what the simulator shows:
pixel by pixel, by the places of finger and block, and by how far the two blocks overlap.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_core import results
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, INK, MUTED, WARM, save_figure, subplots
from diffusion_core.run import Run, launch
from diffusion_core.train import TrainConfig, fit
from envs.pusht import PushT
from policy.data.recording import render
from policy.data.sources import load
from policy.imagine import SEEN, Recorded, World, in_units

logger = logging.getLogger("workbench.policy")
SIZE, STRIDE, WIDTHS, FIELD = 32, 4, (16, 32, 64), 512.0
WANDERS, LENGTH = 120, 160
HELD_OUT = 20
FRAMES = (1, 2, 4, 8, 16, 32)
COLOURS = {"finger": (65, 105, 225), "block": (119, 136, 153), "goal": (144, 238, 144), "table": (255, 255, 255)}
Episode = tuple[np.ndarray, np.ndarray]
"""States (steps, 5) and actions (steps, 2), px."""


def wander(seed: int, steps: int) -> Episode:
    """A finger that goes to places about the block, some of them behind it, at its own pace."""
    rng = np.random.default_rng([seed, 0xD0])
    env = PushT(obs="state", render_mode=None, max_steps=steps + 1)
    state, _ = env.reset(seed=seed)
    states, actions, goal = [], [], np.zeros(2)
    for step in range(steps):
        if step % 10 == 0:
            goal = np.clip(state[2:4] + rng.normal(0.0, 90.0, 2), 20.0, 492.0)
        action = state[:2] + (goal - state[:2]) * rng.uniform(0.15, 0.6)
        states.append(state)
        actions.append(action)
        state = env.step(action.astype(np.float32))[0]
    return np.stack(states), np.stack(actions)


def small(states: Float[np.ndarray, "steps 5"]) -> np.ndarray:
    """What the camera shows in each state, (steps, 3, SIZE, SIZE) bytes."""
    whole = render(states.astype(np.float32))
    blocks = whole.reshape(len(whole), SIZE, whole.shape[1] // SIZE, SIZE, whole.shape[2] // SIZE, 3)
    return blocks.mean((2, 4)).round().astype(np.uint8).transpose(0, 3, 1, 2)


def recorded(episodes: Sequence[Episode]) -> Recorded:
    """All moments of the episodes that have pictures before and after them."""
    pictures = np.concatenate([small(states) for states, _ in episodes])
    targets = np.concatenate([actions for _, actions in episodes]) / FIELD
    ends = np.cumsum([len(states) for states, _ in episodes])
    before = (SEEN - 1) * STRIDE
    starts = [np.arange(e - len(s) + before, e - STRIDE) for (s, _), e in zip(episodes, ends, strict=True)]
    as_tensor = torch.as_tensor
    return Recorded(as_tensor(pictures), as_tensor(targets).float(), as_tensor(np.concatenate(starts)).long(), STRIDE)


def masks(pictures: Float[Tensor, "*b 3 s s"]) -> dict[str, Float[Tensor, "*b s s"]]:
    """How much of each pixel is finger and how much is block, 0 to 1: the nearest colours win, softly."""
    colours = in_units(torch.tensor(list(COLOURS.values()), dtype=torch.uint8)).to(pictures)
    away = (pictures[..., None, :, :, :] - colours[:, :, None, None]).square().sum(-3)
    share = (-away / 0.05).softmax(-3)
    return {name: share[..., i, :, :] for i, name in enumerate(("finger", "block"))}


def place(mask: Float[Tensor, "*b s s"]) -> Float[Tensor, "*b 2"]:
    """The middle of a mask, px of the field; a mask of nothing is in the middle of the picture."""
    at = (torch.arange(mask.shape[-1], device=mask.device) + 0.5) / mask.shape[-1] * FIELD
    weight = mask.clamp(min=1e-6)
    total = weight.sum((-2, -1))
    return torch.stack([(weight.sum(-2) * at).sum(-1), (weight.sum(-1) * at).sum(-1)], -1) / total[..., None]


def errors(found: Float[Tensor, "n frames 3 s s"], true: Float[Tensor, "n frames 3 s s"]) -> dict[str, np.ndarray]:
    """Of each picture (n, frames): PSNR in dB, distances of finger and block in px, overlap of the blocks."""
    ours, theirs = masks(found), masks(true)
    inside, around = (torch.minimum, torch.maximum)
    overlap = inside(ours["block"], theirs["block"]).sum((-2, -1)) / around(ours["block"], theirs["block"]).sum(
        (-2, -1)
    )
    mse = (found - true).square().mean((-3, -2, -1)).clamp(min=1e-6)
    told = {
        "psnr": 10.0 * torch.log10(4.0 / mse),
        "finger": (place(ours["finger"]) - place(theirs["finger"])).norm(dim=-1),
        "block": (place(ours["block"]) - place(theirs["block"])).norm(dim=-1),
        "overlap": overlap,
    }
    return {name: values.numpy() for name, values in told.items()}


def scene(episodes: Sequence[Episode]) -> tuple[Tensor, Tensor, Tensor]:
    """First pictures (n, SEEN, ...), the targets between the next ones (n, frames, STRIDE, 2), and those pictures."""
    first = (SEEN - 1) * STRIDE
    at = first + STRIDE * np.arange(1 - SEEN, max(FRAMES) + 1)
    pictures = torch.stack([in_units(torch.as_tensor(small(states[at]))) for states, _ in episodes])
    steps = first + np.arange(max(FRAMES) * STRIDE).reshape(-1, STRIDE)
    targets = torch.stack([torch.as_tensor(actions[steps] / FIELD).float() for _, actions in episodes])
    return pictures[:, :SEEN], targets, pictures[:, SEEN:]


def measured(name: str, found: Tensor, true: Tensor) -> dict[str, Any]:
    """One row: the mean of every error after so many pictures."""
    of = errors(found, true)
    return {
        "world": name,
        **{e: {str(frame): results.mean(of[e][:, frame - 1].tolist()) for frame in FRAMES} for e in of},
    }


def estimator(episodes: Sequence[Episode]) -> dict[str, results.Estimate]:
    """How far the places read from true pictures are from the simulator's, px."""
    states = np.concatenate([states[::STRIDE] for states, _ in episodes])
    seen = masks(in_units(torch.as_tensor(small(states))))
    finger = (place(seen["finger"]) - torch.as_tensor(states[:, :2]).float()).norm(dim=-1)
    return {"finger": results.mean(finger.tolist())}


def trained(most: float, data: Recorded, asked: argparse.Namespace) -> World:
    """A world that has learned; it goes on where it was stopped."""
    run = Run(asked.work / f"noise-{most:g}")
    run.path.mkdir(parents=True, exist_ok=True)
    train = TrainConfig(
        steps=asked.steps, batch_size=16, learning_rate=1e-3, warmup_steps=100, checkpoint_every=500, keep=1, threads=1
    )
    torch.manual_seed(train.seed)
    world = World(SIZE, STRIDE, WIDTHS, most)
    about = {"steps": asked.steps, "most": most}
    found = fit(world, data, train, run, saved_config=about, meta={"domain": "policy", "task": "imagine"}, device="cpu")
    assert isinstance(found, World)
    return found.eval()


def figure(path: Path, true: Tensor, found: Tensor, rows: Sequence[dict[str, Any]]) -> None:
    """Pictures of the simulator above imagined ones, and the errors over time."""
    shown = [frame - 1 for frame in FRAMES]
    canvas, axes = subplots(3, len(shown), 11.0, 6.4)
    for column, frame in enumerate(shown):
        for row, (pictures, word) in enumerate(((true, "simulator"), (found, "imagined"))):
            axis = axes[row][column]
            axis.imshow(((pictures[0, frame].permute(1, 2, 0) + 1.0) / 2.0).clamp(0.0, 1.0), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(word)
            if row == 0:
                axis.set_title(f"{(frame + 1) * STRIDE / 10:.1f} s")
    grid = axes[2][0].get_gridspec()
    for axis in axes[2]:
        axis.remove()
    half = len(shown) // 2
    seconds = [frame * STRIDE / 10 for frame in FRAMES]
    for part, (error, label) in zip(
        (grid[2, :half], grid[2, half:]), (("block", "block, px"), ("overlap", "overlap of the blocks")), strict=True
    ):
        axis = canvas.add_subplot(part)
        for world, colour in zip(rows, (MUTED, WARM, ACCENT, INK), strict=True):
            axis.plot(
                seconds, [world[error][str(f)].value for f in FRAMES], color=colour, label=world["world"], marker="."
            )
        axis.set(xlabel="imagined time, s", ylabel=label, xscale="log")
        axis.set_xticks(seconds, [f"{s:g}" for s in seconds])
        axis.minorticks_off()
    # on the other side, where its numbers do not part the pictures above
    axis.yaxis.tick_right()
    axis.yaxis.set_label_position("right")
    axis.legend(fontsize=7)
    save_figure(canvas, path)


def experiment(asked: argparse.Namespace) -> None:
    """Train both worlds, let them imagine, compare."""
    buffer, provenance = load("expert", ["state", "action"], {"action": (2,)})
    planned = [(rows["state"], rows["action"]) for rows in map(buffer.episode, range(buffer.n_episodes))]
    played = [wander(seed, LENGTH) for seed in range(WANDERS)]
    data = recorded([*planned, *played])
    held_out = [wander(seed, LENGTH) for seed in range(10_000, 10_000 + HELD_OUT)]
    seen, targets, true = scene(held_out)
    worlds = {most: trained(most, data, asked) for most in (0.0, 0.5)}
    found = {"the last picture, held": seen[:, -1:].expand_as(true)}
    for most, steps in ((0.0, 1), (0.5, 1), (0.5, 3)):
        name = f"{'noise on what is seen' if most else 'no noise on what is seen'}, {steps} step{'s' * (steps > 1)}"
        found[name] = worlds[most].imagine(seen, targets, PerSample.from_seeds(range(HELD_OUT)), steps)
    rows = [measured(name, pictures, true) for name, pictures in found.items()]
    for row in rows:
        logger.info("%s: block off by %.1f px after 16 pictures", row["world"], row["block"]["16"].value)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "command": f"python -m policy.experiments.imagination {shlex.join(sys.argv[1:])}",
            "data": f"{provenance}; {WANDERS} wanders of {LENGTH} steps",
            "pictures": len(data.pictures),
            "parameters": sum(p.numel() for p in worlds[0.5].parameters()),
            "steps": asked.steps,
            "seconds_a_picture": STRIDE / 10,
            "episodes": HELD_OUT,
            "estimator": estimator(held_out),
            "rows": rows,
            "commit": results.commit(),
            "hardware": results.hardware(),
        }
        results.write_json(asked.out, about)
        figure(asked.out.with_suffix(".png"), true, found["noise on what is seen, 1 step"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=3000, help="training steps of each world")
    parser.add_argument("--work", type=Path, default=Path("runs/imagination"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="a JSON file for the results; a figure goes beside it")
    launch(lambda: experiment(parser.parse_args()))


if __name__ == "__main__":
    main()
