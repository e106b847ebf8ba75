"""A residual multilayer perceptron with adaptive layer norm, for short sequences seen as one vector.

Matrix products are what a CPU does best: at horizon 16 a step of this network costs a fraction of a temporal
U-Net's of the same size (``benchmarks/``).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.nn.embed import Sinusoidal


class ResidualMLP(nn.Module):
    """``(x, t, cond) -> x-shaped``, a stack of pre-norm residual blocks modulated by (t, cond).

    Each block is ``h + gate * W2 silu(W1 (layernorm(h) (1 + scale) + shift))`` with (shift, scale, gate) a
    linear function of the embedded condition, zero at the start (adaLN-zero), so that the network begins as
    the identity on its trunk.

    Args:
        horizon, dim: shape of x without the batch.
        cond_dim: size of the condition vector.
        width: trunk width.
        depth: number of blocks.
        expansion: hidden width of a block, in trunk widths.
        embed_dim: width of the embedded (t, cond); small, since the modulation costs embed_dim x 3 width x depth.
        token_times: t may be (batch, horizon), a time of every token, which is then a feature of the token; the blocks
            are modulated by their mean.

    Source: Peebles & Xie 2023, section 3.2, adaLN-Zero (arXiv 2212.09748), on one token.
    """

    def __init__(
        self,
        horizon: int,
        dim: int,
        cond_dim: int,
        width: int = 256,
        depth: int = 4,
        expansion: float = 2.0,
        embed_dim: int = 128,
        token_times: bool = False,
    ) -> None:
        super().__init__()
        self.token_times = token_times
        self.time = Sinusoidal(128)
        self.condition = nn.Sequential(
            nn.Linear(128 + cond_dim, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim), nn.SiLU()
        )
        self.inlet = nn.Linear(horizon * (dim + 2 * token_times) + cond_dim, width)
        self.blocks = nn.ModuleList(_Block(width, round(width * expansion)) for _ in range(depth))
        # one product for all blocks' modulation: fewer, larger matrix products
        self.modulation = nn.Linear(embed_dim, depth * 3 * width)
        self.norm = nn.LayerNorm(width)
        self.outlet = nn.Linear(width, horizon * dim)
        for layer in (self.modulation, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Float[Tensor, "batch horizon dim"],
        t: Float[Tensor, "batch *horizon"],
        cond: Float[Tensor, "batch cond"],
    ) -> Float[Tensor, "batch horizon dim"]:
        seen = x
        if self.token_times:
            own = t.reshape(len(t), -1).expand(x.shape[:2])
            # with the sine two numbers tell early levels apart, too
            seen, t = torch.cat([x, torch.stack([2.0 * own - 1.0, (torch.pi * own).sin()], -1)], -1), own.mean(1)
        c = self.condition(torch.cat([self.time(t), cond], dim=1))
        modulations = self.modulation(c).chunk(len(self.blocks), dim=1)
        h = self.inlet(torch.cat([seen.flatten(1), cond], dim=1))
        for block, modulation in zip(self.blocks, modulations, strict=True):
            h = block(h, modulation)
        return self.outlet(self.norm(h)).reshape(x.shape)


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=1)
        inner = torch.addcmul(shift, self.norm(h), 1.0 + scale)
        return torch.addcmul(h, gate, self.down(nn.functional.silu(self.up(inner))))
