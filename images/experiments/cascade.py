"""Cascades: does super-resolution survive the mistakes of its base, with and without conditioning augmentation?"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling
from images.systems.cascade import Cascade
from images.systems.low_res import LowRes

LEVELS = (0.0, 0.1, 0.25, 0.5, 1.0)
TRUNCATED = (0.1, 0.25)
HOW = Sampling(partial(ddim, eta=0.0), 15, grid.uniform)
BATCH = 250


def enhanced(
    system: Cascade, small: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], level: float, noisy: bool = False
) -> Float[Tensor, "n c height width"]:
    """Large images for given small ones, at a level; the same noise whatever is given."""
    system.level = level
    parts = zip(small.split(BATCH), labels.split(BATCH), range(200_000, 200_000 + len(small), BATCH), strict=True)
    return torch.cat([system.enhance(z, y, _seeds(first, len(y)), HOW, noisy) for z, y, first in parts])


def small_images(base: LowRes, labels: Int64[Tensor, " n"], until: float = 0.0) -> Float[Tensor, "n c h w"]:
    """What the base draws, at the same noise for every ``until``."""
    parts = zip(labels.split(BATCH), range(100_000, 100_000 + len(labels), BATCH), strict=True)
    return torch.cat([base.draw_small(y, _seeds(first, len(y)), HOW, until) for y, first in parts])


def _seeds(first: int, n: int) -> PerSample:
    return PerSample.from_seeds(range(first, first + n))


def experiment(lab: Lab) -> Report:
    """FD by the level of augmentation, on small images that the base drew and on true ones."""
    budget = f"train.steps={lab.steps * 6 // 10}"
    base_run = lab.train("system=low_res", budget)
    base = base_run.component
    assert isinstance(base, LowRes)
    nets: dict[str, Trained] = {
        "noise": lab.train("system=cascade", budget, parent=base_run),
        "none": lab.train("system=cascade", budget, "system.max_level=0", "system.level=0", parent=base_run),
        "blur": lab.train(
            "system=cascade", budget, "system.max_level=0", "system.level=0", "system.blur=0.5", parent=base_run
        ),
    }
    systems: dict[str, Cascade] = {}
    for name, trained in nets.items():
        assert isinstance(trained.component, Cascade)
        systems[name] = trained.component

    # the same labels for small images of both kinds, in the classes' own shares
    rows = torch.randperm(len(lab.train_data), generator=torch.Generator().manual_seed(0))[: min(lab.tier.n, 2000)]
    data = lab.train_data.subset(rows)
    labels, true_small = data.labels, base.shrink(data.images())
    base_small = small_images(base, labels)
    variants: list[Variant] = []
    drawn: dict[str, Tensor] = {}

    def vary(name: str, images: Tensor, trained: Trained) -> Estimate:
        drawn[name] = images
        commands = [trained.command] if trained is base_run else [base_run.command, trained.command]
        metrics = lab.measure(images, labels)
        variants.append(Variant(name, metrics, commands))
        return metrics["FD"]

    off = {
        "base": vary(
            "no augmentation, drawn small images", enhanced(systems["none"], base_small, labels, 0), nets["none"]
        ),
        "true": vary(
            "no augmentation, true small images", enhanced(systems["none"], true_small, labels, 0), nets["none"]
        ),
    }
    noise = systems["noise"]
    found: dict[str, dict[float, Estimate]] = {"base": {}, "true": {}}
    for s in LEVELS:
        images = enhanced(noise, base_small, labels, s)
        found["base"][s] = vary(f"noise, s = {s:g}, drawn small images", images, nets["noise"])
        if s < 1.0:
            images = enhanced(noise, true_small, labels, s)
            found["true"][s] = vary(f"noise, s = {s:g}, true small images", images, nets["noise"])
    # nothing of the small image is left at s = 1, whosever it was
    found["true"][1.0] = found["base"][1.0]
    cut = {}
    for s in TRUNCATED:
        images = enhanced(noise, small_images(base, labels, s), labels, s, noisy=True)
        cut[s] = vary(f"truncated, s = {s:g}", images, nets["noise"])
    blur = vary("blur, drawn small images", enhanced(systems["blur"], base_small, labels, 0), nets["blur"])
    only = vary("small images enlarged, no super-resolution", base.enlarge(base_small), base_run)

    best = min(LEVELS[1:], key=lambda s: found["base"][s].value)
    zero, top = found["base"][0.0], found["base"][best]
    least = min((found["true"][s] for s in LEVELS[1:]), key=lambda e: e.value)
    true_zero = found["true"][0.0]
    shown = top.value < 0.8 * zero.value and true_zero.low <= least.high

    def line(which: str) -> str:
        return "/".join(f"{found[which][s].value:.2f}" for s in LEVELS)

    side, small_side = lab.shape[1], lab.shape[1] // base.factor
    return Report(
        title="Cascaded diffusion",
        source="Ho et al. 2022, Cascaded Diffusion Models for High Fidelity Image Generation (arXiv 2106.15282)",
        idea="Draw small images, then large ones that are told the small ones. In training the small images are "
        "true, in sampling they are drawn, with mistakes: so noise them in both, to a level s that the network is "
        "told, and it learns how far to trust them.",
        published="FID of a 16 -> 64 cascade on ImageNet with augmentation to step s of the process: 6.02 at s = 0, "
        "3.41 at s = 101, 2.13 at s = 1001, and 2.35 without a cascade; 4.88 at 256 x 256 (as we remember it). Here: "
        f"{small_side} -> {side} pixels, s as a share of the process, and a base and super-resolution of the same "
        "small budget.",
        variants=variants,
        criterion="With drawn small images the FD at the best s > 0 is below 0.8 of that at s = 0; with true small "
        "images s = 0 is not worse than the best s > 0 (95 % intervals not apart): the gain is about the base's "
        "mistakes.",
        shown=shown,
        verdict=f"FD at s = {'/'.join(f'{s:g}' for s in LEVELS)}: drawn small images {line('base')}, true ones "
        f"{line('true')}. Best s = {best:g}: {top.value / zero.value:.2f} of the FD at s = 0. Without augmentation in "
        f"training {off['base'].value:.2f} and {off['true'].value:.2f}; blur {blur.value:.2f}; base stopped at s = "
        f"{'/'.join(f'{s:g}' for s in TRUNCATED)}: {'/'.join(f'{e.value:.2f}' for e in cut.values())}; small images "
        f"enlarged {only.value:.2f}.",
        samples=drawn[f"noise, s = {best:g}, drawn small images"],
        figure=_figure(found, off, best, base.enlarge(base_small), drawn),
        notes=f"Every row has the same labels, noise and sampler (DDIM, {HOW.steps} steps). True small images are "
        "averages of training images. At s = 1 the super-resolution knows nothing but the label. Samples: s = "
        f"{best:g}.",
    )


def _figure(
    found: dict[str, dict[float, Estimate]],
    off: dict[str, Estimate],
    best: float,
    base: Tensor,
    drawn: dict[str, Tensor],
) -> Figure:
    figure, axes = subplots(1, 2, 8.0, 3.6)
    axis = axes[0, 0]
    for which, name, colour in (("base", "drawn small images", WARM), ("true", "true small images", ACCENT)):
        panels.curve(axis, list(found[which]), list(found[which].values()), name, colour)
        axis.axhline(off[which].value, color=colour, ls=":", lw=1)
    axis.plot([], [], ":", color=MUTED, label="trained without noise")
    axis.set(xlabel="level s of the small image's noise", ylabel="FD to held-out images", yscale="log")
    axis.legend(fontsize=8, labelcolor=INK)
    rows = [base, drawn["noise, s = 0, drawn small images"], drawn[f"noise, s = {best:g}, drawn small images"]]
    names = ["base", "s = 0", f"s = {best:g}"]
    sheet = torch.stack([images[:8] for images in rows])
    panels.sheet(axes[0, 1], sheet, names, "drawn small images, and enlarged")
    return figure
