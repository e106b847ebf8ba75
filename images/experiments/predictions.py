"""What the network predicts: noise, image or v, on a schedule that ends without signal."""

from __future__ import annotations

import copy
from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core import grid, results
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.report import ACCENT, INK, MUTED, WARM, subplots
from diffusion_core.results import Estimate
from diffusion_core.solvers import ddim
from images.experiments import panels
from images.lab import Lab, Report, Trained, Variant
from images.systems import Sampling
from images.systems.diffusion import Diffusion

STEPS = (2, 4, 8, 16)
JUDGED = 8
INSIDE = 0.999
"""Where eps can start: there the image is 1/630 of the noise."""
COLOURS = {"eps": WARM, "eps, clipped": MUTED, "x0": INK, "v": ACCENT}


def how(steps: int, start: float = 1.0) -> Sampling:
    """DDIM from ``start``."""
    return Sampling(partial(ddim, eta=0.0), steps, partial(grid.uniform, start=start))


def refusal(model: Diffusion) -> str:
    """What the core says when the model is asked for an image at t = 1; empty: nothing, it gives one."""
    try:
        model.denoiser.bind(how(JUDGED).table(model.denoiser.schedule).times)
    except WorkbenchError as error:
        return str(error)
    return ""


def error_of_x0(model: Diffusion, images: Tensor, labels: Tensor, t: float) -> Estimate:
    """Root of the mean squared error of the image that is estimated at time ``t``, over pixels and images."""
    x0 = images
    noise = PerSample.from_seeds(range(len(x0))).normal(x0.shape, x0.dtype, x0.device)
    times = torch.full((len(x0),), t, dtype=torch.float64)
    x_t = Gaussian(model.denoiser.schedule).corrupt(x0, times, noise)
    with torch.no_grad():
        x0_hat = model.denoiser.x0_hat(x_t, times, model.condition(labels))
    squared = results.mean((x0_hat - x0).square().flatten(1).mean(1).tolist(), resamples=200)
    root = squared.value**0.5
    return Estimate(root, squared.stderr / (2.0 * root), squared.low**0.5, squared.high**0.5, squared.n)


def experiment(lab: Lab) -> Report:
    """FD by steps of three networks that differ in what they predict."""
    nets: dict[str, Trained] = {
        "eps": lab.train("system=predictions", "prediction=eps", f"grid.start={INSIDE}"),
        "x0": lab.train("system=predictions", "prediction=x0"),
        "v": lab.train("system=predictions"),
    }
    models = {name: trained.component for name, trained in nets.items()}
    bounded = copy.deepcopy(models["eps"])
    assert isinstance(bounded, Diffusion)
    bounded.denoiser.clip = 1.0
    models["eps, clipped"] = bounded
    labels = lab.labels(min(lab.tier.n, 2000))

    refused: dict[str, str] = {}
    found: dict[str, dict[int, dict[str, Estimate]]] = {}
    drawn: dict[str, Tensor] = {}
    variants = []
    for name in COLOURS:
        model = models[name]
        assert isinstance(model, Diffusion)
        refused[name] = refusal(model)
        start = INSIDE if refused[name] else 1.0
        found[name] = {}
        for steps in STEPS:
            images = lab.draw(model, how(steps, start), labels)
            found[name][steps] = lab.measure(images, labels)
            if steps == JUDGED:
                drawn[name] = images
            command = nets[name.removesuffix(", clipped")].command
            variants.append(Variant(f"{name} from t = {start:g}, {steps} steps", found[name][steps], [command]))

    fd = {name: {steps: m["FD"] for steps, m in by_steps.items()} for name, by_steps in found.items()}
    ratio = fd["eps"][JUDGED].value / fd["v"][JUDGED].value
    only_eps = bool(refused["eps"]) and not refused["x0"] and not refused["v"]
    few, here = STEPS[0], {name: by_steps[JUDGED].value for name, by_steps in fd.items()}
    return Report(
        title="Predictions: eps, x0, v",
        source="Salimans & Ho 2022, Progressive Distillation for Fast Sampling of Diffusion Models (arXiv 2202.00512)",
        idea="A network may predict the noise, the image, or v = alpha eps - sigma x0. Where little signal is left, an "
        "image computed from eps carries its error times sigma / alpha; few steps must begin exactly there, and x0 and "
        "v stay well defined down to no signal at all.",
        published="Section 4: eps is unsuited to distillation into few steps, where x0 has to be right at zero "
        "signal-to-noise ratio, and x0 or v train stably (as we remember it, in words). Here: no distillation, the "
        "three networks with the simple loss of their own target on a cosine schedule that ends without signal.",
        variants=variants,
        criterion=f"At t = 1 eps is refused while x0 and v sample; and from t = {INSIDE}, where it is defined, the FD "
        f"of eps in {JUDGED} steps is at least 5 times that of v.",
        shown=only_eps and ratio >= 5.0,
        verdict=f"Refused at t = 1: {', '.join(name for name in nets if refused[name]) or 'none'}. FD in "
        f"{JUDGED} steps: eps {here['eps']:.3g} ({ratio:.1f} times v's), eps with a clipped estimate "
        f"{here['eps, clipped']:.3g}, x0 {here['x0']:.3g}, v {here['v']:.3g}; in {few} steps x0 "
        f"{fd['x0'][few].value:.3g}, v {fd['v'][few].value:.3g}.",
        samples=drawn["v"],
        figure=_figure(lab, models, fd, drawn),
        notes=f"The core's words at t = 1: {refused['eps']} Samples: v, {JUDGED} steps.",
    )


def _figure(lab: Lab, models: dict, fd: dict[str, dict[int, Estimate]], drawn: dict[str, Tensor]) -> Figure:
    figure, axes = subplots(2, 2, 8.0, 5.6)
    panels.above_sheets(axes, 0.6)
    for name, by_steps in fd.items():
        panels.curve(axes[0, 0], list(by_steps), list(by_steps.values()), name, COLOURS[name])
    panels.over_steps(axes[0, 0], STEPS, "FD to held-out images", log=True)
    axes[0, 0].legend()
    images, labels = (of[: min(200, lab.tier.n)] for of in (lab.test_data.images(), lab.test_data.labels))
    times = [0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, INSIDE]
    for name in ("eps", "x0", "v"):
        errors = [error_of_x0(models[name], images, labels, t) for t in times]
        panels.curve(axes[0, 1], times, errors, name, COLOURS[name], "o-")
    axes[0, 1].set(xlabel="t", ylabel="error of the estimated x0", yscale="log")
    axes[0, 1].legend()
    for axis, names in ((axes[1, 0], ("eps", "eps, clipped")), (axes[1, 1], ("x0", "v"))):
        rows = torch.cat([drawn[name][:20].unflatten(0, (2, 10)) for name in names])
        panels.sheet(axis, rows, [names[0], "", names[1], ""], f"{JUDGED} steps")
    return figure
