"""The behaviour transformer: a class of chunks, and an offset from its centre."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import Grid
from diffusion_core.loss import Draws
from diffusion_core.nn.embed import sinusoidal_positions
from diffusion_core.noise import Noise
from diffusion_core.solvers import Table
from policy.heads.head import Head, Parts


class BehaviourTransformer(Head):
    """``p(bin | cond)`` over k-means centres of chunks, plus an offset that is regressed for every bin.

    A causal transformer reads the observations; the token of the newest gives the logits (focal loss) and the offsets
    (squared error of the true bin's). Shafiullah et al. bin single actions; here a bin is a whole chunk, so that it is
    executed like those of all other heads.

    Args:
        bins: centres, found by k-means on the training chunks.
        width, depth, heads: of the transformer.
        gamma: of the focal loss.
        offset_weight: of the squared error beside it.

    Raises:
        WorkbenchError: fewer chunks than bins.

    Source: Shafiullah et al. 2022, section 3 (arXiv 2206.11251).
    """

    denoises = False
    centres: Tensor

    def __init__(
        self,
        parts: Parts,
        bins: int = 64,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        gamma: float = 2.0,
        offset_weight: float = 100.0,
    ) -> None:
        super().__init__()
        self.shape, self.bins, self.gamma, self.offset_weight = parts.shape, bins, gamma, offset_weight
        self.inlet = nn.Linear(parts.shape.features, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.trunk = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        size = parts.shape.horizon * parts.shape.dim
        self.logits, self.offsets = nn.Linear(width, bins), nn.Linear(width, bins * size)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)
        self.register_buffer("centres", _centres(parts.chunks, bins, size))
        steps = parts.shape.n_obs_steps
        self.register_buffer("position", sinusoidal_positions(steps, width), persistent=False)
        mask = nn.Transformer.generate_square_subsequent_mask(steps)
        self.register_buffer("mask", mask, persistent=False)

    def arrange(self, grid: Grid) -> Grid:
        return grid

    def loss(
        self, chunk: Float[Tensor, "batch horizon dim"], cond: Float[Tensor, "batch cond"], draws: Draws
    ) -> Float[Tensor, " batch"]:
        logits, offsets = self._read(cond)
        flat = chunk.flatten(1)
        true = torch.cdist(flat, self.centres).argmin(1)
        log_p = logits.log_softmax(1).gather(1, true[:, None]).squeeze(1)
        focal = -((1.0 - log_p.exp()) ** self.gamma) * log_p
        rows = torch.arange(len(chunk), device=chunk.device)
        error = flat - self.centres[true] - offsets[rows, true]
        return focal + self.offset_weight * (error**2).mean(1)

    def draw(
        self, cond: Float[Tensor, "batch cond"], table: Table | None, noise: Noise
    ) -> Float[Tensor, "batch horizon dim"]:
        logits, offsets = self._read(cond)
        below = logits.double().softmax(1).cumsum(1)
        u = noise.uniform((len(cond), 1), torch.float64, cond.device)
        chosen = torch.searchsorted(below, u * below[:, -1:]).clamp(max=self.bins - 1).squeeze(1)
        rows = torch.arange(len(cond), device=cond.device)
        flat = self.centres[chosen] + offsets[rows, chosen]
        return flat.unflatten(1, (self.shape.horizon, self.shape.dim))

    def _read(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, bins) and offsets (batch, bins, size)."""
        h = self.inlet(cond.unflatten(1, (self.shape.n_obs_steps, self.shape.features)))
        h = self.norm(self.trunk(h + self.position.to(h), self.mask.to(h), is_causal=True)[:, -1])
        return self.logits(h), self.offsets(h).unflatten(1, (self.bins, -1))


def _centres(chunks: Tensor | None, bins: int, size: int) -> Tensor:
    """k-means of the chunks; NaN, for a checkpoint to fill, where there are none."""
    from sklearn.cluster import MiniBatchKMeans

    if chunks is None:
        return torch.full((bins, size), torch.nan)
    if len(chunks) < bins:
        raise WorkbenchError(f"head.bins: got {bins} for {len(chunks)} chunks; expected fewer bins, or more data.")
    found = MiniBatchKMeans(bins, random_state=0, n_init=3, batch_size=4096).fit(chunks.flatten(1).cpu().numpy())
    return torch.as_tensor(found.cluster_centers_, dtype=torch.float32)
