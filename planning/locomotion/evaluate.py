"""Judge a planner on half cheetahs: ``python -m planning.locomotion.evaluate checkpoint=runs/<date>/planning-...``.

All episodes go side by side, so that a plan of each is drawn in one call of the network. A return says what a policy
earns in 1,000 steps; D4RL's units stand beside it for orientation, as data and simulator are not D4RL's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from jaxtyping import Float
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import plain, typed
from diffusion_core.report import write_video
from diffusion_core.run import Run, command, launch, make_folder, one_line_errors
from envs.cheetah import DT, STEPS, Cheetahs, model, score
from planning.locomotion.config import TASK, MotionConfig, MotionEvaluateConfig
from planning.locomotion.planner import MotionPlanner
from planning.locomotion.prior import restore, sampling_tables

logger = logging.getLogger("workbench.planning")
Act = Callable[[Float[np.ndarray, "n 17"]], Float[np.ndarray, "n 6"]]
FILMED = 200
"""Steps of a film."""


def played(
    act: Act, n: int, seed: int, run: Run, name: str, film: Path | None = None, steps: int = STEPS
) -> tuple[Float[np.ndarray, " n"], float]:
    """The returns of n episodes that are acted side by side, and the milliseconds that an action took for all.

    Args:
        act: what acts.
        seed: of the first episode.
        name: of the bar.
        film: where the middle of the first episode goes.
    """
    cheetahs, total, seconds, frames = Cheetahs(n), np.zeros(n), 0.0, []
    obs = cheetahs.reset(seed)
    renderer = _renderer() if film else None
    for step in run.progress(range(steps), name, steps):
        began = time.perf_counter()
        actions = act(obs)
        seconds += time.perf_counter() - began
        obs, rewards = cheetahs.step(actions)
        total += rewards
        if renderer is not None and 0 <= step - (steps - min(steps, FILMED)) // 2 < FILMED:
            frames.append(cheetahs.frame(0, renderer))
    if renderer is not None and film is not None:
        write_video(film, frames, fps=1.0 / DT)
        renderer.close()
    return total, 1e3 * seconds / steps


def evaluate_and_report(saved: Checkpoint, config: MotionConfig, out: Path, words: str, run: Run) -> dict[str, Any]:
    """Play, and write ``evaluation.json`` and ``episode.mp4`` into ``out``."""
    prior, _ = restore(saved)
    planner = MotionPlanner(prior, *sampling_tables(config, prior), config.planner, config.seed)
    make_folder(out)
    total, ms = played(
        planner.act, config.n, config.seed, run, "episodes", out / "episode.mp4" if config.film else None
    )
    found = {
        "checkpoint": "/".join(saved.path.resolve().parts[-4:]),
        "step": saved.step,
        "task": TASK,
        "metrics": {
            "return": results.mean(total.tolist()),
            "score": results.mean([score(x) for x in total], "D4RL, own data, v5"),
            "milliseconds": results.mean([ms], f"ms for {config.n} episodes at once"),
        },
        "planner": plain(config.planner),
        "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
        "seeds": [config.seed, config.seed + config.n - 1],
        "training_seed": config.train.seed,
        "data": saved.meta["data"],
        "commit": results.commit(),
        "trained_at_commit": saved.meta["commit"],
        "command": words,
        "hardware": results.hardware(),
    }
    results.write_json(out / "evaluation.json", found)
    logger.info("return %s; results: %s", results.mean(total.tolist()), out)
    return found


def _renderer() -> Any:
    import mujoco

    return mujoco.Renderer(model(), 240, 320)


def run(request: MotionEvaluateConfig) -> dict[str, Any]:
    """Evaluate what ``request`` names."""
    saved = checkpoint.find(request.checkpoint).require("locomotion", None)
    config = request.of(typed(MotionConfig, saved.config))
    home = checkpoint.run_of(saved.path) or saved.path
    out = Path(request.out) if request.out else home / f"evaluation-{time.strftime('%H%M%S')}"
    return evaluate_and_report(saved, config, out, command("planning.locomotion.evaluate"), Run(make_folder(out)))


@hydra.main(version_base=None, config_path="../conf", config_name="locomotion_evaluate")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(MotionEvaluateConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
