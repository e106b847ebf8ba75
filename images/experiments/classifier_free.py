"""Classifier-free guidance: one model with and without its label, and what is paid for fidelity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid, results, sample
from diffusion_core.experts import start
from diffusion_core.noise import Shared
from diffusion_core.oracles import GaussianData, GaussianMixture
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.schedule import Cosine
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling

SCALES = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0)
STEPS = 20
EXACT = (1.0, 2.0, 4.0)
"""Scales of the three Gaussians."""
COLOURS = (ACCENT, WARM, INK)

Points = Float64[Tensor, "n 2"]


def how(scale: float) -> Sampling:
    """DDIM with this guidance."""
    return Sampling(partial(ddim, eta=0.0), STEPS, guidance_scale=scale)


def three_gaussians() -> GaussianMixture:
    """Three equal classes that overlap a little, in the plane."""
    angles = torch.tensor([0.5, 7.0 / 6.0, 11.0 / 6.0], dtype=torch.float64) * math.pi
    means = 1.0 * torch.stack([angles.cos(), angles.sin()], 1)
    weights, stds = torch.full((3,), 1.0 / 3.0, dtype=torch.float64), torch.full((3,), 0.6, dtype=torch.float64)
    return GaussianMixture(Cosine(), weights, means, stds)


def guided_points(world: GaussianMixture, label: int, scale: float, n: int, seed: int = 0) -> Points:
    """Samples of one class of ``world``, guided with exact denoisers: no network and no training is involved."""
    std = world.stds[label].expand(2)
    own = GaussianData(world.schedule, world.means[label], std)
    denoiser = world * (own / world) ** scale
    noise = Shared(torch.Generator().manual_seed(seed))
    x = start(denoiser, noise.normal((n, 2), torch.float64, torch.device("cpu")))
    return sample.sample(denoiser, ddim(world.schedule, grid.uniform(200)), x)


def posterior(world: GaussianMixture, points: Points) -> Float64[Tensor, "n 3"]:
    """Which class points are of, under the true mixture."""
    x = (points[:, None] - world.means).square().sum(2)
    return (world.weights.log() - 0.5 * x / world.stds**2 - 2.0 * world.stds.log()).softmax(1)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, of values without ties in ``x``; ties in ``y`` share their mean rank.

    Source: Spearman 1904.
    """
    ranks = []
    for values in (x, y):
        v = torch.tensor(values, dtype=torch.float64)
        ranks.append((v[:, None] > v).double().sum(1) + 0.5 * (v[:, None] == v).double().sum(1))
    a, b = (r - r.mean() for r in ranks)
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))


def experiment(lab: Lab) -> Report:
    """The sweep of the scale on the shared model and on one of a quarter of its training; three exact Gaussians."""
    nets: dict[str, Trained] = {
        "a quarter of the training": lab.train("system=conditional", f"train.steps={max(lab.steps // 4, 1)}"),
        "all of the training": lab.train("system=conditional"),
    }
    labels = lab.labels(min(lab.tier.n, 2000))
    found: dict[str, dict[float, dict[str, Estimate]]] = {}
    drawn: dict[float, Tensor] = {}
    variants = []
    for name, trained in nets.items():
        found[name] = {}
        for scale in SCALES:
            images = lab.draw(trained, how(scale), labels)
            found[name][scale] = lab.measure(images, labels)
            variants.append(Variant(f"{name}, scale {scale:g}", found[name][scale], [trained.command]))
            if name == "a quarter of the training":
                drawn[scale] = images

    world = three_gaussians()
    points = {scale: guided_points(world, 0, scale, 500) for scale in EXACT}
    true = {scale: results.mean(posterior(world, x)[:, 0].tolist()) for scale, x in points.items()}
    spread = {scale: float(x.std(0).square().mean().sqrt()) for scale, x in points.items()}
    for scale in EXACT:
        variants.append(Variant(f"three exact Gaussians, scale {scale:g}", {"posterior of the class": true[scale]}))

    early, late = found.values()
    known = [m for m in ("accuracy", "IS", "precision", "recall", "coverage") if m in early[1.0]]
    trend = {m: rank_correlation(SCALES, [early[s][m].value for s in SCALES]) for m in known}
    signs = {"accuracy": 1.0, "IS": 1.0, "precision": 1.0, "recall": -1.0, "coverage": -1.0}
    trends = all(trend[m] * signs[m] > 0.7 for m in known if m != "coverage")
    best, best_late = (min(SCALES, key=lambda s: sweep[s]["FD"].value) for sweep in (early, late))
    ends = [early[s]["FD"] for s in (SCALES[0], SCALES[-1])]
    low = early[best]["FD"]
    interior = all(e.value - low.value > math.hypot(e.stderr, low.stderr) for e in ends)
    exact = true[EXACT[0]].value < true[EXACT[1]].value < true[EXACT[2]].value
    said = ", ".join(
        f"{m} {early[SCALES[0]][m].value:.2f} to {early[SCALES[-1]][m].value:.2f}" for m in known if m != "IS"
    )
    return Report(
        title="Classifier-free guidance",
        source="Ho & Salimans 2022, Classifier-Free Diffusion Guidance (arXiv 2207.12598)",
        idea="A network whose label is dropped now and then in training is a conditional and an unconditional model at "
        "once. Sampling follows uncond + scale (cond - uncond): away from what images of all classes have in common, "
        "without a classifier.",
        published="FID is lowest with little guidance, 1.55 at w = 0.1 on ImageNet 64 and 2.43 at w = 0.3 on ImageNet "
        "128 (as we remember it), and rises with more, while IS rises on; our scale is their w + 1. Here: other images "
        "and features; beside the shared model one of a quarter of its training, which, as theirs does, leaves room.",
        variants=variants,
        criterion="For the shorter training: accuracy, IS and precision rise and recall falls with the scale (rank "
        "correlation beyond 0.7); FD is lowest at a scale between the ends, by more than the standard error of the "
        "difference to both. For three exact Gaussians the true posterior of the class rises with the scale.",
        shown=trends and interior and exact,
        verdict=f"A quarter of the training, scale {SCALES[0]:g} to {SCALES[-1]:g}: {said}; FD {ends[0].value:.2f} at "
        f"1, {low.value:.2f} at {best:g}, {ends[1].value:.2f} at {SCALES[-1]:g}. All of the training: FD "
        f"{late[1.0]['FD'].value:.2f} at 1, lowest at {best_late:g} ({late[best_late]['FD'].value:.2f}). Exact "
        f"Gaussians: posterior {true[EXACT[0]].value:.3f} to {true[EXACT[-1]].value:.3f}, width {spread[EXACT[0]]:.2f} "
        f"to {spread[EXACT[-1]]:.2f}.",
        samples=drawn[best],
        figure=_figure(found, drawn, world, points),
        notes=f"Samples: scale {best:g} of the shorter training, DDIM in {STEPS} steps. Rank correlations with the "
        f"scale: {', '.join(f'{m} {r:+.2f}' for m, r in trend.items())}. {_of_late(best_late)} "
        "The shorter training was added after the sweep of the shared model had been seen on the digits.",
    )


def _of_late(best: float) -> str:
    if best > SCALES[0]:
        return f"After all of the training guidance still brings the images nearer to the held-out ones, at {best:g}."
    return (
        "After all of the training the conditional model is as near to the held-out images as these features can tell, "
        "guidance has nothing to mend, and FD is lowest without it."
    )


def _figure(
    found: dict[str, dict[float, dict[str, Estimate]]],
    drawn: dict[float, Tensor],
    world: GaussianMixture,
    points: dict[float, Tensor],
) -> Figure:
    figure, axes = subplots(2, 2, 8.0, 6.8)
    early = next(iter(found.values()))
    for (name, sweep), colour in zip(found.items(), COLOURS, strict=False):
        panels.curve(axes[0, 0], SCALES, [sweep[s]["FD"] for s in SCALES], name, colour)
    axes[0, 0].set(ylabel="FD to held-out images", ylim=(0.0, None))
    known = [m for m in ("accuracy", "precision", "recall", "coverage") if m in early[1.0]]
    for metric, colour in zip(known, (INK, ACCENT, WARM, MUTED), strict=False):
        panels.curve(axes[0, 1], SCALES, [early[s][metric] for s in SCALES], metric, colour)
    # the legend's room is above 1
    axes[0, 1].set(ylabel="a quarter of the training", ylim=(0.0, 1.3), yticks=[0.0, 0.25, 0.5, 0.75, 1.0])
    for axis in axes[0]:
        axis.set(xscale="log", xlabel="guidance scale", xticks=SCALES)
        axis.set_xticklabels([f"{s:g}" for s in SCALES])
        axis.minorticks_off()
    axes[0, 0].legend(fontsize=8, loc="upper center")
    axes[0, 1].legend(fontsize=8, loc="upper center", ncol=2)
    rows = torch.stack([drawn[s][:8] for s in SCALES])
    panels.sheet(axes[1, 0], rows, [f"{s:g}" for s in SCALES], "the same noise, by scale")
    circle = torch.linspace(0.0, 2.0 * math.pi, 100)
    for mean, std, line in zip(world.means, world.stds, ("-", "--", "--"), strict=True):
        x, y = (mean[i] + 2.0 * std * f(circle) for i, f in ((0, torch.cos), (1, torch.sin)))
        axes[1, 1].plot(x, y, color=MUTED, linewidth=1.0, linestyle=line)
    for (scale, x), colour in zip(points.items(), (MUTED, ACCENT, WARM), strict=True):
        axes[1, 1].plot(x[:200, 0], x[:200, 1], ".", color=colour, ms=4, label=f"scale {scale:g}")
    axes[1, 1].set_title("three exact Gaussians, the upper asked for", loc="left", fontsize=10, color=INK)
    axes[1, 1].set(aspect="equal", xticks=[], yticks=[], ylim=(-2.5, 3.0))
    axes[1, 1].legend(fontsize=8, loc="lower center", ncol=3, columnspacing=0.8, handletextpad=0.1)
    return figure
