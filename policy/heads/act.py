"""ACT: a conditional variational autoencoder of chunks, made of transformers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.grid import Grid
from diffusion_core.loss import Draws
from diffusion_core.nn.embed import sinusoidal_positions
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from policy.heads.head import Head, Parts


class Act(Head):
    """``chunk = decoder(z, cond)``, trained on ``|chunk - target|_1 + beta KL(q(z | chunk, cond) | N(0, 1))``.

    In training z is the style that an encoder reads from the chunk; when acting it is 0. No dropout: everything random
    of a training step comes from its own generator.

    Args:
        width, heads: of all transformers.
        encoder_depth, decoder_depth: layers.
        latent: numbers of z.
        beta: weight of the KL divergence, which is summed over z.

    Source: Zhao et al. 2023, section 4 (arXiv 2304.13705); temporal ensembling is the runtime's.
    """

    denoises = False
    queries: Tensor
    places: Tensor

    def __init__(
        self,
        parts: Parts,
        width: int = 128,
        heads: int = 4,
        encoder_depth: int = 2,
        decoder_depth: int = 3,
        latent: int = 32,
        beta: float = 10.0,
    ) -> None:
        super().__init__()
        self.shape, self.latent, self.beta = parts.shape, latent, beta

        def encoder(depth: int) -> nn.TransformerEncoder:
            layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True, norm_first=True)
            return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

        self.observed = nn.Linear(parts.shape.features, width)
        self.acted = nn.Linear(parts.shape.dim, width)
        self.style, self.styled = encoder(encoder_depth), nn.Linear(width, 2 * latent)
        self.summary = nn.Parameter(torch.zeros(width))
        self.latent_in = nn.Linear(latent, width)
        self.memory = encoder(encoder_depth)
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, decoder_depth, nn.LayerNorm(width))
        self.outlet = nn.Linear(width, parts.shape.dim)
        for name, length in (("queries", parts.shape.horizon), ("places", 1 + parts.shape.n_obs_steps)):
            self.register_buffer(name, sinusoidal_positions(length, width), persistent=False)

    def arrange(self, grid: Grid) -> Grid:
        return grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        tokens = torch.cat([self._tokens(cond, self.summary), self.acted(chunk) + self.queries.to(chunk)], 1)
        mean, log_var = self.styled(self.style(tokens)[:, 0]).chunk(2, 1)
        z = mean + (0.5 * log_var).exp() * draws.normal(mean.shape, mean.dtype)
        kl = 0.5 * (mean**2 + log_var.exp() - 1.0 - log_var).sum(1)
        return (self._decoded(z, cond) - chunk).abs().flatten(1).mean(1) + self.beta * kl

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        return self._decoded(cond.new_zeros(len(cond), self.latent), cond)

    def _tokens(self, cond: Tensor, first: Tensor) -> Tensor:
        """One token put before those of the observations."""
        seen = self.observed(cond.unflatten(1, (self.shape.n_obs_steps, self.shape.features)))
        return torch.cat([first.expand(len(cond), seen.shape[-1])[:, None], seen], 1) + self.places.to(seen)

    def _decoded(self, z: Tensor, cond: Tensor) -> Tensor:
        memory = self.memory(self._tokens(cond, self.latent_in(z)))
        queries = self.queries.to(memory).expand(len(cond), *self.queries.shape)
        return self.outlet(self.decoder(queries, memory))
