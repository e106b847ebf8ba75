"""Guidance: short sentences in the algebra of experts, and what is done to an estimate afterwards.

Scale 1 is the plain conditional model everywhere: ``uncond + scale (cond - uncond)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusion_core.denoise import Denoiser, Evaluate, NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Energy, Product, Strength, given
from diffusion_core.experts.batched import batched, with_condition
from diffusion_core.experts.product import strength_at
from diffusion_core.nn.attention import Attention
from diffusion_core.process import Process
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Schedule, Times


def classifier_free(model: Denoiser, null: Any, scale: Strength, cond: Any = None) -> Product:
    """Classifier-free guidance, ``uncond * (cond / uncond) ** scale``, in one batched call.

    Args:
        model: trained with its condition replaced by ``null`` now and then.
        null: the condition that stands for none; batch axis first, of ``cond``'s length or 1.
        scale: 1 is the conditional model; a function of time, such as `Interval`, for guidance that comes and goes.
        cond: the condition; None: the one that `sample` is given.

    Source: Ho & Salimans 2022, eq. 6 (arXiv 2207.12598), whose w is ``scale - 1``.
    """
    uncond = given(model, null)
    return uncond * ((model if cond is None else given(model, cond)) / uncond) ** scale


def autoguidance(good: Denoiser, bad: Denoiser, scale: Strength) -> Product:
    """Away from a worse version of the same model: ``bad * (good / bad) ** scale``.

    Source: Karras et al. 2024, eq. 3 (arXiv 2406.02507).
    """
    return bad * (good / bad) ** scale


def negative(model: Denoiser, avoid: Denoiser, scale: Strength) -> Product:
    """Away from what ``avoid`` describes: ``model * (model / avoid) ** scale``; 0 is the plain model.

    Source: Liu et al. 2022, eq. 13 (arXiv 2206.01714), negation.
    """
    return model * (model / avoid) ** scale


def classifier(log_prob: Callable[[Tensor, Tensor], Tensor], scale: Strength) -> Product:
    """Classifier guidance, ``p(y | x_t) ** scale``, with a classifier of noisy samples.

    Args:
        log_prob: ``log_prob(x_t, t) -> (batch,)``, log p(y | x_t) of the wanted class, differentiable in x_t.

    Source: Dhariwal & Nichol 2021, algorithm 1 (arXiv 2105.05233).
    """
    return Energy(lambda x_t, t: -log_prob(x_t, t), on="x_t") ** scale


def measurement(
    operator: Callable[[Tensor], Tensor],
    observed: Tensor,
    scale: Strength,
    norm: Literal["squared", "plain"] = "squared",
) -> Product:
    """An observation ``observed = operator(x0)`` with noise: an inverse problem.

    ``norm="squared"`` is ``exp(-scale |observed - operator(x0_hat)|^2 / 2)``, so that scale is one over the variance
    of the noise, or `inflated` for one that knows that x0_hat is uncertain; "plain" is the unsquared norm, whose
    gradient has the step size of diffusion posterior sampling.

    Source: Chung et al. 2023, algorithm 1 (arXiv 2209.14687). Its step acts on x_s after the solver's; here it is
    part of the score.
    """

    def cost(x0_hat: Tensor) -> Tensor:
        residual = (observed - operator(x0_hat)).flatten(1)
        return 0.5 * residual.square().sum(1) if norm == "squared" else residual.norm(dim=1)

    return Energy(cost) ** scale


def similarity(encode: Callable[[Tensor], Tensor], target: Tensor, scale: Strength) -> Product:
    """CLIP-style guidance: the squared angle between the embedding of x0_hat and ``target``.

    Args:
        encode: ``encode(x0_hat) -> (batch, d)``, frozen and differentiable.
        target: (d,) or (batch, d) embedding of what is wanted, such as a text.

    Source: Crowson 2021, CLIP-guided diffusion (the spherical distance); Bansal et al. 2023 (arXiv 2302.07121).
    """

    def cost(x0_hat: Tensor) -> Tensor:
        a, b = (nn.functional.normalize(v, dim=-1) for v in (encode(x0_hat), target))
        # half the angle from half the chord: the arc cosine has no derivative where the two agree
        return 2.0 * (0.5 * (a - b).norm(dim=-1)).clamp(max=1.0).asin().square()

    return Energy(cost) ** scale


@dataclass(frozen=True)
class Interval:
    """``inside`` for low <= t <= high, else ``outside``: where a branch is not needed it is not evaluated.

    Source: Kynkäänniemi et al. 2024, eq. 6 (arXiv 2404.07724), with the limits in time.
    """

    inside: float
    low: float
    high: float
    outside: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise WorkbenchError(f"Interval: got low={self.low}, high={self.high}; expected 0 <= low < high <= 1.")

    def __call__(self, t: Times) -> Times:
        inside = ((t >= self.low) & (t <= self.high)).to(t.dtype)
        return self.inside * inside + self.outside * (1.0 - inside)


@dataclass(frozen=True)
class Inflated:
    """``1 / (std^2 + sigma_t^2 / (alpha_t^2 + sigma_t^2))``: the precision of a measurement of an uncertain x0_hat.

    Source: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", section 3, for a
    row-orthonormal operator and data of unit variance.
    """

    schedule: Schedule
    std: float

    def __call__(self, t: Times) -> Times:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return 1.0 / (self.std**2 + sigma**2 / (alpha**2 + sigma**2))


@dataclass(frozen=True)
class Rescaled(Denoiser):
    """Classifier-free guidance whose estimate is given back the conditional estimate's standard deviation.

    ``x0_hat = phi x_g std(x_c) / std(x_g) + (1 - phi) x_g`` with the guided x_g and the conditional x_c, std over a
    sample.

    Source: Lin et al. 2024, eq. 14-16 (arXiv 2305.08891); they rescale the network's v, we its x0_hat.
    """

    cond: Denoiser
    uncond: Denoiser
    scale: Strength
    phi: float = 0.7

    def __post_init__(self) -> None:
        if not 0.0 <= self.phi <= 1.0:
            raise WorkbenchError(f"Rescaled: got phi={self.phi}; expected a number in [0, 1].")
        _gaussian(self.cond)

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.cond.process

    def bind(self, times: Times, cond: Any = None) -> Evaluate:
        scale = strength_at(self.scale, times)
        both = batched([with_condition(self.cond, cond), with_condition(self.uncond, cond)], times)
        combined = self.process.combine(torch.stack([scale, 1.0 - scale], 1), times)

        def evaluate(x: Tensor, i: int) -> Tensor:
            estimates = both(x, i)
            guided = combined(x, estimates, i)
            wanted, got = (v.flatten(1).std(1).reshape(-1, *[1] * (x.ndim - 1)) for v in (estimates[0], guided))
            return guided * torch.lerp(torch.ones_like(got), wanted / got, self.phi)

        return evaluate


@dataclass(frozen=True)
class Thresholded(Denoiser):
    """Dynamic thresholding: x0_hat is clipped at a quantile of its own magnitudes, then divided by it.

    ``s = max(quantile(|x0_hat|, percentile), 1)`` per sample; ``clamp(x0_hat, -s, s) / s``: data in [-1, 1].

    Source: Saharia et al. 2022, section 2.3 (arXiv 2205.11487).
    """

    denoiser: Denoiser
    percentile: float = 0.995

    def __post_init__(self) -> None:
        if not 0.0 < self.percentile <= 1.0:
            raise WorkbenchError(f"Thresholded: got percentile={self.percentile}; expected a number in (0, 1].")
        _gaussian(self.denoiser)

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.denoiser.process

    def bind(self, times: Times, cond: Any = None) -> Evaluate:
        evaluate = self.denoiser.bind(times, cond)

        def thresholded(x: Tensor, i: int) -> Tensor:
            x0_hat = evaluate(x, i)
            s = x0_hat.flatten(1).abs().quantile(self.percentile, dim=1).clamp(min=1.0)
            s = s.reshape(-1, *[1] * (x.ndim - 1))
            return x0_hat.clamp(-s, s) / s

        return thresholded


def perturbed_attention(model: NetworkDenoiser, layers: Collection[str] | None = None) -> NetworkDenoiser:
    """``model`` with the attention maps of ``layers`` replaced by the identity: the bad model of `autoguidance`.

    The weights are shared, not copied.

    Args:
        model: a network with `nn.attention.Attention` modules.
        layers: names of such modules, as ``named_modules`` gives them; None: all self-attention.

    Raises:
        WorkbenchError: no such layer.

    Source: Ahn et al. 2024, eq. 13-14 (arXiv 2403.17377).
    """
    found = [name for name, m in model.network.named_modules() if isinstance(m, Attention) and not m.cross]
    chosen = found if layers is None else list(layers)
    if not chosen or not set(chosen) <= set(found):
        raise WorkbenchError(
            f"perturbed attention: got layers={chosen}; expected names of self-attention layers of the network, which "
            f"are {found or 'none'}."
        )
    shared: dict[int, Any] = {id(v): v for v in [*model.parameters(), *model.buffers(), model.schedule, model.process]}
    twin = copy.deepcopy(model, shared)
    for name in chosen:
        twin.network.get_submodule(name).perturbed = True  # type: ignore[assignment]
    return twin


def _gaussian(denoiser: Denoiser) -> None:
    if not isinstance(denoiser.process, Gaussian):
        raise WorkbenchError(
            f"guidance: got a denoiser on {type(denoiser.process).__name__}; expected one of a Gaussian field, whose "
            "estimate is x0_hat."
        )
