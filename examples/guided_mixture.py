"""Classifier-free guidance on three Gaussian classes: what it is said to sample, and what it samples.

    python examples/guided_mixture.py docs/guidance.png

Every class is one component of a mixture, so conditional and unconditional denoiser are exact and all that is seen is
guidance itself. Above: the density ``p(x) (p(x | c) / p(x))^w`` that guidance is named after. Below: the samples of
``uncond * (cond / uncond) ** w``, by DDIM. They are not the same for w > 1: the noised product is not the product of
the noised (docs/composition.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from diffusion_core import grid
from diffusion_core.oracles import GaussianMixture
from diffusion_core.report import save_figure, subplots
from diffusion_core.sample import sample
from diffusion_core.schedule import Cosine
from diffusion_core.solvers import ddim

SCHEDULE = Cosine()
SCALES = (1.0, 2.0, 4.0, 8.0)
ANGLES = torch.tensor([90.0, 210.0, 330.0], dtype=torch.float64).deg2rad()
MEANS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
STDS = torch.full((3,), 0.45, dtype=torch.float64)
COLOURS = ((0.84, 0.37, 0.0), (0.0, 0.45, 0.7), (0.0, 0.62, 0.45))
REACH = 3.4


def worlds() -> tuple[GaussianMixture, list[GaussianMixture]]:
    """The mixture, and each of its classes alone."""
    one, third = torch.ones(1, dtype=torch.float64), torch.full((3,), 1.0 / 3.0, dtype=torch.float64)
    classes = [GaussianMixture(SCHEDULE, one, MEANS[k : k + 1], STDS[k : k + 1]) for k in range(3)]
    return GaussianMixture(SCHEDULE, third, MEANS, STDS), classes


def guided_samples(n: int, scale: float, seed: int = 0) -> list[Tensor]:
    """(n, 2) samples for each of the three classes."""
    everything, classes = worlds()
    table = ddim(SCHEDULE, grid.uniform(100))
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [sample(everything * (one / everything) ** scale, table, x) for one in classes]


def guided_densities(scale: float, n: int = 160) -> list[Tensor]:
    """``p(x) (p(x | c) / p(x))^scale`` on a grid, for each class, scaled to a largest value of 1."""
    everything, classes = worlds()
    axis = torch.linspace(-REACH, REACH, n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    densities = []
    for one in classes:
        log = (1.0 - scale) * everything.log_density(points, 0.0) + scale * one.log_density(points, 0.0)
        densities.append((log - log.max()).exp().reshape(n, n).T)
    return densities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=1500)
    arguments = parser.parse_args()
    figure, axes = subplots(2, len(SCALES), 11.0, 5.8)
    for column, scale in enumerate(SCALES):
        picture = torch.ones(160, 160, 3, dtype=torch.float64)
        for density, colour in zip(guided_densities(scale), COLOURS, strict=True):
            picture *= 1.0 - density[..., None] * (1.0 - torch.tensor(colour, dtype=torch.float64))
        axes[0, column].imshow(picture.numpy(), origin="lower", extent=(-REACH, REACH, -REACH, REACH))
        for points, colour in zip(guided_samples(arguments.samples, scale), COLOURS, strict=True):
            axes[1, column].scatter(*points.T.tolist(), s=1.5, color=colour, alpha=0.5, linewidths=0)
        axes[0, column].set_title(f"guidance scale {scale:g}")
    for axis in axes.flat:
        axis.set(aspect="equal", xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[])
    axes[0, 0].set_ylabel("the tilted density")
    axes[1, 0].set_ylabel("what is sampled")
    save_figure(figure, arguments.out)


if __name__ == "__main__":
    main()
