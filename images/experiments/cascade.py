"""Cascades: does super-resolution survive the mistakes of its base, with and without conditioning augmentation?"""

from __future__ import annotations

from collections.abc import Sequence
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
from images.experiments.paired import fd_gap
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling
from images.systems.cascade import Cascade
from images.systems.low_res import LowRes

LEVELS = (0.0, 0.1, 0.25, 0.5, 1.0)
BASE_STEPS = (2, 4, 15)
TRUNCATED = 0.25
TRUE = 0
"""In the place of the base's steps: small images that are true."""
BATCH = 250


def how(steps: int) -> Sampling:
    """DDIM without noise."""
    return Sampling(partial(ddim, eta=0.0), steps, grid.uniform)


FINE = how(BASE_STEPS[-1])


def enhanced(
    system: Cascade, small: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], level: float, noisy: bool = False
) -> Float[Tensor, "n c height width"]:
    """Large images for given small ones, at a level; the same noise whatever is given."""
    system.level = level
    parts = zip(small.split(BATCH), labels.split(BATCH), range(400_000, 400_000 + len(small), BATCH), strict=True)
    return torch.cat([system.enhance(z, y, _seeds(first, len(y)), FINE, noisy) for z, y, first in parts])


def small_images(base: LowRes, labels: Int64[Tensor, " n"], steps: int, until: float = 0.0) -> Float[Tensor, "n c h w"]:
    """What the base draws, from the same noise for every ``steps`` and ``until``."""
    parts = zip(labels.split(BATCH), range(300_000, 300_000 + len(labels), BATCH), strict=True)
    return torch.cat([base.draw_small(y, _seeds(first, len(y)), how(steps), until) for y, first in parts])


def _seeds(first: int, n: int) -> PerSample:
    return PerSample.from_seeds(range(first, first + n))


def experiment(lab: Lab) -> Report:
    """FD by the level of augmentation, on small images with more and fewer mistakes, and on true ones."""
    budget = f"train.steps={lab.steps * 6 // 10}"
    base_run = lab.train("system=low_res", budget)
    noise_run = lab.train("system=cascade", budget, parent=base_run)
    exact = ("system=cascade", budget, "system.max_level=0.0", "system.level=0.0")
    none_run, blur_run = lab.train(*exact, parent=base_run), lab.train(*exact, "system.blur=0.5", parent=base_run)
    base, noise, none, soft = (run.component for run in (base_run, noise_run, none_run, blur_run))
    assert isinstance(base, LowRes) and isinstance(noise, Cascade)
    assert isinstance(none, Cascade) and isinstance(soft, Cascade)

    # the same labels for all, in the classes' own shares
    rows = torch.randperm(len(lab.train_data), generator=torch.Generator().manual_seed(0))[: min(lab.tier.n, 2000)]
    data = lab.train_data.subset(rows)
    labels = data.labels
    small = {TRUE: base.shrink(data.images())} | {steps: small_images(base, labels, steps) for steps in BASE_STEPS}
    variants: list[Variant] = []
    drawn: dict[tuple[int, float], Tensor] = {}

    def vary(name: str, images: Tensor, *runs: Trained) -> Estimate:
        metrics = lab.measure(images, labels)
        variants.append(Variant(name, metrics, [run.command for run in runs]))
        return metrics["FD"]

    off: dict[int, Estimate] = {}
    blur: dict[int, Estimate] = {}
    plain: dict[int, Tensor] = {}
    found: dict[int, dict[float, Estimate]] = {steps: {} for steps in small}
    for steps in small:
        plain[steps] = enhanced(none, small[steps], labels, 0.0)
        off[steps] = vary(f"trained without noise; {_origin(steps)}", plain[steps], base_run, none_run)
        softened = enhanced(soft, small[steps], labels, 0.0)
        blur[steps] = vary(f"trained with blur; {_origin(steps)}", softened, base_run, blur_run)
    for s in LEVELS[:-1]:
        for steps in small:
            drawn[steps, s] = enhanced(noise, small[steps], labels, s)
            found[steps][s] = vary(f"s = {s:g}; {_origin(steps)}", drawn[steps, s], base_run, noise_run)
    # nothing of the small image is left at s = 1, whosever it was
    blind = enhanced(noise, small[TRUE], labels, 1.0)
    last = vary("s = 1: nothing but the label", blind, base_run, noise_run)
    for steps in small:
        found[steps][1.0], drawn[steps, 1.0] = last, blind
    stopped = small_images(base, labels, BASE_STEPS[-1], TRUNCATED)
    cut = vary(
        f"truncated at s = {TRUNCATED:g}; base of {BASE_STEPS[-1]} steps",
        enhanced(noise, stopped, labels, TRUNCATED, noisy=True),
        base_run,
        noise_run,
    )
    worst, good = BASE_STEPS[0], BASE_STEPS[-1]
    only = {n: vary(f"enlarged alone; {_origin(n)}", base.enlarge(small[n]), base_run) for n in (worst, good)}

    # with the label alone at s = 1 there is no cascade left
    best = min(LEVELS[1:-1], key=lambda s: found[worst][s].value)
    repaired = fd_gap(lab, plain[worst], drawn[worst, best])
    harmed = fd_gap(lab, plain[TRUE], drawn[TRUE, best])
    helps = found[worst][best].value < 0.8 * off[worst].value and repaired.value > 3.0 * repaired.stderr
    harmless = harmed.value < 3.0 * harmed.stderr

    def line(values: dict[float, Estimate]) -> str:
        return "/".join(f"{e.value:.2f}" for e in values.values())

    side, small_side = lab.shape[1], lab.shape[1] // base.factor
    return Report(
        title="Cascaded diffusion",
        source="Ho et al. 2022, Cascaded Diffusion Models for High Fidelity Image Generation (arXiv 2106.15282)",
        idea="Draw small images, then large ones that are told the small ones. In training the small images are true, "
        "in sampling they are drawn, with mistakes: so noise them in both, to a level s that the network is told, and "
        "it learns how far to trust them.",
        published="FID of a cascade to 64 x 64 on ImageNet with augmentation to step s of the process: 6.02 at s = 0, "
        "3.41 at s = 101, 2.13 at s = 1001, and 2.35 without a cascade; 4.88 at 256 x 256. Here: "
        f"{small_side} -> {side} pixels, s as a share of the process, and a base that is made worse by fewer steps.",
        variants=variants,
        criterion=f"With small images drawn in {worst} steps the FD at the best s in (0, 1) is below 0.8 of that of a "
        "network trained without noise, by 3 standard errors of the difference; with true small images there is "
        "no such gain: what noise repairs are the mistakes of the base.",
        shown=helps and harmless,
        verdict=f"Trained without noise: FD {off[TRUE].value:.2f} with true small images, "
        + ", ".join(f"{off[n].value:.2f} with a base of {n} steps" for n in reversed(BASE_STEPS))
        + f". With noise, at s = {'/'.join(f'{s:g}' for s in LEVELS)}: "
        + "; ".join(f"{_origin(steps)} {line(found[steps])}" for steps in (TRUE, *reversed(BASE_STEPS)))
        + f". Gain with the base of {worst} steps at s = {best:g}: {repaired.value:.2f} ± {repaired.stderr:.2f} of FD; "
        f"with true small images {harmed.value:.2f} ± {harmed.stderr:.2f}. With blur of every "
        f"second small image instead: {', '.join(f'{_origin(n)} {e.value:.2f}' for n, e in blur.items())}. "
        f"Base of {good} steps stopped at s = {TRUNCATED:g}: {cut.value:.2f}; enlarged alone {only[good].value:.2f}.",
        samples=drawn[worst, best],
        figure=_figure(
            found, off, best, repaired.stderr, (base.enlarge(small[worst]), plain[worst], drawn[worst, best])
        ),
        notes=f"Super-resolution takes {FINE.steps} DDIM steps in all rows, with the same labels and noise; true small "
        "images are averages of training images. Two earlier runs, with other noise, had other criteria: the base of "
        f"{good} steps alone at s = 0 against s > 0 of one network (differences within the errors), and the same for "
        f"the base of {worst} steps (on digits FD 0.25 and 0.17, intervals overlapped). They led to this baseline, a "
        f"network that never saw noise, and to errors of differences. Samples: base of {worst} steps, s = {best:g}.",
    )


def _origin(steps: int) -> str:
    return f"base of {steps} steps" if steps != TRUE else "true small images"


def _figure(
    found: dict[int, dict[float, Estimate]],
    off: dict[int, Estimate],
    best: float,
    error: float,
    rows: Sequence[Tensor],
) -> Figure:
    figure, axes = subplots(1, 2, 8.0, 3.4)
    axis = axes[0, 0]
    for steps, colour in zip((*BASE_STEPS, TRUE), (WARM, INK, MUTED, ACCENT), strict=True):
        values = found[steps]
        axis.plot(list(values), [e.value for e in values.values()], "o-", color=colour, ms=4, label=_origin(steps))
        axis.plot([-0.12], [off[steps].value], "s", color=colour, ms=6)
    axis.axvline(-0.06, color=MUTED, lw=0.8, ls=":")
    seen = [*off.values(), *(e for values in found.values() for e in values.values())]
    top = 1.15 * max(e.value for e in seen)
    axis.set(xlabel="level s of the small image's noise", ylabel="FD to held-out images", ylim=(0.0, top))
    axis.set_xticks([-0.12, *LEVELS], ["never\nnoised", "0", "", *(f"{s:g}" for s in LEVELS[2:])])
    axis.set_title(f"differences are known to ± {error:.2f}", loc="left", fontsize=10, color=INK)
    axis.legend(fontsize=8)
    sheet = torch.stack([images[:8] for images in rows])
    panels.sheet(
        axes[0, 1], sheet, ["base", "never noised", f"s = {best:g}"], f"base of {BASE_STEPS[0]} steps, and enlarged"
    )
    return figure
