"""The diffusion of 2015: few Gaussian steps back, mean and variance learned by the variational bound."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddpm
from images.experiments import bits, panels
from images.lab import Lab, Report, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

N_TRAIN = 40
STEPS = (5, 10, 20, 40)
FIRST = "mean and variance, L (2015)"
LAST = "noise, L_simple (2020)"
FIXED = "system.learned_variance=false"
WAYS: dict[str, tuple[tuple[str, ...], bits.Variance]] = {
    FIRST: ((), "learned"),
    "mean, L": ((FIXED,), "small"),
    "noise, L": ((FIXED, "prediction=eps"), "small"),
    LAST: ((FIXED, "prediction=eps", "system.objective=simple"), "small"),
}
"""From 2015 to 2020, one change at a time."""
COUNTED = 200
"""Images whose bits are counted."""


def how(variance: bits.Variance, steps: int = N_TRAIN) -> Sampling:
    """``steps`` ancestral steps of the chain that the model was trained on."""
    return Sampling(partial(ddpm, variance=variance), steps, partial(grid.trailing, N_TRAIN))


def experiment(lab: Lab) -> Report:
    """The diffusion of 2015 in more and more steps, and every step on the way to the one of 2020."""
    words = ("system=nonequilibrium", f"system.levels={lab.train_data.levels}", f"train.steps={max(lab.steps // 2, 1)}")
    n, law, real = min(COUNTED, lab.tier.n), bits.gaussian_fit(lab.train_data), lab.test_data
    images = {"Gaussian fit": bits.drawn(law, lab.tier.n, lab.shape)}
    whole = bits.mean(bits.by_gaussian(law, real, n))
    variants = [Variant("Gaussian fit, whole covariance", lab.measure(images["Gaussian fit"]) | {"bits": whole})]
    falling: dict[int, Tensor] = {}
    for name, (changes, variance) in WAYS.items():
        trained = lab.train(*words, *changes, f"sampler.variance={variance}")
        model = trained.component
        assert isinstance(model, Diffusion)
        for steps in STEPS if name == FIRST else (N_TRAIN,):
            drawn = lab.draw(trained, how(variance, steps))
            found = bits.by_bound(model, real, n, steps, variance)
            if name == FIRST:
                falling[steps] = found
            if steps == N_TRAIN:
                images[name] = drawn
            variants.append(
                Variant(f"{name}, {steps} steps", lab.measure(drawn) | {"bits": bits.mean(found)}, [trained.command])
            )

    by_name = {variant.name.split(f", {N_TRAIN} steps")[0]: variant.metrics for variant in variants}
    first, last, fit = by_name[FIRST], by_name[LAST], variants[0].metrics
    held = {
        "FD below half of the Gaussian's": first["FD"].value < 0.5 * fit["FD"].value,
        "bound below the Gaussian's": first["bits"].value < whole.value,
        "bound falls with the steps": all(
            float(falling[b].mean()) < float(falling[a].mean()) for a, b in pairwise(STEPS)
        ),
        "FD of 2020 below that of 2015": last["FD"].value < first["FD"].value,
    }
    missed = [what for what, yes in held.items() if not yes]
    listed = ", ".join(f"{float(falling[s].mean()):.2f} in {s}" for s in STEPS)
    return Report(
        title="Diffusion of 2015",
        source="Sohl-Dickstein et al. 2015, Deep Unsupervised Learning using Nonequilibrium Thermodynamics (arXiv "
        "1503.03585)",
        idea="Destroy the data in small Gaussian steps: then every step back is nearly Gaussian too, however rich the "
        "data, and a network can learn its mean and variance by the variational bound.",
        published="Bounds on the log-likelihood of toy data, MNIST, CIFAR-10 and textures; no FID in 2015. Ho et al. "
        "2020, table 2, have CIFAR-10 FID 23.69 with mean and learned variance by the bound L, 13.22 with a fixed "
        "variance, 13.51 predicting noise by L, 3.17 by L_simple (the first two as we remember them). Here 40 steps, "
        "mean and variance from one U-Net (they had a multi-scale convolutional network), a fixed schedule (they "
        "learned it), the mean written as an estimate of the image and the variance between its two extremes.",
        variants=variants,
        criterion="In 40 steps the diffusion of 2015 has an FD below half of a Gaussian fit's, and its bound is below "
        "that Gaussian's bits per dimension; the same network's bound falls with the steps, "
        f"{', '.join(map(str, STEPS))}; and DDPM's noise and L_simple, on the same chain with the same budget, have "
        "the lower FD.",
        shown=not missed,
        verdict=f"FD {first['FD'].value:.2f}, Gaussian {fit['FD'].value:.2f}; "
        + ", ".join(f"{name} {by_name[name]['FD'].value:.2f}" for name in list(WAYS)[1:])
        + f". Bits/dim of 2015: {listed} steps; Gaussian {whole.value:.2f}, 2020 {last['bits'].value:.2f}. "
        + (f"Not seen: {'; '.join(missed)}." if missed else "All of it was seen."),
        samples=images[FIRST],
        figure=_figure(variants, falling, whole, last["bits"], images),
        notes="All networks had half of the tier's training steps. In fewer steps than 40 the network takes a part of "
        "those it was trained on, with the same interpolation of the variance.",
    )


def _figure(
    variants: list[Variant], falling: dict[int, Tensor], fit: Estimate, last: Estimate, images: dict[str, Tensor]
) -> Figure:
    figure, axes = subplots(2, 2, 8.4, 5.6)
    shown = [v for v in variants if not v.name.startswith(FIRST) or v.name.endswith(f"{N_TRAIN} steps")]
    short = ["Gaussian fit", "2015", "fixed variance", "noise", "2020"]
    colours = [MUTED, WARM, WARM, ACCENT, ACCENT]
    found = [v.metrics["FD"] for v in shown]
    axes[0, 0].barh(short, [e.value for e in found], xerr=[e.stderr for e in found], color=colours)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel="FD to held-out images")
    panels.curve(axes[0, 1], list(falling), [bits.mean(b) for b in falling.values()], "2015", WARM)
    panels.over_steps(axes[0, 1], list(falling), "bits per dimension")
    axes[0, 1].axhline(fit.value, color=MUTED, ls="--", label="Gaussian fit")
    axes[0, 1].axhline(last.value, color=ACCENT, ls=":", label=f"2020, {N_TRAIN} steps")
    axes[0, 1].legend()
    across = panels.across(figure, axes, 1)
    rows = torch.stack([images[name][:20] for name in ("Gaussian fit", *WAYS)])
    panels.sheet(across, rows, short, "")
    across.title.set_color(INK)
    return figure
