"""Rectified flow: straight lines from image to noise, and how straight the way back then is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid, results, sample
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import Solver, ddim, euler
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

STEPS = (2, 4, 8, 16)
FEW = STEPS[:3]
FINE = 64
OWN = "cosine, v, in DDIM steps"
COLOURS = {"cosine, v": WARM, OWN: MUTED, "straight, uniform times": INK, "straight, logit-normal times": ACCENT}


def how(steps: int, solver: Solver = euler) -> Sampling:
    """Euler's method in t, which for straight interpolation is DDIM."""
    return Sampling(solver, steps, grid.uniform)


def paths(model: Diffusion, labels: Tensor, seeds: range) -> Float[Tensor, "times n c h w"]:
    """The way of each sample from noise to image, in `FINE` Euler steps."""
    noise = PerSample.from_seeds(seeds).normal((len(labels), *model.shape), torch.float32, labels.device)
    table = how(FINE).table(model.denoiser.schedule)
    states = sample.trajectory(model.denoiser, table, noise, model.condition(labels))
    return torch.stack([noise, *(state.x for state in states)])


def bend(way: Float[Tensor, "times n c h w"]) -> Float[Tensor, " n"]:
    """How far a path is from straight at constant speed, in units of its chord; 0 for a straight line.

        S = mean_i |n (x_{i+1} - x_i) - (x_n - x_0)|^2 / |x_n - x_0|^2

    Source: the straightness S of Liu et al. 2023 (arXiv 2209.03003), here divided by the squared chord.
    """
    moves = way.diff(dim=0).flatten(2) * (len(way) - 1)
    chord = (way[-1] - way[0]).flatten(1)
    return (moves - chord).square().sum(2).mean(0) / chord.square().sum(1)


def experiment(lab: Lab) -> Report:
    """FD by Euler steps, and the bend of the paths, of straight and of cosine interpolation."""
    nets: dict[str, Trained] = {
        "cosine, v": (cosine := lab.train("system=conditional")),
        OWN: cosine,
        "straight, uniform times": lab.train("system=rectified_flow", "times=uniform"),
        "straight, logit-normal times": lab.train("system=rectified_flow"),
    }
    labels = lab.labels(min(lab.tier.n, 2000))
    fd: dict[str, dict[int, Estimate]] = {}
    bends: dict[str, Estimate] = {}
    ways: dict[str, Tensor] = {}
    drawn: dict[str, Tensor] = {}
    variants = []
    for name, trained in nets.items():
        model = trained.component
        assert isinstance(model, Diffusion)
        if name != OWN:
            few = min(100, lab.tier.n)
            ways[name] = paths(model, lab.labels(few), range(100_000, 100_000 + few))
            bends[name] = results.mean(bend(ways[name]).tolist())
        fd[name] = {}
        for steps in STEPS:
            images = lab.draw(trained, how(steps, ddim if name == OWN else euler), labels)
            metrics = lab.measure(images, labels)
            fd[name][steps] = metrics["FD"]
            if steps == 4:
                drawn[name] = images
            extra = {"bend of paths": bends[name]} if steps == STEPS[0] and name in bends else {}
            variants.append(Variant(f"{name}, {steps} steps", metrics | extra, [trained.command]))

    curved, _, uniform, middle = COLOURS
    better = {name: [n for n in FEW if fd[name][n].value < fd[curved][n].value] for name in (uniform, middle)}
    straighter = bends[uniform].high < bends[curved].low
    shown = better[uniform] == list(FEW) and straighter
    logit = [n for n in STEPS if fd[middle][n].value < fd[uniform][n].value]

    error = max(e.stderr for by_steps in fd.values() for e in by_steps.values())

    def line(name: str) -> str:
        return "/".join(f"{e.value:.2f}" for e in fd[name].values())

    return Report(
        title="Rectified flow",
        source="Liu, Gong & Liu 2023, Flow Straight and Fast (arXiv 2209.03003); Esser et al. 2024, Scaling Rectified "
        "Flow Transformers (Stable Diffusion 3, arXiv 2403.03206)",
        idea="Interpolate data and noise along straight lines, x_t = (1 - t) x0 + t eps, and learn the velocity "
        "eps - x0: the averaged paths are straighter than a diffusion's, so that few Euler steps are enough. Stable "
        "Diffusion 3 trains most often in the middle, at logit-normal times.",
        published="Liu et al.: paths become straighter with every rectification, and from the second on one Euler step "
        "is enough for good images; Esser et al.: of the schedules and times they compared, rectified flow with "
        "logit-normal times ranked best (both as we remember it, in words). Here: one rectification, no reflow; small "
        "images; the same network and budget for all three.",
        variants=variants,
        criterion="With uniform times, the FD of straight interpolation in 2, 4 and 8 Euler steps below that of the "
        "cosine v-model at the same budget, and the bend of its paths smaller (95 % intervals apart). Logit-normal "
        "times: reported, not required.",
        shown=shown,
        verdict=f"FD in {'/'.join(map(str, STEPS))} Euler steps: cosine v {line(curved)} (in DDIM steps {line(OWN)}), "
        f"straight with uniform times {line(uniform)}, with logit-normal times {line(middle)} (better than uniform at "
        f"{', '.join(map(str, logit)) or 'none'}). Bend of the paths: {bends[curved].value:.2f}, "
        f"{bends[uniform].value:.2f}, {bends[middle].value:.2f}.",
        samples=drawn[middle],
        figure=_figure(fd, bends, ways, drawn),
        notes=f"The FD have standard errors of up to {error:.2f}, partly shared, since all are compared with the same "
        "images from the same noise. Samples: 4 Euler steps, straight interpolation with logit-normal times.",
    )


def _figure(fd: dict, bends: dict[str, Estimate], ways: dict[str, Tensor], drawn: dict[str, Tensor]) -> Figure:
    figure, axes = subplots(2, 2, 8.0, 4.8)
    panels.above_sheets(axes, 0.4)
    for name, by_steps in fd.items():
        panels.curve(axes[0, 0], list(by_steps), list(by_steps.values()), name, COLOURS[name])
    panels.over_steps(axes[0, 0], STEPS, "FD to held-out images", log=True)
    axes[0, 0].legend(fontsize=8)
    for name, way in ways.items():
        # the plane of a path's chord and what it leaves it by most: one path, the first
        along, aside = plane(way[:, 0])
        axes[0, 1].plot(along, aside, color=COLOURS[name], label=f"{name}: bend {bends[name].value:.2f}")
    axes[0, 1].set_ylim(top=1.45 * axes[0, 1].get_ylim()[1])
    axes[0, 1].set(xlabel="along the chord, noise to image", ylabel="aside of it")
    axes[0, 1].legend(fontsize=8, loc="upper left")
    for axis, name in ((axes[1, 0], "cosine, v"), (axes[1, 1], "straight, logit-normal times")):
        panels.sheet(axis, drawn[name][:20].unflatten(0, (2, 10)), [""] * 2, f"{name}: 4 Euler steps")
    return figure


def plane(way: Float[Tensor, "times c h w"]) -> tuple[list[float], list[float]]:
    """Where a path is along its chord (0 to 1), and how far from it, in units of the chord's length."""
    x = (way - way[0]).flatten(1).double()
    chord = x[-1]
    along = x @ chord / chord.square().sum()
    aside = (x - along[:, None] * chord).norm(dim=1) / chord.norm()
    return along.tolist(), aside.tolist()
