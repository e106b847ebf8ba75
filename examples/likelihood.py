"""Two roads to a likelihood, on data whose likelihood is known exactly.

    python examples/likelihood.py docs/likelihood.png

Left: the terms of the variational bound per unit of log-SNR: where the nats are. Right: by how much the bound exceeds
the entropy, and the error of the density along the probability flow, for growing numbers of steps. The bound's
expectation is an integral on a line: a term depends on (x0 - x0_hat)^2 alone, of mean E x0^2 - E x0_hat^2.
"""

import math
import sys
from functools import partial
from pathlib import Path

import torch

from diffusion_core.likelihood import Bound, Steps, log_likelihood, prior_kl, variational_bound
from diffusion_core.ode import evenly
from diffusion_core.oracles import GaussianMixture
from diffusion_core.report import ACCENT, INK, MUTED, WARM, save_figure, subplots
from diffusion_core.schedule import Linear

SCHEDULE, END = Linear(), 1e-3
WEIGHTS, MEANS, STDS = torch.tensor([[0.3, 0.5, 0.2], [-1.5, 0.2, 1.6], [0.3, 0.5, 0.25]], dtype=torch.float64)
DATA = GaussianMixture(SCHEDULE, WEIGHTS, MEANS[:, None], STDS)
LINE = torch.linspace(-9.0, 9.0, 6001, dtype=torch.float64)[:, None]


def integral(values):
    return torch.trapezoid(values, LINE[:, 0])


def chain(n):
    """``n`` steps of equal ratio down to t = 0.001; the last one, from there, is the decoder."""
    times = torch.logspace(0.0, math.log10(END), n, dtype=torch.float64)
    return Steps(SCHEDULE, torch.cat([times, torch.zeros(1, dtype=torch.float64)]), variance="large")


def expected_bound(steps):
    """The terms of the bound, their expectations over data and noise."""
    evaluate, square = DATA.bind(steps.times), float((WEIGHTS * (MEANS**2 + STDS**2)).sum())
    density = [DATA.log_density(LINE, t).exp() for t in steps.times.tolist()]
    errors = torch.stack([square - integral(p * evaluate(LINE, i)[:, 0] ** 2) for i, p in enumerate(density)])
    terms = steps.term(torch.arange(len(steps)), errors.sqrt()[:, None], torch.zeros(len(steps), 1).double())
    return Bound(prior_kl(SCHEDULE, torch.full((1, 1), math.sqrt(square), dtype=torch.float64)), terms[:, None])


def main(out=None, n=2000, counts=(8, 16, 32, 64, 128, 256), flows=(4, 8, 16, 32, 64)):
    log_p = DATA.log_density(LINE, 0.0)
    entropy = float(-integral(log_p.exp() * log_p))
    gaps = [float(expected_bound(chain(k)).nats[0]) - entropy for k in counts]
    x0 = DATA.sample(n, torch.Generator().manual_seed(0))
    drawn = variational_bound(DATA, chain(32), x0, torch.Generator().manual_seed(1)).nats
    few, prior = x0[:400], partial(DATA.log_density, t=1.0)
    nats = [log_likelihood(DATA, few, END, prior=prior, solve=evenly(k)).nats for k in flows]
    misses = [float((nat - DATA.log_density(few, END)).abs().mean()) for nat in nats]
    if out:
        figure, axes = subplots(1, 2, 11.0, 3.8)
        for k, colour in ((16, MUTED), (32, WARM), (512, ACCENT)):
            log_snr, terms = SCHEDULE.log_snr(chain(k).times), expected_bound(chain(k)).steps[:-1, 0]
            axes[0, 0].stairs(terms / log_snr.diff(), log_snr, color=colour, label=f"{k} steps", lw=1.5)
        axes[0, 0].set(xlabel="log_snr", ylabel="nats per unit of log_snr", ylim=(0.0, None), xlim=(-8.0, 8.0))
        axes[0, 1].loglog(counts, gaps, color=ACCENT, marker="o", label="variational bound - entropy")
        axes[0, 1].loglog(counts, [gaps[0] * counts[0] / k for k in counts], color=INK, ls=":", label="1 / steps")
        axes[0, 1].loglog(flows, misses, color=WARM, marker="o", label="log p along the flow (RK4), error")
        axes[0, 1].set(xlabel="steps", ylabel="nats")
        for axis in axes.flat:
            axis.legend(fontsize=9)
        save_figure(figure, Path(out))
    estimate = (float(drawn.mean()), float(drawn.std()) / math.sqrt(n))
    return {"entropy": entropy, "gaps": dict(zip(counts, gaps, strict=True)), "estimate": estimate, "misses": misses}


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
