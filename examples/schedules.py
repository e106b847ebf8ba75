"""All schedules, grids and training times in one picture.

    python examples/schedules.py docs/schedules.png

Above: signal, noise and log-SNR of the schedules. Below: the combinators; where the steps of 12-step grids fall; the
density of log-SNR at which a network is trained.
"""

import sys
from pathlib import Path

import torch

from diffusion_core import grid, times
from diffusion_core import schedule as schedules
from diffusion_core.loss import Draws
from diffusion_core.report import ACCENT, INK, MUTED, WARM, save_figure, subplots

COSINE, FLOW, LINEAR = schedules.Cosine(), schedules.RectifiedFlow(), schedules.Linear()
EDM = schedules.VarianceExploding(80.0)
KINDS = {
    "Linear": (LINEAR, ACCENT, "-"),
    "Cosine": (COSINE, WARM, "-"),
    "RectifiedFlow": (FLOW, INK, "-"),
    "Sigmoid": (schedules.Sigmoid(), ACCENT, "--"),
    "Laplace": (schedules.Laplace(), WARM, "--"),
    "SubVariancePreserving": (schedules.SubVariancePreserving(), INK, "--"),
    "scaled_linear_betas": (schedules.scaled_linear_betas(), ACCENT, ":"),
    "sigmoid_betas": (schedules.sigmoid_betas(), WARM, ":"),
    "VarianceExploding(80)": (EDM, MUTED, "-"),
    "GeometricVarianceExploding": (schedules.GeometricVarianceExploding(), MUTED, "--"),
}
CHANGED = {
    "Linear": (LINEAR, MUTED, "-"),
    "ZeroTerminal(Linear)": (schedules.ZeroTerminal(LINEAR), ACCENT, "-"),
    "Shifted(Linear, 4)": (schedules.Shifted(LINEAR, 4.0), WARM, "-"),
    "Range(Linear, 0.1, 0.8)": (schedules.Range(LINEAR, 0.1, 0.8), INK, "-"),
}
GRIDS = {
    "uniform(12)": grid.uniform(12),
    "trailing(1000, 12)": grid.trailing(1000, 12),
    "leading(1000, 12)": grid.leading(1000, 12),
    "linspace(1000, 12)": grid.linspace(1000, 12),
    "karras(Cosine, 12, 0.99)": grid.karras(COSINE, 12, start=0.99),
    "log_snr_uniform(Cosine, 12)": grid.log_snr_uniform(COSINE, 12),
    "beta(12, 0.6, 0.6)": grid.beta(12),
    "shifted(uniform(12), 3)": grid.shifted(grid.uniform(12), 3.0),
}


def trained(n):
    """(log-SNR of n training times, colour, line) by name."""
    laws = {
        "Linear, uniform_times": (LINEAR, times.uniform_times, ACCENT, "-"),
        "Cosine, uniform_times": (COSINE, times.uniform_times, WARM, "-"),
        "flow, uniform_times": (FLOW, times.uniform_times, INK, "-"),
        "flow, logit_normal_times": (FLOW, times.logit_normal_times, INK, "--"),
        "EDM, log_normal_times": (EDM, lambda d, b: times.log_normal_times(d, b, EDM), MUTED, "-"),
    }
    draws = Draws(torch.Generator().manual_seed(0))
    return {name: (s.log_snr(law(draws, n)), colour, line) for name, (s, law, colour, line) in laws.items()}


def main(out, n=200_000):
    t = torch.linspace(0.0, 1.0, 401, dtype=torch.float64)
    figure, axes = subplots(2, 3, 15.0, 8.6)
    for name, (s, colour, line) in KINDS.items():
        for axis, values in zip(axes[0], (s.alpha(t), s.sigma(t), s.log_snr(t)), strict=True):
            axis.plot(t, values, line, color=colour, label=name, lw=1.5)
    for name, (s, colour, line) in CHANGED.items():
        axes[1, 0].plot(t, s.log_snr(t), line, color=colour, label=name, lw=1.5)
    for row, (name, points) in enumerate(reversed(GRIDS.items())):
        axes[1, 1].plot(points, torch.full_like(points, row), "|", color=ACCENT, ms=13, mew=1.6)
        axes[1, 1].text(0.0, row + 0.28, name, fontsize=9)
    for name, (log_snr, colour, line) in trained(n).items():
        height, edges = torch.histogram(log_snr.float(), bins=90, range=(-15.0, 15.0), density=True)
        axes[1, 2].plot(0.5 * (edges[1:] + edges[:-1]), height, line, color=colour, label=name, lw=1.5)
    for axis, title in zip(axes.flat, ("alpha", "sigma", "log_snr", "combinators", "grids", "training"), strict=True):
        axis.set(title=title, xlabel="t")
    axes[0, 1].set(yscale="log", ylim=(5e-3, 120.0))
    axes[0, 2].set(ylim=(-16.0, 16.0))
    axes[1, 0].set(ylim=(-16.0, 16.0), ylabel="log_snr")
    axes[1, 1].set(yticks=[], ylim=(-0.6, len(GRIDS) - 0.2))
    axes[1, 2].set(xlabel="log_snr", ylabel="density")
    for axis in (axes[0, 0], axes[1, 0], axes[1, 2]):
        axis.legend(fontsize=8.5)
    save_figure(figure, Path(out))
    return {name: float(points[0]) for name, points in GRIDS.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
