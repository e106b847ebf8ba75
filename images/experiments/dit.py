"""DiT: the loss and the FD of transformers of several sizes and patches, by the operations that they take."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.config import configuration
from images.experiments import panels
from images.experiments.adm import held_out_loss, operations
from images.experiments.classifier_free import rank_correlation
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

STEPS = 20
TOKENS = {4: "4x4 pixels", 2: "2x2", 1: "1x1"}
GRID = (
    ("dit_small", (4, 2, 1)),
    ("dit", (4, 2)),
    ("dit_large", (4, 2)),
)
"""Networks, and their patches in units of the task's own: as many tokens as budgets allow."""
SIZES = {"dit_small": "small", "dit": "medium", "dit_large": "large"}
RATE = "train.learning_rate=0.001"


def experiment(lab: Lab) -> Report:
    """Sizes and patches at the same steps; gates open or closed at the start; a U-Net beside them."""
    unit = configuration(lab.tier.words).task.patch
    budget = f"train.steps={max(lab.steps * 3 // 10, 1)}"
    nets: dict[tuple[str, int], Trained] = {
        (size, patch): lab.train("system=dit", f"network={size}", f"network.patch={unit * patch}", budget, RATE)
        for size, patches in GRID
        for patch in patches
    }
    middle = ("dit", 2)
    opened = lab.train(
        "system=dit",
        f"network={middle[0]}",
        f"network.patch={unit * middle[1]}",
        "system._target_=images.systems.dit.open_gates",
        budget,
        RATE,
    )
    beside = lab.train("system=conditional", budget, RATE)
    labels = lab.labels(min(lab.tier.n // 2, 1000))
    variants, drawn = [], {}

    def judge(name: str, trained: Trained) -> tuple[float, Estimate, Estimate, Tensor]:
        model = trained.component
        assert isinstance(model, Diffusion)
        loss, millions = held_out_loss(model, lab.test_data), operations(model)
        images = lab.draw(trained, Sampling(partial(ddim, eta=0.0), STEPS), labels)
        exact = Estimate(millions, 0.0, math.nan, math.nan, 1, "MFLOP")
        measured = lab.measure(images, labels)
        variants.append(Variant(name, {"operations": exact, "held-out loss": loss} | measured, [trained.command]))
        return millions, loss, measured["FD"], images

    cost, loss, fd = {}, {}, {}
    unet = judge("U-Net, same steps", beside)
    for (size, patch), trained in nets.items():
        name = f"DiT {SIZES[size]}, patch {unit * patch}"
        cost[size, patch], loss[size, patch], fd[size, patch], drawn[size, patch] = judge(name, trained)
    ungated = judge(f"DiT {SIZES[middle[0]]}, patch {unit * middle[1]}, gates open at the start", opened)

    sizes = [size for size, _ in GRID]
    by_size = all(loss[a, p].value > loss[b, p].value for p in (4, 2) for a, b in pairwise(sizes))
    by_patch = all(loss[size, a].value > loss[size, b].value for size, patches in GRID for a, b in pairwise(patches))
    flops = list(cost.values())
    trend = rank_correlation(flops, [e.value for e in loss.values()])
    trend_fd = rank_correlation(flops, [e.value for e in fd.values()])
    best = min(loss, key=lambda key: loss[key].value)

    def line(patch: int) -> str:
        return "/".join(f"{loss[size, patch].value:.4f}" for size in sizes)

    small = sizes[0]
    return Report(
        title="DiT",
        source="Peebles & Xie 2023, Scalable Diffusion Models with Transformers (arXiv 2212.09748)",
        idea="A transformer of patches in the place of the U-Net, with time and class as scale, shift and gate of "
        "every block (adaLN), all gates zero at the start, so that each block begins as the identity (adaLN-Zero).",
        published="FID at the same number of steps falls with the operations of the network, however these are spent, "
        "on width and depth or on smaller patches; DiT-XL/2 reaches FID 2.27 on ImageNet 256 with guidance (as we "
        "remember it). Here: pixels instead of latents, small images, three sizes, a short training.",
        variants=variants,
        criterion="At the same steps the held-out loss falls from small to medium to large with patches of 4 and of 2, "
        "and with the patch at every size; the rank correlation of loss and operations over all is below -0.8. The "
        "gates and the U-Net are reported, not required.",
        shown=by_size and by_patch and trend < -0.8,
        verdict=f"Held-out loss small/medium/large: patch 4 {line(4)}, patch 2 {line(2)}; small with patch 1 "
        f"{loss[small, 1].value:.4f}. Rank correlation with operations ({min(flops):.1f} to {max(flops):.0f} MFLOP): "
        f"loss {trend:+.2f}, FD {trend_fd:+.2f}. Medium, patch 2: gates zero at the start {loss[middle].value:.4f}, "
        f"open {ungated[1].value:.4f}. U-Net of {unet[0]:.0f} MFLOP at the same steps {unet[1].value:.4f}.",
        samples=drawn[best],
        figure=_figure(cost, loss, fd, unet, ungated, cost[middle], drawn),
        notes=f"Patches are in units of the task's own ({unit} pixels). Samples: DiT {SIZES[best[0]]} with patch "
        f"{unit * best[1]}, DDIM in {STEPS} steps, no guidance; FD of {len(labels)} images. One learning rate for all "
        f"({RATE.partition('=')[2]}), one seed.",
    )


def _figure(
    cost: dict[tuple[str, int], float],
    loss: dict[tuple[str, int], Estimate],
    fd: dict[tuple[str, int], Estimate],
    unet: tuple[float, Estimate, Estimate, Tensor],
    ungated: tuple[float, Estimate, Estimate, Tensor],
    middle: float,
    drawn: dict[tuple[str, int], Tensor],
) -> Figure:
    figure, axes = subplots(2, 2, 8.0, 6.4)
    colours = {"dit_small": WARM, "dit": ACCENT, "dit_large": INK}
    beside = ((axes[0, 0], loss, ungated[1], unet[1]), (axes[0, 1], fd, ungated[2], unet[2]))
    for axis, found, without_zero, convolutional in beside:
        for size, patches in GRID:
            x = [cost[size, p] for p in patches]
            panels.curve(axis, x, [found[size, p] for p in patches], SIZES[size], colours[size])
        panels.curve(axis, [middle], [without_zero], "medium, gates open", ACCENT, "x")
        panels.curve(axis, [unet[0]], [convolutional], "U-Net", MUTED, "s")
        axis.set(xscale="log", xlabel="MFLOP per evaluation", yscale="log")
    axes[0, 0].set(ylabel="held-out loss")
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].set(ylabel="FD to held-out images")
    shown = [("dit_small", 4), ("dit_small", 1), ("dit", 2), ("dit_large", 2)]
    rows = torch.stack([drawn[key][:20] for key in shown])
    names = [f"{SIZES[size]}, {TOKENS[patch]}" for size, patch in shown]
    panels.sheet(panels.across(figure, axes, 1), rows, names, "the same noise, every class in turn")
    return figure
