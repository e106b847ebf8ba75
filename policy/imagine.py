"""Imagining what actions do: a diffusion over the next picture, given the last ones and the actions in between.

Rolled out, it sees its own pictures. So in training the last pictures carry noise of a level that the network is told:
what is a little wrong must not become more so with every step.

Source: Alonso et al. 2024 (DIAMOND, arXiv 2405.12399); the noise on what is seen: Valevski et al. 2024, section 3.2.1
(GameNGen, arXiv 2408.14837).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from diffusion_core import sample
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.grid import uniform
from diffusion_core.loss import Draws, denoising_loss
from diffusion_core.nn.unet2d import UNet2d
from diffusion_core.noise import Noise
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import RectifiedFlow
from diffusion_core.solvers import ddim

SEEN = 2
"""Pictures that the next one depends on."""


@dataclass(frozen=True)
class Recorded:
    """Pictures of episodes, one after the other, and the places that were commanded.

    Args:
        pictures: (steps, 3, size, size).
        targets: (steps, 2), where the finger was sent from each picture's moment on, in units of the picture, 0 to 1.
        starts: (n,) moments that have ``SEEN - 1`` pictures before them and one after, ``stride`` steps apart.
        stride: control steps from picture to picture.
    """

    pictures: UInt8[Tensor, "steps 3 size size"]
    targets: Float[Tensor, "steps 2"]
    starts: Int64[Tensor, " n"]
    stride: int

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, rows: Int64[Tensor, " batch"]) -> dict[str, Tensor]:
        """``seen`` (batch, SEEN, 3, size, size) and ``next`` in [-1, 1], ``targets`` (batch, stride, 2)."""
        now = self.starts[rows]
        at = now[:, None] + self.stride * torch.arange(1 - SEEN, 2)
        pictures = in_units(self.pictures[at])
        targets = self.targets[now[:, None] + torch.arange(self.stride)]
        return {"seen": pictures[:, :-1], "next": pictures[:, -1], "targets": targets}


class World(nn.Module):
    """``p(next picture | last pictures, actions)``: the change of the picture diffuses, and begins as none.

    Args:
        size: side of a picture, in pixels.
        stride: actions from picture to picture; each is shown to the network as a spot where the finger is sent.
        widths: of the network.
        most: largest noise on the pictures that are seen, in their units; 0: they are shown as they are.
        spot: width of a spot, in pictures.
    """

    def __init__(self, size: int, stride: int, widths: tuple[int, ...], most: float = 0.5, spot: float = 0.05) -> None:
        super().__init__()
        self.size, self.stride, self.most, self.spot = size, stride, most, spot
        shown = 3 * SEEN + stride
        network = UNet2d(3, size, image_channels=shown, level=True, widths=widths, attention=(8,), heads=2)
        self.denoiser = NetworkDenoiser(network, RectifiedFlow(), "x0")

    def forward(self, batch: Mapping[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each sample of `Recorded`."""
        seen = batch["seen"]
        level = draws.uniform((len(seen),)).to(seen.dtype)
        noisy = seen + self.most * level[:, None, None, None, None] * draws.normal(seen.shape, seen.dtype)
        return denoising_loss(
            self.denoiser, batch["next"] - seen[:, -1], self.told(noisy, batch["targets"], level), draws
        )

    def told(
        self, seen: Float[Tensor, "batch k 3 s s"], targets: Float[Tensor, "batch stride 2"], level: Tensor
    ) -> dict[str, Tensor]:
        """The network's condition."""
        middle = (torch.arange(self.size, device=seen.device) + 0.5) / self.size
        x, y = targets[..., 0, None, None], targets[..., 1, None, None]
        away = (middle[None, None, None, :] - x) ** 2 + (middle[None, None, :, None] - y) ** 2
        spots = torch.exp(-away / (2.0 * self.spot**2)).to(seen.dtype)
        return {"image": torch.cat([seen.flatten(1, 2), spots], 1), "level": level}

    @torch.no_grad()
    def imagine(
        self,
        seen: Float[Tensor, "batch k 3 s s"],
        targets: Float[Tensor, "batch frames stride 2"],
        noise: Noise,
        steps: int = 1,
    ) -> Float[Tensor, "batch frames 3 s s"]:
        """Picture after picture, each from the imagined ones before it.

        Args:
            seen: the true last pictures, in [-1, 1].
            targets: of the actions between pictures.
            steps: denoising steps of a picture.
        """
        table = ddim(self.denoiser.schedule, uniform(steps))
        found = list(seen.unbind(1))
        level = torch.zeros(len(seen), dtype=seen.dtype, device=seen.device)
        for own in targets.unbind(1):
            cond = self.told(torch.stack(found[-SEEN:], 1), own, level)
            z = noise.normal(found[-1].shape, seen.dtype, seen.device)
            start = Gaussian(self.denoiser.schedule).prior(z, float(table.times[0]))
            change = sample.sample(self.denoiser, table, start, cond, noise)
            found.append((found[-1] + change).clamp(-1.0, 1.0))
        return torch.stack(found[seen.shape[1] :], 1)


def in_units(pictures: UInt8[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Bytes to [-1, 1]."""
    return pictures.float() / 127.5 - 1.0
