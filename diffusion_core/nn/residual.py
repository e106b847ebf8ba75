"""Convolutional residual blocks of images, which may change the resolution and may be modulated."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Conditioning = Literal["add", "scale_shift"]
"""How a vector enters a block: added before its second norm, or scaling and shifting after it."""

Direction = Literal["down", "up"]
"""Halve the side or double it."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm in as many groups as divide the channels, 8 at most."""
    return nn.GroupNorm(next(groups for groups in range(8, 0, -1) if channels % groups == 0), channels)


def convolution(inlet: int, outlet: int, kernel: int = 3, zero: bool = False) -> nn.Conv2d:
    """A convolution that keeps the side; ``zero``: its weights start at 0."""
    layer = nn.Conv2d(inlet, outlet, kernel, padding=kernel // 2)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _resize(h: Tensor, direction: Direction) -> Tensor:
    return nn.functional.avg_pool2d(h, 2) if direction == "down" else nn.functional.interpolate(h, scale_factor=2.0)


class Resample(nn.Module):
    """Halve the side by a strided convolution, or double it by repeating pixels before a convolution.

    Attributes:
        modulation: numbers per sample that modulate it: none.

    Source: Ho et al. 2020, appendix B (arXiv 2006.11239).
    """

    modulation = 0

    def __init__(self, channels: int, direction: Direction) -> None:
        super().__init__()
        self.direction = direction
        self.convolution = nn.Conv2d(channels, channels, 3, stride=2 if direction == "down" else 1, padding=1)

    def forward(
        self, h: Float[Tensor, "batch channels height width"], modulation: Tensor | None = None
    ) -> Float[Tensor, "batch channels tall wide"]:
        return self.convolution(h if self.direction == "down" else _resize(h, "up"))


class ResidualBlock(nn.Module):
    """``skip(h) + W2 silu(m(norm(W1 silu(norm(h)))))``, W zero at first: the block begins as its skip.

    The modulation m is ``norm(. + shift)`` ("add") or ``norm(.) (1 + scale) + shift`` ("scale_shift").

    Args:
        inlet, outlet: channels; where they differ the skip is a 1x1 convolution.
        conditioning: how the modulation enters; None: it has none.
        direction: the side is changed after the first SiLU, and on the skip alike; None: kept.
        residual_scale: the sum is divided by sqrt 2, which keeps the variance of a sum of equals.

    Attributes:
        modulation: numbers per sample that modulate it, channels (the shift) or twice as many (scale, shift).

    Source: Zagoruyko & Komodakis 2016 (arXiv 1605.07146) as used by Ho et al. 2020, appendix B (arXiv 2006.11239);
    scale-shift, resolution change and sqrt 2: Dhariwal & Nichol 2021, section 3 (arXiv 2105.05233), the last two
    after Brock et al. 2019 and Song et al. 2021.
    """

    def __init__(
        self,
        inlet: int,
        outlet: int,
        conditioning: Conditioning | None = None,
        direction: Direction | None = None,
        residual_scale: bool = False,
    ) -> None:
        super().__init__()
        self.conditioning, self.direction = conditioning, direction
        self.modulation = {None: 0, "add": outlet, "scale_shift": 2 * outlet}[conditioning]
        self.factor = 0.5**0.5 if residual_scale else 1.0
        self.first_norm, self.first = group_norm(inlet), convolution(inlet, outlet)
        self.second_norm, self.second = group_norm(outlet), convolution(outlet, outlet, zero=True)
        self.skip = convolution(inlet, outlet, kernel=1) if inlet != outlet else nn.Identity()

    def forward(
        self, h: Float[Tensor, "batch inlet height width"], modulation: Float[Tensor, "batch m"] | None = None
    ) -> Float[Tensor, "batch outlet tall wide"]:
        inner = nn.functional.silu(self.first_norm(h))
        if self.direction is not None:
            inner, h = _resize(inner, self.direction), _resize(h, self.direction)
        inner = self.first(inner)
        if modulation is None or self.conditioning is None:
            inner = self.second_norm(inner)
        elif self.conditioning == "add":
            inner = self.second_norm(inner + modulation[..., None, None])
        else:
            scale, shift = modulation[..., None, None].chunk(2, dim=1)
            inner = torch.addcmul(shift, self.second_norm(inner), 1.0 + scale)
        inner = self.second(nn.functional.silu(inner))
        return self.skip(h) + inner if self.factor == 1.0 else self.factor * (self.skip(h) + inner)
