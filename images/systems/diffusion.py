"""Diffusion of pixels: DDPM, improved DDPM, ADM, v-prediction, zero terminal SNR, rectified flow, DiT.

These differ in what `Parts` holds (schedule, prediction, network, times) and in three switches here.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core import grid, guidance
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.likelihood import Steps, discretised, hybrid_loss, vlb_loss
from diffusion_core.loss import denoising_loss
from diffusion_core.noise import Noise
from images.systems import Parts, Sampling, System, draw, dropped

Objective = Literal["simple", "vlb", "hybrid"]
Label = dict[str, Int64[Tensor, " batch"]] | None


class Diffusion(System):
    """``p(image | label)`` as a Gaussian diffusion.

    Args:
        parts: what it is put together from.
        objective: "simple" (the weighted squared error), "vlb" (the variational bound), "hybrid" (both, where the
            bound teaches the variance alone).
        learned_variance: the network also gives the variance of each step, between the two extremes.
        n_train: steps of the chain that "vlb" and "hybrid" train.
        levels: grey levels of a channel, for the decoder of the bound.
        label_dropout: share of labels that training replaces by none, so that guidance is possible.
        conditional: whether the network is told the label at all.

    Source: Ho et al. 2020 (arXiv 2006.11239); Nichol & Dhariwal 2021 (arXiv 2102.09672); Ho & Salimans 2022
    (arXiv 2207.12598).
    """

    def __init__(
        self,
        parts: Parts,
        objective: Objective = "simple",
        learned_variance: bool = False,
        n_train: int = 1000,
        levels: int = 256,
        label_dropout: float = 0.1,
        conditional: bool = True,
    ) -> None:
        super().__init__(parts)
        if objective not in ("simple", "vlb", "hybrid"):
            raise WorkbenchError(f"system.objective: got {objective!r}; expected simple, vlb or hybrid.")
        if not 0.0 <= label_dropout <= 1.0:
            raise WorkbenchError(f"system.label_dropout: got {label_dropout}; expected a share in [0, 1].")
        if objective == "hybrid" and not learned_variance:
            raise WorkbenchError(
                "system.objective: got hybrid with learned_variance=false; expected learned_variance=true: the bound "
                "of the hybrid loss teaches nothing but the variance."
            )
        self.objective, self.label_dropout = objective, label_dropout
        self.conditional = conditional and parts.n_classes > 0
        channels = parts.shape[0]
        network = parts.network(
            n_classes=parts.n_classes if self.conditional else 0,
            out_channels=2 * channels if learned_variance else channels,
        )
        axis = 1 if learned_variance else None
        self.denoiser = NetworkDenoiser(network, parts.schedule, parts.prediction, parts.clip, axis)
        self.weighting, self.times = parts.weighting, parts.times
        self.n_train, self.levels = n_train, levels

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        x0, labels = batch["image"], batch["label"]
        cond = self.condition(dropped(labels, self.n_classes, self.label_dropout, draws))
        if self.objective == "simple":
            return denoising_loss(self.denoiser, x0, cond, draws, self.times, self.weighting)
        loss = vlb_loss if self.objective == "vlb" else hybrid_loss
        return loss(self.denoiser, self.chain(self.n_train), x0, cond, draws)

    def condition(self, labels: Int64[Tensor, " batch"]) -> Label:
        """The network's condition."""
        return {"label": labels} if self.conditional else None

    def chain(self, steps: int, variance: Literal["small", "large"] = "small") -> Steps:
        """The chain of ``steps`` ancestral steps, for the bound; a learned variance wins over ``variance``."""
        learned = self.denoiser.variance_axis is not None
        decoder = partial(discretised, levels=self.levels)
        times = grid.trailing(self.n_train, steps)
        return Steps(self.denoiser.schedule, times, "learned" if learned else variance, decoder)

    def guided(self, labels: Int64[Tensor, " n"], scale: float) -> Denoiser:
        """The denoiser under classifier-free guidance; with scale 1 or without labels the network's own."""
        if scale == 1.0 or not self.conditional:
            return self.denoiser
        null = self.condition(torch.full_like(labels[:1], self.n_classes))
        return guidance.classifier_free(self.denoiser, null, scale)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        table, denoiser = how.table(self.denoiser.schedule), self.guided(labels, how.guidance_scale)
        if table.noise_large is not None and isinstance(denoiser, NetworkDenoiser):
            denoiser = denoiser.with_variance()
        return draw(denoiser, table, (len(labels), *self.shape), noise, labels.device, self.condition(labels))
