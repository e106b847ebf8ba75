"""A cascade: super-resolution by a diffusion that is told a small image, made worse on purpose.

Source: Ho et al. 2022, "Cascaded diffusion models for high fidelity image generation" (arXiv 2106.15282).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core import guidance
from diffusion_core.denoise import Denoiser, NetworkDenoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import denoising_loss
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from images.systems import Parts, Sampling, System, built_on, draw, dropped
from images.systems.low_res import LowRes


class Cascade(System):
    """Super-resolution ``p(image | enlarge(z_s), s, label)`` on a base that draws the small images.

    Training noises the small image to a random level s, ``z_s = alpha_s z + sigma_s eps``, and tells the network s;
    so it learns to trust a small image only so far, and the mistakes of the base do not add up with its own.

    Args:
        parts: what it is put together from; the parent is a `LowRes`.
        max_level: largest level in training; 0: no noise, the small image is always taken at its word.
        level: s in sampling, at most ``max_level``.
        augmentation: where z_s comes from in sampling: a finished small image, noised again ("non_truncated"), or the
            base stopped at s ("truncated").
        blur: share of small images that training blurs.
        blur_sigma: of the Gaussian blur, in small pixels, drawn evenly between these two; its kernel has 3 x 3.
        label_dropout: share of labels that training replaces by none.

    Source: Ho et al. 2022, section 4, algorithms 1 and 2 (arXiv 2106.15282). There s is one of the process's steps;
    here it is any time. Blur is theirs for large images, noise for small ones; here each has its switch.
    """

    def __init__(
        self,
        parts: Parts,
        max_level: float = 1.0,
        level: float = 0.1,
        augmentation: str = "non_truncated",
        blur: float = 0.0,
        blur_sigma: Sequence[float] = (0.4, 0.6),
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__(parts)
        if not 0.0 <= level <= max_level <= 1.0:
            raise WorkbenchError(
                f"system.level: got level={level}, max_level={max_level}; expected 0 <= level <= max_level <= 1: the "
                "network knows no level that it was not trained on."
            )
        if augmentation not in ("non_truncated", "truncated"):
            raise WorkbenchError(f"system.augmentation: got {augmentation!r}; expected non_truncated or truncated.")
        if not 0.0 <= blur <= 1.0 or len(blur_sigma) != 2 or not 0.0 < blur_sigma[0] <= blur_sigma[1]:
            raise WorkbenchError(
                f"system.blur: got blur={blur}, blur_sigma={list(blur_sigma)}; expected a share in [0, 1] and two "
                "rising widths > 0."
            )
        self.parent = built_on(parts, LowRes, "the base of a cascade (system=low_res)")
        self.max_level, self.level, self.augmentation = max_level, level, augmentation
        self.blur, self.blur_sigma, self.label_dropout = blur, blur_sigma, label_dropout
        network = parts.network(image_channels=parts.shape[0], level=True)
        self.denoiser = NetworkDenoiser(network, parts.schedule, parts.prediction, parts.clip)
        self.weighting, self.times = parts.weighting, parts.times

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        x0 = batch["image"]
        labels = dropped(batch["label"], self.n_classes, self.label_dropout, draws)
        small = self.parent.shrink(x0)
        if self.blur > 0.0:
            low, high = self.blur_sigma
            sigma = low + (high - low) * draws.uniform((len(x0),), torch.float32).to(x0.device)
            chosen = draws.uniform((len(x0),)).to(x0.device) < self.blur
            small = torch.where(chosen[:, None, None, None], blurred(small, sigma), small)
        s = self.max_level * draws.uniform((len(x0),)).to(x0.device)
        cond = self.condition(small, s, draws.normal(small.shape, small.dtype), labels)
        return denoising_loss(self.denoiser, x0, cond, draws, self.times, self.weighting)

    def condition(
        self, small: Float[Tensor, "n c h w"], s: Float[Tensor, " n"], noise: Tensor, labels: Int64[Tensor, " n"]
    ) -> dict[str, Tensor]:
        """The network's condition: the small image noised to the level ``s``, enlarged; s; the label."""
        z_s = Gaussian(self.denoiser.schedule).corrupt(small, s, noise)
        return self.told(z_s, s, labels)

    def told(self, z_s: Tensor, s: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The condition with a small image that is as noisy as ``s`` says already."""
        cond = {"image": self.parent.enlarge(z_s), "level": s.to(z_s.dtype)}
        return cond | ({"label": labels} if self.n_classes else {})

    def enhance(
        self,
        small: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        noise: Noise,
        how: Sampling,
        noisy: bool = False,
    ) -> Float[Tensor, "n channels height width"]:
        """Large images for these small ones, which are noised to ``level`` first unless they are ``noisy``."""
        s = torch.full((len(labels),), self.level, dtype=torch.float64, device=labels.device)
        if noisy:
            cond = self.told(small, s, labels)
        else:
            cond = self.condition(small, s, noise.normal(small.shape, torch.float32, small.device), labels)
        denoiser: Denoiser = self.denoiser
        if how.guidance_scale != 1.0 and self.n_classes:
            null = cond | {"label": torch.full_like(labels, self.n_classes)}
            denoiser = guidance.classifier_free(denoiser, null, how.guidance_scale)
        table = how.table(self.denoiser.schedule)
        return draw(denoiser, table, (len(labels), *self.shape), noise, labels.device, cond)

    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        truncated = self.augmentation == "truncated"
        small = self.parent.draw_small(labels, noise, how, until=self.level if truncated else 0.0)
        return self.enhance(small, labels, noise, how, noisy=truncated)


def blurred(images: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Each image under a 3 x 3 Gaussian of its own width, in pixels; the border is repeated."""
    side = torch.exp(-0.5 / sigma**2)
    weights = torch.stack([side, torch.ones_like(side), side], 1) / (1.0 + 2.0 * side)[:, None]
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = padded.unfold(2, 3, 1)
    down = (rows * weights[:, None, None, None, :]).sum(-1)
    return (down.unfold(3, 3, 1) * weights[:, None, None, None, :]).sum(-1)
