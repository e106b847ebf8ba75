"""Panels of experiments' figures: a measured curve, and a sheet of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core.report import INK
from diffusion_core.results import Estimate
from images.data.pictures import to_bytes


def curve(
    axis: Any, x: Sequence[int] | Sequence[float], found: Sequence[Estimate], label: str, colour: str, style: str = "o-"
) -> None:
    """Estimates over ``x`` with bars of one standard error."""
    axis.errorbar(x, [e.value for e in found], [e.stderr for e in found], fmt=style, color=colour, label=label, ms=4)


def over_steps(axis: Any, steps: Sequence[int], ylabel: str, log: bool = False) -> None:
    """Label a panel of curves, drawn before, whose abscissa is a sampler's number of steps."""
    axis.set(xscale="log", xlabel="steps", ylabel=ylabel, xticks=steps, yscale="log" if log else "linear")
    axis.set_xticklabels([str(n) for n in steps])
    if log:
        # bars may reach below zero: the values decide what is seen
        values = [float(y) for line in axis.lines for y in line.get_ydata()]
        low, high = 0.7 * min(values), 1.3 * max(values)
        ticks = [m * 10.0**k for k in range(-4, 5) for m in (1, 2, 5) if low <= m * 10.0**k <= high]
        axis.set_ylim(low, high)
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def above_sheets(axes: Any, share: float) -> None:
    """Make the second of two rows of panels ``share`` times as high as the first."""
    axes[0, 0].get_gridspec().set_height_ratios([1.0, share])


def sheet(axis: Any, images: Float[Tensor, "rows columns c h w"], names: Sequence[str], title: str) -> None:
    """Rows of images, named at the left.

    Args:
        images: in about [-1, 1]; clipped.
        names: of the rows.
    """
    rows, height = images.shape[0], images.shape[3]
    white = torch.nn.functional.pad(images.clamp(-1.0, 1.0), (0, 1, 0, 1), value=1.0)
    whole = white.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    pixels = to_bytes(whole[None])[0].permute(1, 2, 0)[:-1, :-1].cpu().numpy()
    axis.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, loc="left", fontsize=10, color=INK)
    axis.set_xticks([])
    axis.set_yticks([(height + 1) * (row + 0.5) - 0.5 for row in range(rows)], names)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def across(figure: Figure, axes: Any, row: int) -> Any:
    """One panel in the place of a row of ``axes``."""
    for axis in axes[row]:
        axis.remove()
    return figure.add_subplot(axes[row, 0].get_gridspec()[row, :])
