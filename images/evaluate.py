"""Judge a system: ``python -m images.evaluate checkpoint=pretrained/digits-ddpm``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import hydra
import torch
from jaxtyping import Float, Int64
from omegaconf import DictConfig
from torch import Tensor

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import Leaf, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample
from diffusion_core.report import Page
from diffusion_core.results import Estimate
from diffusion_core.run import Run, command, launch, make_folder, one_line_errors, read_metrics
from images import features, metrics
from images.config import EvaluateConfig, EvaluationConfig, ImagesConfig, TaskConfig
from images.data.pictures import Pictures, save_grid
from images.data.sources import load
from images.model import find, restore, sampling
from images.scenes import judge as scenes
from images.systems import Component, Sampling, System

logger = logging.getLogger("workbench.images")

FEWEST = 12
"""Images on a side below which nothing is compared: `metrics.density_coverage` needs as many."""

Images = Float[Tensor, "n channels height width"]
Judge = Callable[[Images], tuple[Tensor, Tensor | None]]
"""``judge(images) -> (features (n, d), class probabilities (n, classes) or None)``."""


def generate(
    system: System, labels: Int64[Tensor, " n"], how: Sampling, seed: int, batch: int = 250, run: Run | None = None
) -> Images:
    """One image for each label; the i-th has the noise of seed ``seed + i``, whatever the batch.

    Raises:
        WorkbenchError: samples are not finite, or the last seed is no 63-bit number.
    """
    if seed + len(labels) > 2**63:
        raise WorkbenchError(f"seed: got {seed} for {len(labels)} images; expected every one's below 2^63: lower it.")
    parts = labels.split(batch)
    chunks = run.progress(parts, "sampling", len(parts)) if run is not None else parts
    drawn: list[Tensor] = []
    for chunk in chunks:
        first = seed + sum(len(part) for part in drawn)
        drawn.append(system.sample(chunk, PerSample.from_seeds(range(first, first + len(chunk))), how))
    images = torch.cat(drawn)
    bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
    if bad:
        raise WorkbenchError(
            f"sampling: {bad} of {len(images)} images are not finite, with guidance_scale={how.guidance_scale:g} in "
            f"{how.steps} steps; expected finite ones: lower guidance_scale, or take more steps."
        )
    return images


def in_turn(n: int, n_classes: int, device: torch.device | str = "cpu") -> Int64[Tensor, " n"]:
    """``n`` labels, every class as often as the others; without classes the null label."""
    return torch.arange(n, device=device) % max(n_classes, 1)


def asked_for(system: System, n: int, device: torch.device) -> Int64[Tensor, " n"]:
    """The labels of ``n`` images: every class in turn, or none of a system that is not told them."""
    return in_turn(n, system.n_classes, device) if system.conditional else torch.full((n,), system.n_classes).to(device)


@lru_cache(maxsize=2)
def _extractor(task: str) -> features.Extractor:
    return features.load(task)


def judge_of(task: TaskConfig) -> tuple[str, Judge]:
    """What images of a task are compared by, and its name.

    The task's feature network where one ships for images of this size; else averages of pixels, said so in the name.

    Raises:
        WorkbenchError: the feature network's file is not the one that shipped.
    """
    extractor = _extractor(task.name) if task.name in features.SHA256 else None
    if extractor is None or extractor.shape != (task.channels, task.size, task.size):
        size = f"{task.channels} x {task.size} x {task.size}"
        logger.info("no feature network for %s of %s ships: images are compared by pixels, 8x8", task.name, size)
        return "pixels-8x8", _pixels

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        return extractor.to(images.device)(images)

    return extractor.id, judge


def _pixels(images: Tensor) -> tuple[Tensor, None]:
    return torch.nn.functional.adaptive_avg_pool2d(images.clamp(-1.0, 1.0), min(8, images.shape[-1])).flatten(1), None


# the held-out images are compared with again and again
_SEEN: WeakKeyDictionary[Pictures, dict[str, Tensor]] = WeakKeyDictionary()


def _judged(name: str, judge: Judge, pictures: Pictures) -> Tensor:
    """Features of pictures by the judge of this name."""
    seen = _SEEN.setdefault(pictures, {})
    if name not in seen:
        # in parts: as numbers all pictures of a large folder take more memory than there is
        rows = torch.arange(len(pictures)).split(1000)
        seen[name] = torch.cat([judge(pictures.batch(part)["image"])[0] for part in rows])
    return seen[name]


def measure(
    images: Images, labels: Int64[Tensor, " n"], task: TaskConfig, test: Pictures, train: Pictures | None = None
) -> dict[str, Estimate]:
    """Compare images with the held-out ones.

    Args:
        labels: what they were asked for; n_classes for none.
        train: the training images, to find copies of them.
    """
    name, judge = judge_of(task)
    found, probabilities = judge(images)

    asked = labels if bool((labels < test.n_classes).all()) else None
    measured = metrics.measure(
        found,
        _judged(name, judge, test),
        name,
        probabilities=probabilities,
        asked=None if probabilities is None else asked,
        training=None if train is None else _judged(name, judge, train),
    )
    return measured | (_scenes_read(images, asked) if task.source == "scenes" and task.tier == 1 else {})


def _scenes_read(images: Images, asked: Int64[Tensor, " n"] | None) -> dict[str, Estimate]:
    """What the judge of the captioned world reads, without any network: is it a scene at all, and the one asked for."""
    read = scenes.classes(scenes.read(images.clamp(-1.0, 1.0) * 0.5 + 0.5, tier=1))
    found = {"in grammar": results.rate(int((read >= 0).sum()), len(images))}
    if asked is not None:
        found["scene accuracy"] = results.rate(int((read == asked).sum()), len(images))
    return found


def evaluate(
    component: Component, saved: Checkpoint, config: ImagesConfig, run: Run
) -> tuple[dict[str, Any], Images | None]:
    """Judge what was restored from one checkpoint; returns its results and its images.

    Args:
        config: the checkpoint's configuration, with the sampler to use.
    """
    evaluation = config.evaluation
    if torch.cuda.is_available():
        component = component.cuda()
    if not isinstance(component, System):
        return {"metrics": {}, "step": saved.step, "note": "a part of other systems: it draws no images"}, None
    device = next(component.parameters()).device
    train, test = (load(config.task, split).to(device) for split in ("train", "test"))
    labels = asked_for(component, evaluation.n, device)
    start = time.perf_counter()
    images = generate(component, labels, sampling(config), evaluation.seed, evaluation.batch, run)
    seconds = time.perf_counter() - start
    found: dict[str, Estimate] = {}
    if min(len(test), len(images)) < FEWEST:
        logger.warning("%d held-out and %d drawn images are too few to compare", len(test), len(images))
    else:
        # what is nearer than 99 % of the held-out images are cannot be said of fewer than 100
        found = measure(images, labels, config.task, test, train if len(test) >= 100 else None)
    found["images per second"] = Estimate(len(images) / seconds, 0.0, float("nan"), float("nan"), 1, "1/s")
    return {
        "checkpoint": str(saved.path),
        "step": saved.step,
        "metrics": found,
        "task": config.task.name,
        "system": saved.meta["system"],
        "data": saved.meta["data"],
        "sampler": {"solver": config.sampler, "grid": config.grid, "steps": config.steps},
        "guidance_scale": config.guidance_scale,
        "seeds": [evaluation.seed, evaluation.seed + evaluation.n - 1],
        "commit": results.commit(),
        "trained_at_commit": saved.meta["commit"],
        "seconds": round(seconds, 1),
        "hardware": results.hardware(),
    }, images


def evaluate_and_report(
    component: Component, saved: Checkpoint, config: ImagesConfig, out: Path, command: str, run: Run
) -> dict[str, Any]:
    """`evaluate` and write ``evaluation.json``, ``samples.png`` and ``report.html`` into ``out``."""
    found, images = evaluate(component, saved, config, run)
    found["command"] = command
    make_folder(out)
    results.write_json(out / "evaluation.json", found)
    if images is None:
        logger.info("%s: %s", saved.path, found["note"])
        return found
    save_grid(images[:100].cpu(), out / "samples.png", 10)
    page = Page(f"{config.task.name}: {found['system']}", f"{command}; step {saved.step}; {found['data']}")
    page.numbers(found["metrics"])
    page.figure(out / "samples.png", "The first 100 samples; of a system that is told classes, every one in turn.")
    losses = [r for r in read_metrics(checkpoint.run_of(saved.path) or out) if "loss" in r]
    if losses:
        page.figure(_loss_figure(out / "loss.png", losses), "Training loss.")
    page.heading("How")
    page.code(command)
    page.write(out / "report.html")
    logger.info("evaluated %d images: %s", len(images), ", ".join(f"{k} {v}" for k, v in found["metrics"].items()))
    logger.info("report: %s", out / "report.html")
    return found


def _loss_figure(path: Path, losses: list[dict[str, Any]]) -> Path:
    from diffusion_core.report import save_figure, subplots

    figure, axes = subplots(1, 1, 6.0, 2.6)
    axes[0, 0].plot([r["step"] for r in losses], [r["loss"] for r in losses])
    axes[0, 0].set(xlabel="optimizer step", ylabel="loss", yscale="log")
    return save_figure(figure, path)


def with_sampler(
    config: ImagesConfig, sampler: Leaf | None, grid: Leaf | None, steps: int, guidance_scale: float | None
) -> ImagesConfig:
    """``config`` with another sampler, grid, number of steps or guidance, where they are given."""
    return replace(
        config,
        sampler=sampler or config.sampler,
        grid=grid or config.grid,
        steps=steps or config.steps,
        guidance_scale=config.guidance_scale if guidance_scale is None else guidance_scale,
    )


def run(request: EvaluateConfig) -> dict[str, Any]:
    """Judge what ``request`` names."""
    saved = find(request.checkpoint)
    component, config = restore(saved, request.expect_system)
    own, scale = config.evaluation, config.guidance_scale
    config = with_sampler(config, request.sampler, request.grid, request.steps, request.guidance_scale)
    config.evaluation = EvaluationConfig(
        request.n or own.n, request.batch or own.batch, own.seed if request.seed is None else request.seed
    )
    others = {name: (getattr(config.evaluation, name), getattr(own, name)) for name in ("n", "seed")}
    others["guidance"] = (config.guidance_scale, scale)
    out = make_folder(Path(request.out) if request.out else checkpoint.evaluation_folder(saved, request, others))
    return evaluate_and_report(component, saved, config, out, command("images.evaluate"), Run(out))


@hydra.main(version_base=None, config_path="conf", config_name="evaluate")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(EvaluateConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
