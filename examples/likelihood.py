"""Two roads to a likelihood, on data whose likelihood is known exactly.

    python examples/likelihood.py docs/likelihood.png

Left: the terms of the variational bound per unit of log-SNR: where the nats are. Right: by how much the bound exceeds
the entropy for growing numbers of steps, and the error of the density along the probability flow.
"""

import math
import sys
from functools import partial
from pathlib import Path

import torch

from diffusion_core import grid
from diffusion_core.likelihood import Steps, continuous_bound, log_likelihood, variational_bound
from diffusion_core.ode import evenly
from diffusion_core.oracles import GaussianMixture
from diffusion_core.report import ACCENT, INK, MUTED, WARM, save_figure, subplots
from diffusion_core.schedule import Linear

SCHEDULE, END = Linear(), 1e-3


def world():
    """Three Gaussians on a line."""
    weights, means, stds = torch.tensor([[0.3, 0.5, 0.2], [-1.5, 0.2, 1.6], [0.3, 0.5, 0.25]], dtype=torch.float64)
    return GaussianMixture(SCHEDULE, weights, means[:, None], stds)


def bound(x0, n, seed=1):
    """Mean terms of the bound on ``n`` steps: the last of them the decoder, from t = 0.001."""
    times = torch.cat(
        [torch.logspace(0.0, math.log10(END), n, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    )
    steps = Steps(SCHEDULE, times, variance="large")
    return times, variational_bound(world(), steps, x0, torch.Generator().manual_seed(seed))


def main(out=None, n=20_000, steps=(8, 16, 32, 64, 128), flows=(4, 8, 16, 32, 64)):
    data = world()
    x0 = data.sample(n, torch.Generator().manual_seed(0))
    exact = -data.log_density(x0, 0.0)
    gaps = []
    for k in steps:
        excess = bound(x0, k)[1].nats - exact
        gaps.append((float(excess.mean()), float(excess.std()) / math.sqrt(n)))
    few = x0[:400]
    prior = partial(data.log_density, t=1.0)
    nats = [log_likelihood(data, few, END, prior=prior, solve=evenly(k)).nats for k in flows]
    misses = [float((nat - data.log_density(few, END)).abs().mean()) for nat in nats]
    limit = continuous_bound(data, x0, torch.Generator().manual_seed(2), end=END).nats - exact
    if out:
        figure, axes = subplots(1, 2, 11.0, 3.8)
        for k, colour in ((16, MUTED), (32, WARM), (128, ACCENT)):
            times, terms = bound(x0, k)
            log_snr = SCHEDULE.log_snr(times[:-1])
            per_unit = terms.steps[:-1].mean(1) / log_snr.diff()
            axes[0, 0].stairs(per_unit.numpy(), log_snr.numpy(), color=colour, label=f"{k} steps", lw=1.5)
        axes[0, 0].set(xlabel="log_snr", ylabel="nats per unit of log_snr", ylim=(0.0, None), xlim=(-8.0, 8.0))
        axes[0, 1].errorbar(
            steps, *zip(*gaps, strict=True), color=ACCENT, marker="o", label="variational bound - entropy"
        )
        axes[0, 1].plot(flows, misses, color=WARM, marker="o", label="|flow's log p - log p|, RK4")
        axes[0, 1].axhline(float(limit.mean()), color=INK, ls=":", label="continuous bound - entropy")
        axes[0, 1].set(xscale="log", yscale="log", xlabel="steps", ylabel="nats")
        for axis in axes.flat:
            axis.legend(fontsize=9)
        save_figure(figure, Path(out))
    return {"entropy": float(exact.mean()), "gaps": gaps, "misses": misses, "limit": float(limit.mean())}


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
