"""NCSN: the score at many noise levels, and Langevin dynamics from the loudest to the faintest."""

from __future__ import annotations

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import experts, grid, sample
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, MUTED, WARM, subplots
from diffusion_core.solvers import Table, annealed_langevin, langevin
from images.experiments import panels
from images.lab import Lab, Report, Variant
from images.systems.diffusion import Diffusion

LEVELS = 10
STEP = 0.1
PER_LEVEL = (1, 2, 5, 10)
JUDGED = 5
"""Steps per level with which annealing is judged against one level."""
SINGLE = (0.0, 0.25, 0.5, 0.75)
"""Times of the single levels; 0 is the faintest that the network knows."""
SEED = 100_000


def annealed(model: Diffusion, per_level: int) -> Table:
    """``per_level`` Langevin steps at each of `LEVELS` + 1 noise levels, a geometric sequence."""
    # the schedule is geometric in t: even times are its levels
    return annealed_langevin(model.denoiser.schedule, grid.uniform(LEVELS), per_level, STEP)


def run(model: Diffusion, table: Table, n: int, batch: int = 250) -> Float[Tensor, "n c h w"]:
    """The estimates of the images at the end of ``table``; every table starts from the noise of the loudest level.

    The last estimate takes the last level's noise away; it is given to all tables alike.

    Source: Song & Ermon 2019, algorithm 1 (arXiv 1907.05600); the last estimate: Jolicoeur-Martineau et al. 2020
    (arXiv 2009.05475).
    """
    denoiser, made = model.denoiser, []
    ends = denoiser.bind(table.reached[-1:])
    for first in range(0, n, batch):
        count = min(batch, n - first)
        noise = PerSample.from_seeds(range(SEED + first, SEED + first + count))
        x = experts.start(denoiser, noise.normal((count, *model.shape), torch.float32, torch.device("cpu")))
        with torch.no_grad():
            made.append(ends(sample.sample(denoiser, table, x, None, noise), 0))
    return torch.cat(made)


def experiment(lab: Lab) -> Report:
    """Annealing with more and more steps per level, and as many steps at one level."""
    trained = lab.train("system=ncsn")
    model = trained.component
    assert isinstance(model, Diffusion)
    schedule, n = model.denoiser.schedule, lab.tier.n
    total = (LEVELS + 1) * JUDGED
    images, found, variants = {}, {}, []
    tables = {f"one level, sigma {_sigma(model, t):.2f}": langevin(schedule, t, total, STEP) for t in SINGLE}
    tables |= {f"annealed, {k} per level": annealed(model, k) for k in PER_LEVEL}
    for name, table in tables.items():
        images[name] = run(model, table, n)
        found[name] = lab.measure(images[name])
        calls = int(table.evaluates.sum())
        variants.append(Variant(f"{name} ({calls} steps)", found[name], [trained.command]))

    ours = found[f"annealed, {JUDGED} per level"]
    single = {name: m["FD"] for name, m in found.items() if name.startswith("one level")}
    best = min(single, key=lambda name: single[name].value)
    others = ", ".join(f"{e.value:.3g} at {name.removeprefix('one level, ')}" for name, e in single.items())
    return Report(
        title="NCSN",
        source="Song & Ermon 2019, Generative Modeling by Estimating Gradients of the Data Distribution (arXiv "
        "1907.05600)",
        idea="One network learns the score, the gradient of the log-density, of data with a geometric sequence of "
        "noise levels. Langevin dynamics follow it from loud noise, where all modes hang together and every place has "
        "a score, to faint noise, where images are sharp.",
        published="CIFAR-10: FID 25.32, inception score 8.87 with 10 levels of 100 steps (as we remember it); "
        "Langevin dynamics with one faint noise level do not find the data from afar and weigh its modes wrongly. "
        "Here the network has EDM's input and output scaling and its loss weight, which came later, noise levels up "
        "to the distance of two images, fewer steps per level, and a last denoising.",
        variants=variants,
        criterion=f"FD of annealing below half of that of the best of {len(SINGLE)} single levels, with the same "
        f"network, start, {total} steps, step size and last denoising.",
        shown=ours["FD"].value < 0.5 * single[best].value,
        verdict=f"FD annealed {ours['FD'].value:.2f}; at one level {others}: "
        f"{single[best].value / ours['FD'].value:.1f} times as far at best. Annealed with "
        f"{', '.join(map(str, PER_LEVEL))} steps per level: "
        + ", ".join(f"{found[f'annealed, {k} per level']['FD'].value:.2f}" for k in PER_LEVEL)
        + ".",
        samples=images[f"annealed, {PER_LEVEL[-1]} per level"],
        figure=_figure(found, images),
        notes="Single levels were chosen on the same images that they are judged by, which favours them.",
    )


def _sigma(model: Diffusion, t: float) -> float:
    return float(model.denoiser.schedule.sigma(torch.tensor(t, dtype=torch.float64)))


def _figure(found: dict, images: dict[str, Tensor]) -> Figure:
    figure, axes = subplots(1, 2, 8.4, 3.4)
    values = [m["FD"] for m in found.values()]
    colours = [ACCENT if name.startswith("annealed") else MUTED for name in found]
    colours[list(found).index(f"annealed, {JUDGED} per level")] = WARM
    names = [name.removeprefix("one level, ") for name in found]
    axes[0, 0].barh(names, [e.value for e in values], xerr=[e.stderr for e in values], color=colours)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel="FD to held-out images", xscale="log")
    picked = [*list(found)[: len(SINGLE)], *(f"annealed, {k} per level" for k in (JUDGED, PER_LEVEL[-1]))]
    rows = torch.stack([images[name][:12] for name in picked])
    short = [name.removeprefix("one level, ").removesuffix(" per level") for name in picked]
    panels.sheet(axes[0, 1], rows, short, "samples")
    return figure
