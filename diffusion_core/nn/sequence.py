"""Transformers of short sequences, such as action chunks: DP-Transformer and DiT."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.attention import Attention
from diffusion_core.nn.embed import Sinusoidal, sinusoidal_positions


class SequenceTransformer(nn.Module):
    """``(x, t, cond) -> x-shaped``: the sequence's tokens attend to those before them, and to time and condition.

    A decoder whose memory holds a token for t and one for each part of the condition. No dropout: everything random
    of a training step comes from its own generator.

    Args:
        horizon, dim: shape of x without the batch.
        cond_dim: size of the condition vector.
        cond_tokens: equal parts that the condition is cut into; an observation each.
        width, depth, heads: of the decoder.
        causal: a token sees no later ones.

    Source: Chi et al. 2023, section 3.1, "time-series diffusion transformer" (arXiv 2303.04137).
    """

    positions: Tensor
    places: Tensor

    def __init__(
        self,
        horizon: int,
        dim: int,
        cond_dim: int,
        cond_tokens: int = 1,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        causal: bool = True,
    ) -> None:
        super().__init__()
        _check("SequenceTransformer", width, heads, depth, cond_dim, cond_tokens)
        self.cond_tokens, self.causal = cond_tokens, causal
        self.inlet, self.observed = nn.Linear(dim, width), nn.Linear(cond_dim // cond_tokens, width)
        self.time = nn.Sequential(Sinusoidal(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, depth, nn.LayerNorm(width))
        self.outlet = nn.Linear(width, dim)
        self.register_buffer("positions", sinusoidal_positions(horizon, width), persistent=False)
        self.register_buffer("places", sinusoidal_positions(cond_tokens + 1, width), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch horizon dim"],
        t: Float[Tensor, " batch"],
        cond: Float[Tensor, "batch cond"],
    ) -> Float[Tensor, "batch horizon dim"]:
        seen = self.observed(cond.unflatten(1, (self.cond_tokens, -1)))
        memory = torch.cat([self.time(t)[:, None], seen], 1) + self.places.to(x)
        h = self.inlet(x) + self.positions.to(x)
        mask = None
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device, dtype=x.dtype)
        return self.outlet(self.decoder(h, memory, tgt_mask=mask, tgt_is_causal=self.causal))


class SequenceDiT(nn.Module):
    """``(x, t, cond) -> x-shaped``: every token sees all, each block is modulated by (t, cond), adaLN-zero.

    Args:
        horizon, dim: shape of x without the batch.
        cond_dim: size of the condition vector.
        width, depth, heads: of the transformer.
        token_times: t may be (batch, horizon), a time of every token, which then modulates that token.

    Source: Peebles & Xie 2023, section 3.2, adaLN-Zero (arXiv 2212.09748); as a policy: Dasari et al. 2024
    (arXiv 2410.10088).
    """

    positions: Tensor

    def __init__(
        self,
        horizon: int,
        dim: int,
        cond_dim: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        token_times: bool = False,
    ) -> None:
        super().__init__()
        _check("SequenceDiT", width, heads, depth)
        self.token_times = token_times
        self.inlet = nn.Linear(dim, width)
        self.time = Sinusoidal(width)
        self.embed = nn.Sequential(nn.Linear(width + cond_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.outlet = nn.Linear(width, 2 * width), nn.Linear(width, dim)
        for layer in (self.modulation, self.outlet):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("positions", sinusoidal_positions(horizon, width), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch horizon dim"],
        t: Float[Tensor, "batch *horizon"],
        cond: Float[Tensor, "batch cond"],
    ) -> Float[Tensor, "batch horizon dim"]:
        times = t.reshape(len(t), -1)
        time = self.time(times.flatten()).unflatten(0, times.shape)
        c = self.embed(torch.cat([time, cond[:, None].expand(-1, times.shape[1], -1)], -1))
        h = self.inlet(x) + self.positions.to(x)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).chunk(2, -1)
        return self.outlet(self.norm(h) * (1.0 + scale) + shift)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, later_shift, later_scale, later_gate = self.modulation(c).chunk(6, -1)
        h = h + gate * self.attention(self.norm(h) * (1.0 + scale) + shift)
        return h + later_gate * self.perceptron(self.norm(h) * (1.0 + later_scale) + later_shift)


def _check(name: str, width: int, heads: int, depth: int, cond_dim: int = 0, cond_tokens: int = 1) -> None:
    if min(width, heads, depth, cond_tokens) < 1 or width % heads or width % 4 or cond_dim % cond_tokens:
        raise WorkbenchError(
            f"{name}: got width={width}, heads={heads}, depth={depth}, a condition of {cond_dim} in {cond_tokens} "
            "tokens; expected at least 1 of each, a width divisible by 4 and by heads, a condition divisible by its "
            "tokens."
        )
