"""NCSN: the score at many noise levels, and Langevin dynamics from the loudest to the faintest."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from diffusion_core import grid
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, MUTED, subplots
from diffusion_core.sample import sample
from diffusion_core.solvers import annealed_langevin, langevin
from images.lab import Lab, Report, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

LEVELS, PER_LEVEL, STEP = 10, 10, 0.1


def annealed(model: Diffusion, labels: Tensor, lab: Lab, levels: int = LEVELS, per_level: int = PER_LEVEL) -> Tensor:
    """Annealed Langevin dynamics on a geometric sequence of noise levels."""
    how = Sampling(
        partial(annealed_langevin, n=per_level, step=STEP), levels, partial(grid.log_snr_uniform, start=1.0, end=0.0)
    )
    return lab.draw(model, how, labels)


def at_one_level(model: Diffusion, labels: Tensor, t: float, n: int) -> Tensor:
    """As many Langevin steps at one noise level, from noise as loud as annealing begins with; then the estimate."""
    denoiser, parts = model.denoiser, []
    for first in range(0, len(labels), 250):
        count = min(250, len(labels) - first)
        noise = PerSample.from_seeds(range(first, first + count))
        x = noise.normal((count, *model.shape), torch.float32, labels.device)
        x = sample(denoiser, langevin(denoiser.schedule, t, n, STEP), x, None, noise)
        parts.append(denoiser.bind(torch.tensor([t], dtype=torch.float64))(x, 0).detach())
    return torch.cat(parts)


def experiment(lab: Lab) -> Report:
    """Annealing against one level, with the same number of steps."""
    trained, labels = lab.train("system=ncsn"), lab.labels()
    model = trained.component
    assert isinstance(model, Diffusion)
    total = LEVELS * PER_LEVEL
    images = annealed(model, labels, lab)
    found = {"annealed": lab.measure(images)}
    ts = (0.0, 0.25, 0.5, 0.75)
    with torch.no_grad():
        for t in ts:
            sigma = float(model.denoiser.schedule.sigma(torch.tensor(t, dtype=torch.float64)))
            found[f"one level, sigma = {sigma:.2f}"] = lab.measure(at_one_level(model, labels, t, total))
    best = min((m["FD"].value, name) for name, m in found.items() if name != "annealed")
    figure, axes = subplots(1, 1, 6.0, 2.6)
    names = list(found)
    axes[0, 0].barh(
        names,
        [m["FD"].value for m in found.values()],
        xerr=[m["FD"].stderr for m in found.values()],
        color=[ACCENT] + [MUTED] * len(ts),
    )
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel=f"FD [{lab.judge}]", xscale="log")
    ours = found["annealed"]["FD"]
    return Report(
        title="NCSN",
        source="Song & Ermon 2019, Generative Modeling by Estimating Gradients of the Data Distribution (arXiv "
        "1907.05600)",
        idea="One network learns the score at a geometric sequence of noise levels; Langevin dynamics follow it from "
        "loud, "
        "where modes are connected, to faint, where images are sharp.",
        published="CIFAR-10: FID 25.32, IS 8.87, as we remember it, with 10 levels of 100 steps; Langevin dynamics "
        "at one level fail. "
        "Here 10 levels of 10 steps, EDM's input scaling (which came later) and a last denoising step.",
        variants=[Variant(name, m, [trained.command]) for name, m in found.items()],
        criterion=f"FD of annealing below half of the best single level's with the same {total} steps.",
        shown=ours.value < 0.5 * best[0],
        verdict=f"FD annealed {ours.value:.2f}; best of {len(ts)} single levels {best[0]:.2f} ({best[1]}).",
        samples=images,
        figure=figure,
    )
