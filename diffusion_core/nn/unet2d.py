"""The U-Net of image diffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.attention import Attention
from diffusion_core.nn.embed import Condition, grid_positions
from diffusion_core.nn.residual import Conditioning, Direction, Resample, ResidualBlock, convolution, group_norm


class UNet2d(nn.Module):
    """``(x, t, cond) -> out_channels images of x's size``, zero at the start.

    Residual blocks at every resolution, each of the way down joined to one of the way up; attention among the pixels
    of coarse maps and in the middle. The convolutions know nothing of a pixel's place beyond the border's zeros, so
    the attended tokens carry a learned position, which starts from the sinusoids of `grid_positions`.

    Args:
        channels: of x.
        size: side of x in pixels; divisible by ``patch * 2 ** (len(widths) - 1)``.
        n_classes, image_channels, level, latent_dim, context_dim: keys of cond (see `Condition`); the context is
            attended to wherever there is self-attention.
        out_channels: None: as x; learned variances take twice as many.
        widths: channels per resolution, finest first.
        blocks: residual blocks per resolution on the way down; one more on the way up.
        attention: sides, in pixels after ``patch``, of the maps that have attention; those that do not occur have no
            effect. The middle always has it.
        heads: of every attention; divides the widths of the attended maps.
        conditioning: of the blocks on time and cond: DDPM's "add", ADM's "scale_shift".
        resample: by strided convolution, "conv", or within a residual block, "block".
        residual_scale: every residual sum is divided by sqrt 2.
        time_dim: size of the sinusoidal embedding of t; the embedding is 4 times as wide.
        patch: the network sees ``patch x patch`` pixels as channels of one.

    Raises:
        WorkbenchError: at construction, sizes that do not divide or unknown words; when called, another image size.

    Source: Ho et al. 2020, appendix B (arXiv 2006.11239); the switches: Dhariwal & Nichol 2021, section 3 (arXiv
    2105.05233); cross-attention: Rombach et al. 2022, section 3.3 (arXiv 2112.10752). Group norms have 8 groups where
    DDPM's have 32, there is no dropout, and the learned position is ours.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        n_classes: int = 0,
        out_channels: int | None = None,
        image_channels: int = 0,
        level: bool = False,
        latent_dim: int = 0,
        context_dim: int | None = None,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        attention: Sequence[int] = (4, 8),
        heads: int = 2,
        conditioning: Conditioning = "scale_shift",
        resample: Literal["conv", "block"] = "conv",
        residual_scale: bool = False,
        time_dim: int = 64,
        patch: int = 1,
    ) -> None:
        super().__init__()
        _require(size, patch, widths, blocks)
        _require_word("conditioning", conditioning, ("add", "scale_shift"))
        _require_word("resample", resample, ("conv", "block"))
        self.channels, self.size, self.patch = channels, size, patch
        self.condition = Condition(
            channels, 4 * time_dim, time_dim, n_classes, image_channels, level, latent_dim, context_dim
        )
        self.positions = nn.ParameterDict()

        def layer(inlet: int, outlet: int, side: int, attended: bool) -> _Layer:
            block = ResidualBlock(inlet, outlet, conditioning, None, residual_scale)
            if not attended:
                return _Layer(block)
            if str(side) not in self.positions:
                # the table is made for a multiple of four features
                self.positions[str(side)] = nn.Parameter(grid_positions(side, -(-outlet // 4) * 4)[:, :outlet].clone())
            attend = _Attend(outlet, heads, None, residual_scale)
            cross = _Attend(outlet, heads, context_dim, residual_scale) if context_dim else None
            return _Layer(block, str(side), attend, cross)

        def resized(width: int, direction: Direction) -> nn.Module:
            if resample == "conv":
                return Resample(width, direction)
            return ResidualBlock(width, width, conditioning, direction, residual_scale)

        width, side = widths[0], size // patch
        self.inlet = convolution(self.condition.inlet * patch**2, width)
        self.down, self.up, joined = nn.ModuleList(), nn.ModuleList(), [width]
        for i, outlet in enumerate(widths):
            for _ in range(blocks):
                self.down.append(layer(width, outlet, side, side in attention))
                width = outlet
                joined.append(width)
            if i + 1 < len(widths):
                self.down.append(resized(width, "down"))
                joined.append(width)
                side //= 2
        self.middle = nn.ModuleList([layer(width, width, side, True), layer(width, width, side, False)])
        for i, outlet in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(layer(width + joined.pop(), outlet, side, side in attention))
                width = outlet
            if i:
                self.up.append(resized(width, "up"))
                side *= 2
        # one product for the modulation of all blocks: fewer, larger matrix products
        self.sizes = [int(part.modulation) for part in (*self.down, *self.middle, *self.up)]  # type: ignore[arg-type]
        self.modulation = nn.Linear(4 * time_dim, sum(self.sizes))
        self.norm = group_norm(width)
        self.outlet = convolution(width, (out_channels or channels) * patch**2, zero=True)

    def forward(
        self,
        x: Float[Tensor, "batch channels size size"],
        t: Float[Tensor, " batch"],
        cond: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "batch out size size"]:
        if x.shape[1:] != (self.channels, self.size, self.size):
            raise WorkbenchError(
                f"UNet2d: got images of the shape {tuple(x.shape[1:])}; expected "
                f"{(self.channels, self.size, self.size)}: build the network for the size of the data."
            )
        x, embedding, context = self.condition(x, t, cond)
        modulations = iter(self.modulation(nn.functional.silu(embedding)).split(self.sizes, dim=1))
        h = self.inlet(nn.functional.pixel_unshuffle(x, self.patch))
        joined = [h]
        for part in self.down:
            h = self._apply_part(part, h, next(modulations), context)
            joined.append(h)
        for part in self.middle:
            h = self._apply_part(part, h, next(modulations), context)
        for part in self.up:
            if isinstance(part, _Layer):
                h = torch.cat([h, joined.pop()], dim=1)
            h = self._apply_part(part, h, next(modulations), context)
        return nn.functional.pixel_shuffle(self.outlet(nn.functional.silu(self.norm(h))), self.patch)

    def _apply_part(self, part: nn.Module, h: Tensor, modulation: Tensor, context: Tensor | None) -> Tensor:
        if not isinstance(part, _Layer):
            return part(h, modulation)
        return part(h, modulation, None if part.side is None else self.positions[part.side], context)


def _require(size: int, patch: int, widths: Sequence[int], blocks: int) -> None:
    if min(*widths, len(widths), blocks, patch) < 1:
        raise WorkbenchError(
            f"UNet2d: got widths={list(widths)}, blocks={blocks}, patch={patch}; expected at least one of each."
        )
    factor = patch * 2 ** (len(widths) - 1)
    if size < factor or size % factor:
        raise WorkbenchError(
            f"UNet2d: got size={size}, patch={patch}, {len(widths)} widths; expected a size divisible by {factor}: "
            "resize the images, or take fewer widths."
        )


def _require_word(name: str, got: str, expected: tuple[str, ...]) -> None:
    if got not in expected:
        raise WorkbenchError(f"UNet2d: got {name}={got!r}; expected {' or '.join(expected)}: choose one.")


class _Layer(nn.Module):
    """A residual block, then attention among its pixels (``side``: the key of their positions), then to the context."""

    def __init__(
        self,
        block: ResidualBlock,
        side: str | None = None,
        attend: _Attend | None = None,
        cross: _Attend | None = None,
    ) -> None:
        super().__init__()
        self.block, self.side, self.attend, self.cross = block, side, attend, cross
        self.modulation = block.modulation

    def forward(self, h: Tensor, modulation: Tensor, position: Tensor | None, context: Tensor | None) -> Tensor:
        h = self.block(h, modulation)
        if self.attend is not None:
            h = self.attend(h, position)
        if self.cross is not None and context is not None:
            h = self.cross(h, position, context)
        return h


class _Attend(nn.Module):
    """``h + attention(norm(h) + position)``, zero at the start."""

    def __init__(self, dim: int, heads: int, context_dim: int | None, residual_scale: bool) -> None:
        super().__init__()
        self.norm = group_norm(dim)
        self.attention = Attention(dim, heads, context_dim)
        nn.init.zeros_(self.attention.out.weight)
        nn.init.zeros_(self.attention.out.bias)
        self.factor = 0.5**0.5 if residual_scale else 1.0

    def forward(self, h: Tensor, position: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.norm(h).flatten(2).mT + position
        mixed = self.attention(tokens, context).mT.reshape(h.shape)
        return h + mixed if self.factor == 1.0 else self.factor * (h + mixed)
