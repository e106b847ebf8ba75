"""Consistency models: one jump to the image, distilled from a teacher or learned without one."""

from __future__ import annotations

from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import consistency, ddim
from images.experiments import panels
from images.experiments.progressive import DISTANCE, apart
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling

STEPS = (1, 2, 4)
WHOLE = 32
TEACHER, RENOISED = "teacher, DDIM", "teacher, jumps"
DISTILLED, ALONE = "distilled", "trained without teacher"
COLOURS = {TEACHER: WARM, RENOISED: MUTED, DISTILLED: ACCENT, ALONE: INK}


def how(steps: int, jumps: bool = True) -> Sampling:
    """Jump to the image and noise it less, or DDIM."""
    return Sampling(consistency if jumps else partial(ddim, eta=0.0), steps, grid.uniform)


def models(lab: Lab) -> dict[str, Trained]:
    """Who is compared; the model without a teacher has the teacher's budget, the distilled one half of it on top."""
    teacher = lab.train("system=conditional")
    half = (f"train.steps={lab.steps // 2}", "train.learning_rate=0.001")
    return {
        TEACHER: teacher,
        RENOISED: teacher,
        DISTILLED: lab.train("system=consistency", *half, parent=teacher),
        ALONE: lab.train("system=consistency", "system.how=training"),
    }


def experiment(lab: Lab) -> Report:
    """FD in 1, 2 and 4 steps of consistency models and of the diffusion model that taught them."""
    labels = lab.labels()
    nets = models(lab)
    whole = lab.draw(nets[TEACHER], how(WHOLE, jumps=False))
    best = lab.measure(whole, labels)
    variants = [Variant(f"{TEACHER}, {WHOLE} steps", best, [nets[TEACHER].command])]
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    drawn: dict[str, dict[int, Tensor]] = {}
    for name, trained in nets.items():
        found[name], drawn[name] = {}, {}
        for steps in STEPS:
            if name == RENOISED and steps == 1:  # the same single step
                continue
            images = lab.draw(trained, how(steps, jumps=name != TEACHER))
            # only the first jump starts from the noise that the teacher's way starts from
            near = {DISTANCE: apart(images, whole)} if steps == 1 or name == TEACHER else {}
            found[name][steps] = lab.measure(images, labels) | near
            drawn[name][steps] = images
            plural = "s" if steps > 1 else ""
            variants.append(Variant(f"{name}, {steps} step{plural}", found[name][steps], [trained.command]))

    fd = {name: {n: by["FD"] for n, by in by_steps.items()} for name, by_steps in found.items()}
    recall = {name: {n: by["recall"] for n, by in by_steps.items()} for name, by_steps in found.items()}
    halved = [n for n in (1, 2) if fd[DISTILLED][n].value <= 0.5 * fd[TEACHER][n].value]
    alone = fd[ALONE][1].high < fd[TEACHER][1].low
    error = max(e.stderr for name in (DISTILLED, ALONE) for e in fd[name].values())

    def line(by_steps: dict[int, Estimate]) -> str:
        return "/".join(f"{e.value:.2f}" for e in by_steps.values())

    return Report(
        title="Consistency models",
        source="Song, Dhariwal, Chen & Sutskever 2023, Consistency Models (arXiv 2303.01469); Song & Dhariwal 2023, "
        "Improved Techniques for Training Consistency Models (arXiv 2310.14189)",
        idea="All points on one way from noise to image must answer with the same image: neighbours on it are made to "
        "agree. Distillation takes the neighbour from one DDIM step of a teacher, training from the data themselves. "
        "One step is then enough, and more (noise the answer less, answer again) improve it.",
        published="CIFAR-10, FID in 1 and 2 steps: distilled 3.55 and 2.93, trained without a teacher 8.70 and 5.83 "
        "(as we remember it). Here: small images with labels, the techniques of the second paper in place of LPIPS "
        "and of an averaged target, and short trainings.",
        variants=variants,
        criterion="Distilled: FD in 1 step and in 2 at most half of the teacher's in as many DDIM steps. Trained "
        "without a teacher, at the teacher's budget: FD in 1 step below the teacher's (95 % intervals apart).",
        shown=halved == [1, 2] and alone,
        verdict=f"FD in 1/2/4 steps: distilled {line(fd[DISTILLED])}, without a teacher {line(fd[ALONE])}, teacher by "
        f"DDIM {line(fd[TEACHER])}, by the jumps of a consistency model (2/4 steps) {line(fd[RENOISED])}; in {WHOLE} "
        f"steps {best['FD'].value:.2f}. Recall: {line(recall[DISTILLED])}, {line(recall[ALONE])}, "
        f"{line(recall[TEACHER])}.",
        samples=drawn[DISTILLED][1],
        figure=_figure(fd, found, drawn, whole),
        notes=f"FD of consistency models have standard errors of up to {error:.2f}. Distances are root mean squares "
        f"over pixels in [-1, 1], to what the teacher draws from the same noise in {WHOLE} steps. Samples: one step of "
        "the distilled model. Tried before, at the quick tier: with even times, equal weights and the student itself "
        "as target errors add up from level to level, and the distilled model forgets its teacher (FD 20 in 1 step); "
        "an averaged target mended that at 8 levels (0.36).",
    )


def _figure(
    fd: dict[str, dict[int, Estimate]],
    found: dict[str, dict[int, dict[str, Estimate]]],
    drawn: dict[str, dict[int, Tensor]],
    whole: Tensor,
) -> Figure:
    figure, axes = subplots(2, 2, 8.0, 5.4)
    panels.above_sheets(axes, 0.6)
    for axis, key in ((axes[0, 0], "FD"), (axes[0, 1], "recall")):
        for name, by_steps in found.items():
            panels.curve(axis, list(by_steps), [by[key] for by in by_steps.values()], name, COLOURS[name])
    panels.over_steps(axes[0, 0], STEPS, "FD to held-out images", log=True)
    panels.over_steps(axes[0, 1], STEPS, "recall of held-out images")
    axes[0, 0].legend(fontsize=8)
    names = [f"teacher, {WHOLE} steps", TEACHER, DISTILLED, ALONE]
    for axis, steps, columns in ((axes[1, 0], 1, slice(0, 10)), (axes[1, 1], 2, slice(10, 20))):
        rows = torch.stack([whole[columns]] + [drawn[name][steps][columns] for name in names[1:]])
        title = f"{steps} step{'s' if steps > 1 else ''}"
        panels.sheet(axis, rows, names if steps == 1 else [""] * 4, title)
    return figure
