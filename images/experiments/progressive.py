"""Progressive distillation: one step of the student for two of its teacher's, again and again."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid, results
from diffusion_core.report import ACCENT, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling

JUDGED = (4, 2, 1)
DISTANCE = "distance to the teacher's images"
TEACHER, STUDENTS = "teacher, DDIM", "students"


def halvings(lab: Lab) -> list[int]:
    """Steps of the teacher and of its students: from 32, in the larger tiers from 64, down to 1."""
    first = 5 if lab.tier.scale == 1 else 6
    return [2**k for k in range(first, -1, -1)]


def how(steps: int) -> Sampling:
    """DDIM on the uniform grid that distillation halves."""
    return Sampling(partial(ddim, eta=0.0), steps, grid.uniform)


def distilled(lab: Lab, teacher: Trained) -> dict[int, Trained]:
    """Students by their steps; all together take no more optimizer steps than the teacher took."""
    counts = halvings(lab)
    each = lab.steps // 6
    budget = (f"train.steps={each}", f"train.warmup_steps={each // 10}", "train.learning_rate=0.001")
    found = {counts[0]: teacher}
    for before, steps in pairwise(counts):
        found[steps] = lab.train("system=progressive", f"system.steps={steps}", *budget, parent=found[before])
    del found[counts[0]]
    return found


def apart(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Estimate:
    """Root mean square difference of images from the same noise, pixels in [-1, 1], averaged over images."""
    return results.mean((a - b).square().flatten(1).mean(1).sqrt().tolist())


def experiment(lab: Lab) -> Report:
    """FD and the distance to the teacher's own images, by steps, of the students and of the teacher itself."""
    teacher = lab.train("system=conditional")
    students = distilled(lab, teacher)
    counts, labels = halvings(lab), lab.labels()
    whole = lab.draw(teacher, how(counts[0]))
    drawn: dict[str, dict[int, Tensor]] = {TEACHER: {}, STUDENTS: {}}
    found: dict[str, dict[int, dict[str, Estimate]]] = {TEACHER: {}, STUDENTS: {}}
    variants = []
    for steps in counts:
        for name, trained in ((TEACHER, teacher), (STUDENTS, students.get(steps))):
            if trained is None:
                continue
            images = whole if steps == counts[0] else lab.draw(trained, how(steps))
            metrics = lab.measure(images, labels) | {DISTANCE: apart(images, whole)}
            drawn[name][steps], found[name][steps] = images, metrics
            title = f"{name}, {steps} steps" if name == TEACHER else f"student of {steps} steps"
            variants.append(Variant(title, metrics, [trained.command]))
    variants.sort(key=lambda variant: variant.name.startswith("student"))

    fd = {name: {n: by["FD"] for n, by in by_steps.items()} for name, by_steps in found.items()}
    distance = {
        name: {n: by[DISTANCE] for n, by in by_steps.items() if n != counts[0]} for name, by_steps in found.items()
    }
    full = fd[TEACHER][counts[0]]
    error = max(e.stderr for by_steps in fd.values() for n, e in by_steps.items() if n > 1)
    kept = fd[STUDENTS][4].value <= max(1.3 * full.value, full.value + full.stderr)
    halved = [n for n in (2, 1) if fd[STUDENTS][n].value <= 0.5 * fd[TEACHER][n].value]
    nearer = [n for n in JUDGED if distance[STUDENTS][n].high < distance[TEACHER][n].low]
    shown = kept and halved == [2, 1] and nearer == list(JUDGED)

    def line(estimates: dict[int, Estimate]) -> str:
        return "/".join(f"{estimates[n].value:.2f}" for n in JUDGED)

    recall = {name: {n: by["recall"] for n, by in by_steps.items()} for name, by_steps in found.items()}
    return Report(
        title="Progressive distillation",
        source="Salimans & Ho 2022, Progressive Distillation for Fast Sampling of Diffusion Models (arXiv 2202.00512)",
        idea="A student that begins as a copy of its teacher learns to go in one DDIM step where the teacher goes in "
        "two. Then it is the teacher of the next student, and the number of steps is halved again.",
        published="CIFAR-10: FID 2.57 in 8, 3.00 in 4, 4.51 in 2 and 9.12 in 1 step, from a teacher of 8,192 steps (as "
        f"we remember it). Here: small images, a teacher of {counts[0]} steps, and all students together trained for "
        "no more steps than the teacher.",
        variants=variants,
        criterion=f"In 4 steps the student's FD at most 1.3 times the teacher's in {counts[0]}, or within one standard "
        "error of it; in 2 steps and in 1 at most half of the teacher's in as many; and in 4, 2 and 1 the student's "
        f"images nearer than the teacher's (95 % intervals apart) to those of the teacher's {counts[0]} steps from the "
        "same noise. Not half of the teacher's FD in 4 steps: on small images DDIM loses little there.",
        shown=shown,
        verdict=f"FD in 4/2/1 steps: students {line(fd[STUDENTS])}, teacher {line(fd[TEACHER])} (in {counts[0]} "
        f"steps {full.value:.2f}); distance to the teacher's images {line(distance[STUDENTS])} against "
        f"{line(distance[TEACHER])}; recall {line(recall[STUDENTS])} against {line(recall[TEACHER])}.",
        samples=drawn[STUDENTS][4],
        figure=_figure(counts, fd, distance, drawn),
        notes=f"FD have standard errors of up to {error:.2f} (the teacher's single step aside), mostly shared, since "
        "all are compared with the same images from the same noise. Distances are root mean squares over pixels in "
        "[-1, 1]. Samples: the student of 4 steps.",
    )


def _figure(
    counts: list[int],
    fd: dict[str, dict[int, Estimate]],
    distance: dict[str, dict[int, Estimate]],
    drawn: dict[str, dict[int, Tensor]],
) -> Figure:
    figure, axes = subplots(2, 2, 8.0, 5.2)
    panels.above_sheets(axes, 0.75)
    for axis, measured in ((axes[0, 0], fd), (axes[0, 1], distance)):
        for name, colour in ((TEACHER, WARM), (STUDENTS, ACCENT)):
            panels.curve(axis, list(measured[name]), list(measured[name].values()), name, colour)
        axis.legend(fontsize=8)
    panels.over_steps(axes[0, 0], counts, "FD to held-out images", log=True)
    panels.over_steps(axes[0, 1], counts[1:], DISTANCE)
    rows = torch.stack([drawn[TEACHER][counts[0]][:20]] + [drawn[TEACHER][n][:20] for n in JUDGED])
    ours = torch.stack([drawn[TEACHER][counts[0]][:20]] + [drawn[STUDENTS][n][:20] for n in JUDGED])
    names = [f"{n} steps" if n > 1 else "1 step" for n in (counts[0], *JUDGED)]
    panels.sheet(axes[1, 0], rows[:, :10], names, TEACHER)
    panels.sheet(axes[1, 1], ours[:, :10], ["teacher", *names[1:]], STUDENTS)
    return figure
