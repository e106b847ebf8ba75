"""The diffusion of 2015: few Gaussian steps, the bound, the network gives each step's mean."""

from __future__ import annotations

from functools import partial

from diffusion_core import grid
from diffusion_core.report import ACCENT, MUTED, WARM, subplots
from diffusion_core.solvers import ddpm
from images.experiments.ddpm import gaussian_fit
from images.lab import Lab, Report, Variant
from images.systems import Sampling

N = 40
WAYS = {
    "mean, bound (2015)": ("prediction=x0", "system.objective=vlb"),
    "mean, simple loss": ("prediction=x0", "system.objective=simple"),
    "noise, bound": ("prediction=eps", "system.objective=vlb"),
    "noise, simple loss (2020)": ("prediction=eps", "system.objective=simple"),
}


def experiment(lab: Lab) -> Report:
    """Two things that five years changed, one by one, on a chain of 40 steps."""
    labels, budget = lab.labels(), f"train.steps={max(lab.steps // 2, 1)}"
    how = Sampling(partial(ddpm, variance="small"), N, partial(grid.trailing, N))
    gaussian, _ = gaussian_fit(lab.train_data, len(labels))
    variants = [Variant("Gaussian with the data's covariance", lab.measure(gaussian))]
    found, samples = {"Gaussian": variants[0].metrics["FD"]}, None
    for name, words in WAYS.items():
        trained = lab.train("system=nonequilibrium", f"system.levels={lab.train_data.levels}", *words, budget)
        images = lab.draw(trained, how, labels)
        samples = images if samples is None else samples
        metrics = lab.measure(images)
        found[name] = metrics["FD"]
        variants.append(Variant(name, metrics, [trained.command]))
    assert samples is not None
    first, last = found["mean, bound (2015)"], found["noise, simple loss (2020)"]
    figure, axes = subplots(1, 1, 6.0, 2.8)
    axis = axes[0, 0]
    colours = [MUTED, WARM, WARM, ACCENT, ACCENT]
    axis.barh(list(found), [e.value for e in found.values()], xerr=[e.stderr for e in found.values()], color=colours)
    axis.invert_yaxis()
    axis.set(xlabel=f"FD [{lab.judge}]", xscale="log")
    return Report(
        title="Nonequilibrium thermodynamics (2015)",
        source="Sohl-Dickstein et al. 2015, Deep Unsupervised Learning using Nonequilibrium Thermodynamics (arXiv "
        "1503.03585)",
        idea="Destroy the data in few Gaussian steps, and learn the mean of every step back by the variational bound.",
        published="Log-likelihoods of toy data, MNIST and CIFAR-10, and recognisable samples; no FID at the time. "
        "DDPM's step from "
        "there is another target and another weight, which are changed here one by one.",
        variants=variants,
        criterion="FD of the diffusion of 2015 below half of a Gaussian fit's, and above DDPM's on the same 40 steps.",
        shown=first.value < 0.5 * found["Gaussian"].value and first.value > last.value,
        verdict=f"FD of a Gaussian fit {found['Gaussian'].value:.1f}; of 2015 {first.value:.2f}; with the simple loss "
        f"{found['mean, simple loss'].value:.2f}; predicting noise {found['noise, bound'].value:.2f}; both "
        f"{last.value:.2f}.",
        samples=samples,
        figure=figure,
    )
