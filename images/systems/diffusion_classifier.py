"""The diffusion classifier: a conditional diffusion names the class under which it predicts an image's noise best.

Source: Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier" (arXiv 2303.16203).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import convert
from diffusion_core.process.gaussian import Gaussian
from images.systems.diffusion import Diffusion

BATCH = 500
"""Evaluations of the network in one call; changes speed only."""

Shared = Literal["pairs", "times", "nothing"]


@dataclass(frozen=True)
class Stage:
    """Until ``pairs`` pairs of a time and a noise have been seen, then only the ``keep`` best classes go on."""

    pairs: int
    keep: int


@dataclass(frozen=True)
class Decision:
    """What was found out about images.

    Args:
        label: the class of each.
        error: mean of ``|eps - eps_hat|^2`` of each class over the pairs that it was shown, an average over pixels.
        evaluations: of the network, for one image.
    """

    label: Int64[Tensor, " n"]
    error: Float64[Tensor, "n classes"]
    evaluations: int


def times_of(pairs: int) -> Float64[Tensor, " pairs"]:
    """Times that fill (0, 1) evenly, however many of the first are used.

        t_k = frac(1/2 + k / golden ratio)

    Li et al. space a fixed number of times evenly (section 3.2); so does every beginning of this sequence, nearly.
    """
    return (0.5 + torch.arange(pairs, dtype=torch.float64) * (5.0**0.5 - 1.0) / 2.0) % 1.0


@torch.no_grad()
def errors(
    model: Diffusion,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    times: Float64[Tensor, " n"],
    noise: Float[Tensor, "n c h w"],
) -> Float64[Tensor, " n"]:
    """``|eps - eps_hat(x_t, t, label)|^2`` of each image, averaged over its pixels, whatever the network predicts."""
    denoiser = model.denoiser
    found = []
    for x0, label, t, eps in zip(*(v.split(BATCH) for v in (images, labels, times, noise)), strict=True):
        x_t = Gaussian(denoiser.schedule).corrupt(x0, t, eps)
        said = denoiser(x_t, t, model.condition(label))
        eps_hat = convert(said, x_t, denoiser.prediction, "eps", denoiser.schedule, t)
        found.append((eps - eps_hat).double().square().flatten(1).mean(1))
    return torch.cat(found)


def all_errors(
    model: Diffusion,
    images: Float[Tensor, "n c h w"],
    classes: Int64[Tensor, "n k"],
    times: Float64[Tensor, " pairs"],
    draws: Draws,
    shared: Shared = "pairs",
) -> Float64[Tensor, "n k pairs"]:
    """The error of each image under each of its classes, for as many pairs as there are times.

    Args:
        classes: that are asked about, for each image its own.
        shared: what the classes of an image have in common: the "pairs" of time and noise, so that what these add to
            all errors alike cancels; the "times" alone; or "nothing", each error estimated by itself at random times.
    """
    n, k = classes.shape
    columns = []
    for t in times.split(1):
        drawn = 1 if shared == "pairs" else k
        noise = draws.normal((n, drawn, *images.shape[1:]), images.dtype).to(images.device)
        noise = noise.expand(n, k, *images.shape[1:])
        at = draws.uniform((n, k)).to(times) if shared == "nothing" else t.expand(n, k)
        pairs = (images[:, None].expand_as(noise), classes, at, noise)
        columns.append(errors(model, *(v.flatten(0, 1) for v in pairs)).unflatten(0, (n, k)))
    return torch.stack(columns, 2)


def classify(model: Diffusion, images: Float[Tensor, "n c h w"], stages: Sequence[Stage], draws: Draws) -> Decision:
    """The class of each image, by elimination.

        label = argmin_c mean over (t, eps) of |eps - eps_hat(alpha_t x0 + sigma_t eps, t, c)|^2

    Args:
        model: told the class.
        stages: with more pairs and fewer classes each; one stage alone asks about all classes.
        draws: of the noises, which all classes of an image share.

    Raises:
        WorkbenchError: the model knows no classes, or the stages do not narrow down to one.

    Source: Li et al. 2023, algorithm 2; one stage: algorithm 1.
    """
    if not model.conditional:
        raise WorkbenchError(
            "diffusion classifier: got a diffusion without labels; expected system=conditional's kind."
        )
    seen, n = [0, *(stage.pairs for stage in stages)], len(images)
    kept = [model.n_classes, *(stage.keep for stage in stages)]
    if len(stages) < 1 or kept[-1] != 1 or sorted(set(seen)) != seen or sorted(kept, reverse=True) != kept:
        raise WorkbenchError(
            f"diffusion classifier: got {model.n_classes} classes and stages of {seen[1:]} pairs that keep {kept[1:]}; "
            "expected more pairs and no more classes in each, and 1 class in the end."
        )
    total = torch.zeros(n, model.n_classes, dtype=torch.float64, device=images.device)
    shown = torch.zeros_like(total)
    left = torch.arange(model.n_classes, device=images.device).expand(n, -1)
    times, evaluations = times_of(seen[-1]).to(images.device), 0
    for first, last, keep in zip(seen, seen[1:], kept[1:], strict=False):
        found = all_errors(model, images, left, times[first:last], draws)
        evaluations += found[0].numel()
        total.scatter_add_(1, left, found.sum(2))
        shown.scatter_(1, left, float(last))
        # all that are left have seen the same pairs: their sums can be compared
        left = left.gather(1, total.gather(1, left).topk(keep, largest=False).indices)
    return Decision(left[:, 0], total / shown, evaluations)
