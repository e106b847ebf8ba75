"""Progressive distillation: half the steps, again and again, down to one."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from diffusion_core.report import ACCENT, MUTED, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling

FULL = 32
STEPS = (16, 8, 4, 2, 1)


def experiment(lab: Lab) -> Report:
    """FD by steps of the students, and of their teacher's DDIM."""
    teacher, labels = lab.train("system=conditional"), lab.labels()
    budget = f"train.steps={max(lab.steps // 5, 1)}"
    found: dict[str, dict[int, dict[str, Estimate]]] = {"teacher": {}, "student": {}}
    variants, drawn = [], dict[int, Tensor]()
    for steps in (FULL, *STEPS):
        found["teacher"][steps] = lab.measure(
            lab.draw(teacher, Sampling(partial(ddim, eta=0.0), steps), labels), labels
        )
        variants.append(Variant(f"teacher, {steps} DDIM steps", found["teacher"][steps], [teacher.command]))
    parent: Trained = teacher
    for steps in STEPS:
        parent = lab.train(
            "system=progressive", f"system.steps={steps}", budget, "train.learning_rate=0.001", parent=parent
        )
        drawn[steps] = lab.draw(parent, labels=labels)
        found["student"][steps] = lab.measure(drawn[steps], labels)
        variants.append(Variant(f"student, {steps} steps", found["student"][steps], [parent.command]))
    full, coarse, ours = (found[k][n]["FD"] for k, n in (("teacher", FULL), ("teacher", 4), ("student", 4)))
    figure, axes = subplots(1, 1, 6.0, 3.4)
    for name, colour in (("teacher", MUTED), ("student", ACCENT)):
        at = sorted(found[name])
        panels.curve(axes[0, 0], at, [found[name][n]["FD"] for n in at], name, colour)
    panels.over_steps(axes[0, 0], sorted((FULL, *STEPS)), f"FD [{lab.judge}]", log=True)
    axes[0, 0].legend()
    one = {k: found[k][1]["FD"].value for k in found}
    return Report(
        title="Progressive distillation",
        source="Salimans & Ho 2022, Progressive Distillation for Fast Sampling of Diffusion Models (arXiv 2202.00512)",
        idea="A student learns to do in one DDIM step what its teacher does in two; then it is the teacher.",
        published="CIFAR-10: FID 2.57, 3.00, 4.51 and 9.12 in 8, 4, 2 and 1 steps, as we remember it, from a teacher "
        "of 8,192. "
        f"Here from {FULL} steps, a fifth of the teacher's training for each halving.",
        variants=variants,
        criterion=f"In 4 steps the student's FD is at most half of the teacher's in 4, and at most 0.3 (two standard "
        f"errors of "
        f"such a distance) above the teacher's in {FULL}.",
        shown=ours.value <= 0.5 * coarse.value and ours.value <= full.value + 0.3,
        verdict=f"FD in 4 steps: student {ours.value:.2f}, teacher {coarse.value:.2f}; teacher in {FULL}: "
        f"{full.value:.2f}. In 1 "
        f"step: student {one['student']:.2f}, teacher {one['teacher']:.2f}.",
        samples=drawn[4],
        figure=figure,
    )
