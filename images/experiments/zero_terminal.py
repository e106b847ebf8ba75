"""Zero terminal SNR: are very dark and very bright images possible?"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid, results
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.data.pictures import Pictures
from images.data.sources import load
from images.evaluate import in_turn
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.metrics.distance import around
from images.systems import Sampling
from images.systems.zero_terminal import RescaledGuidance

N_TRAIN = 1000
STEPS = 25
SCALE = 5.0
PHI = 0.7
PLAIN, ZERO = "signal left at t = 1", "zero terminal SNR"


def how(steps: int, scale: float = 1.0, leading: bool = False) -> Sampling:
    """DDIM on the model's own steps: from the last of them (trailing), or from below it (leading)."""
    times = partial(grid.leading if leading else grid.trailing, N_TRAIN)
    return Sampling(partial(ddim, eta=0.0), steps, times, scale)


def brightness(images: Float[Tensor, "n c h w"]) -> Float64[np.ndarray, " n"]:
    """The mean of each image as it is shown, -1 black to 1 white."""
    return images.clamp(-1.0, 1.0).flatten(1).mean(1).double().cpu().numpy()


def brightness_error(
    images: Float[Tensor, "n c h w"], reference: Float[Tensor, "m c h w"], resamples: int = 200
) -> Estimate:
    """Distance of two distributions of mean brightness: what share of the range must be moved how far.

        W_1 = integral over levels u in [0, 1] of |Q_a(u) - Q_b(u)|,    Q the quantile functions

    The standard error is the spread over bootstrap draws of both; like every such distance it is biased upwards where
    the two agree, so that real images against real ones stand beside it.
    """
    a, b = brightness(images), brightness(reference)
    random = np.random.default_rng(0)
    drawn = [_distance(random.choice(a, len(a)), random.choice(b, len(b))) for _ in range(resamples)]
    return around(_distance(a, b), float(np.std(drawn, ddof=1)), min(len(a), len(b)), low=0.0)


def _distance(a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"]) -> float:
    levels = (np.arange(1000) + 0.5) / 1000
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).mean())


def contrast(images: Float[Tensor, "n c h w"]) -> Estimate:
    """The mean standard deviation of an image's pixels, before anything is clipped."""
    return results.mean(images.flatten(1).std(1).tolist(), resamples=1000)


def upright(lab: Lab, data: Pictures, images: Float[Tensor, "n c h w"], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels as the tier's judge knows them: the inverted ones turned back."""
    known = lab.test_data.n_classes
    if data.n_classes == known:
        return images, labels
    return torch.where((labels >= known)[:, None, None, None], -images, images), labels % known


def experiment(lab: Lab) -> Report:
    """Brightness of samples and of data, with and without signal at t = 1; guidance with and without rescaling."""
    # digits are all dark: there both polarities are learned, as classes of their own; scenes have three backgrounds
    task = () if lab.tier.task == "scenes" else (f"task={lab.tier.task}_inverted",)
    budget = f"train.steps={lab.steps * 7 // 10}"
    nets = {
        PLAIN: lab.train("system=zero_terminal", *task, budget, "schedule.rescale=false"),
        ZERO: lab.train("system=zero_terminal", *task, budget),
    }
    data, train = (load(nets[ZERO].config.task, split) for split in ("test", "train"))
    labels = in_turn(min(lab.tier.n, 2000), data.n_classes)
    real = data.images()

    drawn: dict[str, Tensor] = {}
    variants: list[Variant] = []

    def vary(name: str, trained: Trained, sampling: Sampling, phi: float = PHI) -> dict[str, Estimate]:
        system = trained.component
        assert isinstance(system, RescaledGuidance)
        system.phi = phi
        images = drawn[name] = lab.draw(system, sampling, labels)
        own = {"brightness error": brightness_error(images, real), "contrast": contrast(images)}
        metrics = own | lab.measure(*upright(lab, data, images, labels))
        variants.append(Variant(name, metrics, [trained.command]))
        return metrics

    plain = vary(PLAIN, nets[PLAIN], how(STEPS))["brightness error"]
    vary(f"{PLAIN}, leading steps", nets[PLAIN], how(STEPS, leading=True))
    zero = vary(ZERO, nets[ZERO], how(STEPS))["brightness error"]
    leading = vary(f"{ZERO}, leading steps", nets[ZERO], how(STEPS, leading=True))["brightness error"]
    loud = vary(f"{ZERO}, guidance {SCALE:g}", nets[ZERO], how(STEPS, SCALE), phi=0.0)["contrast"]
    calm = vary(f"{ZERO}, guidance {SCALE:g}, rescaled by {PHI}", nets[ZERO], how(STEPS, SCALE))["contrast"]
    floor, true = brightness_error(train.images(), real), contrast(real)
    variants.append(
        Variant("real images (training)", {"brightness error": floor, "contrast": contrast(train.images())})
    )

    off = {name: abs(value.value - true.value) for name, value in (("loud", loud), ("calm", calm))}
    alphas = {name: float(_denoiser_alpha(trained)) for name, trained in nets.items()}
    return Report(
        title="Zero terminal SNR",
        source="Lin et al. 2024, Common Diffusion Noise Schedules and Sample Steps Are Flawed (arXiv 2305.08891)",
        idea="Schedules of latent diffusion leave some of the image at the last step of training, and sampling then "
        "begins from noise that has none: the model takes its missing mean for a medium brightness. Rescale the "
        "schedule until nothing is left, predict v, sample from the last step, and give guided estimates back their "
        "spread.",
        published="Stable Diffusion 2.1 can then draw all black and all white images, and its FID falls from 23.76 to "
        f"21.66 (as we remember it). Here: {data.name}, the same betas shifted to images of {lab.shape[1]} pixels, so "
        "that as much of the brightness is left as there.",
        variants=variants,
        criterion="The distance between the distributions of mean brightness of samples and of held-out images is with "
        "the published betas at least 3 times that with the rescaled ones; and rescaled guidance is nearer to the "
        "contrast of real images than plain guidance.",
        shown=plain.value >= 3.0 * zero.value and off["calm"] < off["loud"],
        verdict=f"Brightness error: {plain.value:.3f} with {alphas[PLAIN]:.2f} of the image left at t = 1, "
        f"{zero.value:.3f} with none ({plain.value / zero.value:.1f} times less; real against real {floor.value:.3f}), "
        f"{leading.value:.3f} with none when sampling does not begin at the last step. Contrast at guidance {SCALE:g}: "
        f"{loud.value:.2f}, rescaled {calm.value:.2f}, real {true.value:.2f}.",
        samples=drawn[ZERO],
        figure=_figure(drawn, real, labels, data),
        notes="Both models learn v at the same times and differ in the schedule alone. Sampling starts, as everywhere "
        "here, from noise of the width that the schedule has at its first time.",
    )


def _denoiser_alpha(trained: Trained) -> Tensor:
    system = trained.component
    assert isinstance(system, RescaledGuidance)
    return system.diffusion.denoiser.schedule.alpha(torch.ones((), dtype=torch.float64))


def _figure(drawn: dict[str, Tensor], real: Tensor, labels: Tensor, data: Pictures) -> Figure:
    figure, axes = subplots(2, 2, 8.0, 5.6)
    panels.above_sheets(axes, 0.85)
    bins = np.linspace(-1.0, 1.0, 61)
    for axis, name, colour in ((axes[0, 0], PLAIN, WARM), (axes[0, 1], ZERO, ACCENT)):
        axis.hist(brightness(real), bins, density=True, color=MUTED, alpha=0.5, label="real")
        axis.hist(brightness(drawn[name]), bins, density=True, histtype="step", color=colour, lw=1.8, label="samples")
        axis.set(xlabel="mean brightness", yticks=[], ylabel="density")
        axis.set_title(name, loc="left", fontsize=10, color=INK)
        axis.legend(loc="upper center", fontsize=9)
    axes[0, 0].set_ylim(axes[0, 1].get_ylim())
    for axis, names in ((axes[1, 0], (PLAIN, ZERO)), (axes[1, 1], list(drawn)[-2:])):
        # one row of each half of the classes: on digits the upright and the inverted ones
        picked = torch.cat([torch.arange(8), torch.arange(data.n_classes // 2, data.n_classes // 2 + 8)])
        rows = torch.cat([drawn[name][picked].unflatten(0, (2, 8)) for name in names])
        short = [name.replace("signal left at t = 1", "left").replace("zero terminal SNR", "zero") for name in names]
        if axis is axes[1, 1]:
            short = ["plain", "rescaled"]
        title = "signal left, and none" if axis is axes[1, 0] else f"guidance {SCALE:g}: plain, and rescaled"
        panels.sheet(axis, rows, [short[0], "", short[1], ""], title)
    return figure
