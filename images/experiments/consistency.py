"""Consistency models: one and two steps, distilled from a teacher and trained without one."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from diffusion_core.report import ACCENT, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.lab import Lab, Report, Variant
from images.systems import Sampling

STEPS = (1, 2, 4)


def experiment(lab: Lab) -> Report:
    """FD in one, two and four steps of three ways."""
    teacher, labels = lab.train("system=conditional"), lab.labels()
    budget = f"train.steps={max(lab.steps // 2, 1)}"
    ways = {
        "teacher, DDIM": teacher,
        "distillation": lab.train("system=consistency", budget, "train.learning_rate=0.001", parent=teacher),
        "training": lab.train(
            "system=consistency", "system.how=training", budget, "train.learning_rate=0.001", parent=teacher
        ),
    }
    colours = {"teacher, DDIM": MUTED, "distillation": ACCENT, "training": WARM}
    found: dict[str, dict[int, dict[str, Estimate]]] = {name: {} for name in ways}
    variants, drawn = [], dict[tuple[str, int], Tensor]()
    for name, trained in ways.items():
        for steps in STEPS:
            drawn[name, steps] = lab.draw(trained, Sampling(partial(ddim, eta=0.0), steps), labels)
            found[name][steps] = lab.measure(drawn[name, steps], labels)
            variants.append(Variant(f"{name}, {steps} steps", found[name][steps], [trained.command]))
    fd = {name: {n: m["FD"].value for n, m in by.items()} for name, by in found.items()}
    figure, axes = subplots(1, 1, 6.0, 3.4)
    for name, by in found.items():
        panels.curve(axes[0, 0], STEPS, [by[n]["FD"] for n in STEPS], name, colours[name])
    panels.over_steps(axes[0, 0], STEPS, f"FD [{lab.judge}]", log=True)
    axes[0, 0].legend()
    gains = {name: fd["teacher, DDIM"][1] / fd[name][1] for name in ("distillation", "training")}
    return Report(
        title="Consistency models",
        source="Song et al. 2023, Consistency Models (arXiv 2303.01469)",
        idea="Learn to jump from any point of the probability flow to its beginning: neighbours on it must jump to "
        "the same "
        "image. Several steps: jump, noise less, jump again.",
        published="CIFAR-10: FID 3.55 and 2.93 in one and two steps distilled, 8.70 and 5.83 trained alone, as we "
        "remember it. Here "
        "both begin with the teacher's weights, which the paper's training alone does not.",
        variants=variants,
        criterion="In one step both ways have at most a third of the FD of one DDIM step; distilled, two steps are "
        "better than "
        "one.",
        shown=min(gains.values()) >= 3.0 and fd["distillation"][2] < fd["distillation"][1],
        verdict="FD in 1 / 2 / 4 steps: "
        + "; ".join(f"{name} {' / '.join(f'{by[n]:.2f}' for n in STEPS)}" for name, by in fd.items())
        + ".",
        samples=drawn["distillation", 2],
        figure=figure,
    )
