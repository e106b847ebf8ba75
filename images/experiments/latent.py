"""Latent diffusion: what a first stage's compression costs in quality, and what it saves."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion_core import grid, results
from diffusion_core.noise import PerSample
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.experiments.paired import fd_gap
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling, System
from images.systems.autoencoder import Autoencoder

STEPS = (4, 10, 30)
SEED = 500_000
COLOURS = (MUTED, WARM, ACCENT, INK)


def how(steps: int) -> Sampling:
    """DDIM without noise."""
    return Sampling(partial(ddim, eta=0.0), steps, grid.uniform)


def operations(system: System, steps: int) -> float:
    """Floating-point operations of one image, drawn and decoded, in millions."""
    counter = FlopCounterMode(display=False)
    with counter:
        system.sample(torch.zeros(1, dtype=torch.long), PerSample.from_seeds([0]), how(steps))
    return counter.get_total_flops() / 1e6


def exactly(value: float, unit: str = "1") -> Estimate:
    """A number without an error."""
    return Estimate(value, 0.0, value, value, 1, unit)


def factors(size: int) -> list[int]:
    """Compressions that leave latents of at least 2 x 2, which a U-Net of two resolutions can take."""
    return [f for f in (2, 4, 8) if size % f == 0 and size // f >= 2]


def channels(factor: int, of_images: int) -> int:
    """Of the latents: more where there are fewer places, so that every doubling of ``factor`` halves their numbers."""
    return factor if of_images == 1 else 2 * factor


def rmse(system: Autoencoder, images: Float[Tensor, "n c h w"]) -> Estimate:
    """Root mean squared error of reconstructions, in units of half the range of brightness."""
    error = (system.reconstructed(images) - images).square().flatten(1).mean(1)
    found = results.mean(error.tolist(), resamples=1000)
    root = found.value**0.5
    return Estimate(root, found.stderr / (2.0 * root), found.low**0.5, found.high**0.5, found.n)


def experiment(lab: Lab) -> Report:
    """FD against operations, without a first stage and with ones of growing compression."""
    labels = lab.labels(min(lab.tier.n, 2000))
    held_out, real = lab.test_data.images(), lab.train_data.images()[: len(labels)]
    models: dict[str, Trained] = {"pixels": lab.train("system=conditional")}
    stages: dict[str, Trained] = {}
    possible = factors(lab.shape[1])
    for f in possible:
        # words at one compression only, a middle one
        for kind in ("kl", "vq") if f == possible[(len(possible) - 1) // 2] else ("kl",):
            name = f"f = {f}" if kind == "kl" else f"f = {f}, words"
            stages[name] = lab.train(
                "system=autoencoder",
                f"system.kind={kind}",
                f"system.factor={f}",
                f"system.latent_channels={channels(f, lab.shape[0])}",
            )
            models[name] = lab.train("system=latent", parent=stages[name])

    variants: list[Variant] = []
    fd: dict[str, dict[int, Estimate]] = {}
    cost: dict[str, dict[int, float]] = {}
    drawn: dict[str, dict[int, Tensor]] = {}
    error: dict[str, Estimate] = {}
    speed: dict[str, float] = {}
    for name, trained in models.items():
        system = trained.component
        assert isinstance(system, System)
        fd[name], cost[name], drawn[name] = {}, {}, {}
        commands, own = [trained.command], {}
        if name in stages:
            stage = stages[name].component
            assert isinstance(stage, Autoencoder)
            commands = [stages[name].command, trained.command]
            error[name] = own["reconstruction error"] = rmse(stage, held_out)
            own["FD of reconstructions"] = lab.measure(stage.reconstructed(real))["FD"]
        for steps in STEPS:
            images, seconds = lab.timed(lab.draw, trained, how(steps), labels, SEED)
            drawn[name][steps] = images
            metrics = lab.measure(images, labels)
            fd[name][steps], cost[name][steps] = metrics["FD"], operations(system, steps)
            speed[name] = len(labels) / seconds
            own |= {
                "images per CPU second": exactly(speed[name], "1/s"),
                "operations": exactly(cost[name][steps], "MFLOP"),
            }
            variants.append(Variant(f"{name}, {steps} steps", metrics | own, commands))
            own = {}

    first, last = STEPS[0], STEPS[-1]
    compressed = [name for name in models if name != "pixels"]
    allowed = [(name, n) for name in compressed for n in STEPS if cost[name][n] <= cost["pixels"][first]]
    winner, winner_steps = min(allowed, key=lambda pair: fd[pair[0]][pair[1]].value)
    gain = fd_gap(lab, drawn["pixels"][first], drawn[winner][winner_steps])
    losses = {name: fd_gap(lab, drawn[name][last], drawn["pixels"][last]) for name in compressed}
    kl = [error[f"f = {f}"].value for f in possible]
    lossy = [v.metrics["FD of reconstructions"] for v in variants if "FD of reconstructions" in v.metrics]
    grows = all(a < b for a, b in pairwise(kl))

    def line(values: list[float], digits: int = 2) -> str:
        return "/".join(f"{value:.{digits}f}" for value in values)

    return Report(
        title="Latent diffusion",
        source="Rombach et al. 2022, High-Resolution Image Synthesis with Latent Diffusion Models (arXiv 2112.10752)",
        idea="Train an autoencoder once, with hardly any pressure on its latents, and let the diffusion learn them, "
        "scaled to unit size: it works on f x f fewer places, and the decoder draws what the eye hardly sees.",
        published="Of f = 1 ... 32 the factors 4 to 8 were the best trade: f = 1 and 2 learn slowly, f = 32 is "
        "limited by its reconstructions; FID 5.11 on CelebA-HQ and, guided, 3.60 on ImageNet (as we remember it). "
        f"Here: images of {lab.shape[1]} pixels, where hardly any detail is beneath notice; squared error alone "
        "trains the first stage.",
        variants=variants,
        criterion=f"With at most the operations of the diffusion of pixels in {first} steps, decoder included, and "
        "after as many optimizer steps of the diffusion, some f > 1 has a lower FD, by 3 standard errors of the "
        "difference; and the reconstruction error grows with f.",
        shown=gain.value > 3.0 * gain.stderr and grows,
        verdict=f"FD of pixels in {first} steps ({cost['pixels'][first]:.0f} MFLOP an image) "
        f"{fd['pixels'][first].value:.2f}; at most as many operations: {winner} in {winner_steps} steps "
        f"({cost[winner][winner_steps]:.0f} MFLOP) {fd[winner][winner_steps].value:.2f}, a gain of {gain.value:.2f} ± "
        f"{gain.stderr:.2f}. In {last} steps {', '.join(models)}: FD {line([fd[name][last].value for name in models])} "
        f"(worse than pixels by {', '.join(f'{e.value:.2f} ± {e.stderr:.2f}' for e in losses.values())}), operations "
        f"{line([cost[name][last] / cost['pixels'][last] for name in models])} of the pixels', images per CPU second "
        f"{line([speed[name] for name in models], 0)}. Reconstruction error "
        f"{line([e.value for e in error.values()], 3)}, FD of reconstructions {line([e.value for e in lossy])}.",
        samples=drawn[min(compressed, key=lambda name: fd[name][last].value)][last],
        figure=_figure(fd, cost, drawn, max(e.stderr for e in (gain, *losses.values()))),
        notes="The first stage's training is not counted: it is made once, for all diffusions on it, and takes as many "
        "optimizer steps. Words: a book of 256, the nearest taken by the decoder. Networks are those of the tier, of "
        "the latents' size, with patch = 1. An earlier run on digits had twice the latents' channels and other "
        "noise: more faithful and harder to learn (f = 2: FD 0.58 in 30 steps); its criterion, overlapping intervals "
        "in 30 steps, was passed by their width and is replaced. Tried beside it: as many channels with kl_weight = "
        "0.01 (FD 0.19). Samples: the best f > 1 in most steps.",
    )


def _figure(
    fd: dict[str, dict[int, Estimate]],
    cost: dict[str, dict[int, float]],
    drawn: dict[str, dict[int, Tensor]],
    uncertain: float,
) -> Figure:
    figure, axes = subplots(1, 2, 8.0, 3.6)
    axis = axes[0, 0]
    plain = [name for name in fd if "words" not in name]
    for name in fd:
        words = name not in plain
        colour = COLOURS[plain.index(name.removesuffix(", words"))]
        values = [e.value for e in fd[name].values()]
        axis.plot(list(cost[name].values()), values, "s:" if words else "o-", color=colour, label=name, ms=4)
    axis.set(xscale="log", xlabel="million operations per image", ylabel="FD to held-out images", ylim=(0.0, None))
    low, high = axis.get_xlim()
    ticks = [m * 10.0**k for k in range(6) for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_title(f"differences are known to ± {uncertain:.2f}", loc="left", fontsize=10, color=INK)
    axis.legend(fontsize=8)
    rows = torch.stack([drawn[name][STEPS[-1]][:8] for name in fd])
    panels.sheet(axes[0, 1], rows, list(fd), f"samples, {STEPS[-1]} steps")
    return figure
