"""The diffusion transformer, of images and of videos."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.attention import Attention
from diffusion_core.nn.embed import Condition, grid_positions, sinusoidal_positions


class DiT(nn.Module):
    """``(x, t, cond) -> out_channels images of x's size``, zero at the start, each of its blocks the identity.

    Patches become tokens with a fixed sinusoidal position, modulated in every block by the embedding of (t, cond). A
    video's tokens attend first within their frame, then to their own place in the other frames; the weights that
    videos add are under the names ``temporal``, so an image network's weights fit a video network of its width.

    Args:
        channels: of x.
        size: side of x in pixels, divisible by ``patch``.
        n_classes, image_channels, level, latent_dim, context_dim: keys of cond (see `Condition`); the image has x's
            frames, if any; the context is attended to in every block.
        out_channels: None: as x; learned variances take twice as many.
        patch: side of a token in pixels.
        width: features of a token; divisible by 4 and by ``heads``.
        depth: number of blocks.
        heads: of every attention.
        expansion: hidden width of a block's perceptron, in widths.
        frames: 1: x is (batch, channels, height, width); more: (batch, channels, frames, height, width).
        time_dim: size of the sinusoidal embedding of t.

    Raises:
        WorkbenchError: at construction, sizes that do not divide; when called, another size.

    Source: Peebles & Xie 2023, section 3.2, adaLN-Zero (arXiv 2212.09748); attention in space, then in time: Bertasius
    et al. 2021, "divided space-time attention" (arXiv 2102.05095), here each with its own zero gate.
    """

    position: Tensor

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
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        expansion: float = 4.0,
        frames: int = 1,
        time_dim: int = 64,
    ) -> None:
        super().__init__()
        if min(size, patch, width, depth, heads, frames) < 1 or size % patch or width % 4 or width % heads:
            raise WorkbenchError(
                f"DiT: got size={size}, patch={patch}, width={width}, heads={heads}, depth={depth}, frames={frames}; "
                "expected at least 1 of each, a size divisible by patch, a width divisible by 4 and by heads."
            )
        self.channels, self.size, self.patch, self.frames = channels, size, patch, frames
        self.condition = Condition(channels, width, time_dim, n_classes, image_channels, level, latent_dim, context_dim)
        self.inlet = nn.Linear(self.condition.inlet * patch**2, width)
        position = grid_positions(size // patch, width)[None]
        if frames > 1:
            position = position + sinusoidal_positions(frames, width)[:, None]
        self.register_buffer("position", position, persistent=False)
        hidden = round(width * expansion)
        self.blocks = nn.ModuleList(_Block(width, heads, hidden, context_dim, frames > 1) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.outlet = _zero(nn.Linear(width, (out_channels or channels) * patch**2))

    def forward(
        self,
        x: Float[Tensor, "batch channels *size"],
        t: Float[Tensor, " batch"],
        cond: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "batch out *size"]:
        of_frames = () if self.frames == 1 else (self.frames,)
        if x.shape[1:] != (self.channels, *of_frames, self.size, self.size):
            raise WorkbenchError(
                f"DiT: got samples of the shape {tuple(x.shape[1:])}; expected "
                f"{(self.channels, *of_frames, self.size, self.size)}: build the network for the size of the data."
            )
        batch = len(x)
        x, embedding, context = self.condition(x, t, cond)
        c = nn.functional.silu(embedding)
        x = x.transpose(1, 2).flatten(0, 1) if of_frames else x
        tokens = nn.functional.pixel_unshuffle(x, self.patch).flatten(2).mT
        h = self.inlet(tokens).unflatten(0, (batch, self.frames)) + self.position
        for block in self.blocks:
            h = block(h, c, context)
        shift, scale = self.modulation(c)[:, None, None].chunk(2, dim=-1)
        out = self.outlet(_modulated(self.norm(h), shift, scale)).flatten(0, 1).mT
        side = self.size // self.patch
        images = nn.functional.pixel_shuffle(out.unflatten(2, (side, side)), self.patch)
        return images.unflatten(0, (batch, self.frames)).transpose(1, 2) if of_frames else images


class _Block(nn.Module):
    """``h + gate attention(m(h))``, in space and in time, then the context, then ``h + gate perceptron(m(h))``.

    ``m(h) = layernorm(h) (1 + scale) + shift`` with every (shift, scale, gate) linear in c and zero at the start.
    """

    def __init__(self, width: int, heads: int, hidden: int, context_dim: int | None, in_time: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zero(nn.Linear(width, 6 * width))
        self.attention = Attention(width, heads)
        self.temporal = _Temporal(width, heads) if in_time else None
        self.cross = Attention(width, heads, context_dim) if context_dim else None
        if self.cross is not None:
            _zero(self.cross.out)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(
        self, h: Float[Tensor, "batch frames tokens width"], c: Float[Tensor, "batch width"], context: Tensor | None
    ) -> Float[Tensor, "batch frames tokens width"]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(c)[:, None, None].chunk(6, dim=-1)
        tokens = _modulated(self.norm(h), shift, scale)
        h = torch.addcmul(h, gate, self.attention(tokens.flatten(0, 1)).view_as(h))
        if self.temporal is not None:
            h = self.temporal(h, c)
        if self.cross is not None and context is not None:
            h = h + self.cross(self.norm(h).flatten(1, 2), context).view_as(h)
        inner = nn.functional.gelu(self.up(_modulated(self.norm(h), mlp_shift, mlp_scale)), approximate="tanh")
        return torch.addcmul(h, mlp_gate, self.down(inner))


class _Temporal(nn.Module):
    """Attention of a place's tokens across the frames, gated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zero(nn.Linear(width, 3 * width))
        self.attention = Attention(width, heads)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c)[:, None, None].chunk(3, dim=-1)
        tokens = _modulated(self.norm(h), shift, scale).transpose(1, 2)
        mixed = self.attention(tokens.flatten(0, 1)).view(tokens.shape).transpose(1, 2)
        return torch.addcmul(h, gate, mixed)


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, h, 1.0 + scale)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
