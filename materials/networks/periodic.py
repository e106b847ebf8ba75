"""A transformer of periodic structures: atoms, a token for the lattice, and what lies between every two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import Sinusoidal
from materials import elements
from materials.lattice import metric


class LatticeScale(nn.Module):
    """Lattices as unit variables: `lattice.to_vector`, of one atom's share of the volume, standardised.

    ``x = (vector - log(sites) / 3 on the diagonal - mean) / std``.

    Args:
        mean, std: (6,) of the training data.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((6,), math.nan))
        self.register_buffer("std", torch.full((6,), math.nan))

    def fit(self, vector: Float[Tensor, "n 6"], counts: Tensor) -> None:
        """Mean and spread of these lattices; of what hardly varies, a spread of 2 %."""
        shares = self._shares(vector, counts)
        self.mean, self.std = shares.mean(0), shares.std(0, unbiased=False).clamp(min=0.02)

    def normalize(self, vector: Float[Tensor, "batch 6"], counts: Tensor) -> Float[Tensor, "batch 6"]:
        return (self._shares(vector, counts) - self.mean) / self.std

    def unnormalize(self, x: Float[Tensor, "batch 6"], counts: Tensor) -> Float[Tensor, "batch 6"]:
        vector = x * self.std.to(x) + self.mean.to(x)
        return vector + self._growth(vector, counts)

    def _shares(self, vector: Tensor, counts: Tensor) -> Tensor:
        return vector - self._growth(vector, counts)

    def _growth(self, vector: Tensor, counts: Tensor) -> Tensor:
        diagonal = vector.new_tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
        return counts.to(vector)[:, None].log() / 3.0 * diagonal


class PeriodicTransformer(nn.Module):
    """``(x_t, t, cond) -> outputs`` for crystals; its answer does not depend on where the origin is.

    Between atoms i and j stand ``cos, sin(2 pi k (f_i - f_j))`` for each axis and k = 1..frequencies, and the distance
    to the nearest image in the noisy lattice's own metric, as radial functions. They bias attention and are added to
    its values. So the network is exactly invariant to a translation of all atoms and to rotations of the lattice (which
    it never sees), and equivariant to permutations of the atoms; the coordinates' answers are along a, b, c.

    Args:
        labels: properties that it may be told.
        width: features of a token; divisible by ``heads``.
        depth: number of blocks.
        heads: of every attention.
        pair_width: features of a pair.
        frequencies: K.
        radial: radial functions, up to ``cutoff`` Å.
        classes: atom types; one more is MASK.

    Source: Fourier differences and the metric: Jiao et al. 2023 (DiffCSP, arXiv 2309.04475), section 4.2; blocks:
    Peebles & Xie 2023, adaLN-Zero (arXiv 2212.09748); radial functions of the nearest image are ours.
    """

    def __init__(
        self,
        labels: int = 0,
        width: int = 128,
        depth: int = 4,
        heads: int = 8,
        pair_width: int = 32,
        frequencies: int = 6,
        radial: int = 16,
        cutoff: float = 8.0,
        classes: int = elements.CLASSES,
    ) -> None:
        super().__init__()
        if min(width, depth, heads, pair_width, frequencies, radial) < 1 or width % heads or width % 4:
            raise WorkbenchError(
                f"PeriodicTransformer: got width={width}, depth={depth}, heads={heads}, pair_width={pair_width}, "
                f"frequencies={frequencies}, radial={radial}; expected at least 1 of each, a width divisible by 4 and "
                "by heads."
            )
        self.scale = LatticeScale()
        self.labels = labels
        self.waves: Tensor
        self.centres: Tensor
        self.images: Tensor
        self.register_buffer("waves", 2.0 * math.pi * torch.arange(1.0, frequencies + 1.0), persistent=False)
        self.register_buffer("centres", torch.linspace(0.0, cutoff, radial), persistent=False)
        self.sharpness = radial / cutoff
        images = torch.tensor([-1.0, 0.0, 1.0])
        self.register_buffer("images", torch.cartesian_prod(images, images, images), persistent=False)
        self.element = nn.Embedding(classes + 1, width)
        self.lattice = nn.Linear(6, width)
        self.clock = Sinusoidal(64)
        self.told = nn.Sequential(
            nn.Linear(2 * 64 + 6 + 1 + 2 * labels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.pair = nn.Sequential(
            nn.Linear(6 * frequencies + radial, pair_width), nn.SiLU(), nn.Linear(pair_width, pair_width), nn.SiLU()
        )
        self.to_lattice_pair = nn.Parameter(torch.zeros(3, pair_width))
        self.blocks = nn.ModuleList(_Block(width, heads, pair_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.coords_out, self.lattice_out = _zero(nn.Linear(width, 3)), _zero(nn.Linear(width, 6))
        self.types_out = nn.Linear(width, classes)

    def forward(
        self, x_t: Mapping[str, Tensor], t: Mapping[str, Tensor], cond: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scores in units of their spread, the lattice's prediction, and logits of atom types.

        Args:
            x_t: ``lattice`` (batch, 6), ``frac_coords`` (batch, atoms, 3), ``atom_types`` (batch, atoms).
            t: times of the fields, (batch,); those of atom types are not looked at, a MASK says it all.
            cond: ``counts`` (batch,) atoms of each, and where there are labels ``labels`` (batch, properties), of unit
                variance, and ``told`` (batch, properties) 0 or 1.
        """
        lattice, coords, types = x_t["lattice"], x_t["frac_coords"], x_t["atom_types"]
        counts = cond["counts"]
        mask = torch.arange(coords.shape[1], device=coords.device) < counts[:, None]
        c = self._context(lattice, t, cond)
        pair = self._pairs(coords, self.scale.unnormalize(lattice, counts))
        h = torch.cat([self.element(types), self.lattice(lattice)[:, None]], 1)
        present = nn.functional.pad(mask, (0, 1), value=True)
        bias = torch.zeros(present.shape, dtype=h.dtype, device=h.device).masked_fill(~present, -math.inf)
        for block in self.blocks:
            h = block(h, pair, bias[:, None, None], c)
        h = self.norm(h)
        atoms = h[:, :-1]
        push = self.coords_out(atoms) * mask[..., None]
        # the density of a crystal does not depend on the origin, so its scores sum to 0
        push = (push - push.sum(1, keepdim=True) / counts[:, None, None]) * mask[..., None]
        return {"lattice": self.lattice_out(h[:, -1]), "frac_coords": push, "atom_types": self.types_out(atoms)}

    def _context(self, lattice: Tensor, t: Mapping[str, Tensor], cond: Mapping[str, Tensor]) -> Tensor:
        parts = [self.clock(t["lattice"].to(lattice)), self.clock(t["frac_coords"].to(lattice)), lattice]
        parts.append(cond["counts"].to(lattice)[:, None].log())
        if self.labels:
            told = cond["told"].to(lattice)
            parts += [cond["labels"].to(lattice) * told, told]
        return self.told(torch.cat(parts, 1))

    def _pairs(self, coords: Float[Tensor, "batch n 3"], vector: Float[Tensor, "batch 6"]) -> Tensor:
        """(batch, n + 1, n + 1, pair_width): of atoms i and j, and of the lattice's token with all."""
        d = coords[:, :, None] - coords[:, None]
        angles = d[..., None] * self.waves
        d = d - d.round()
        near = d[..., None, :] + self.images
        squares = (torch.einsum("bijmx,bxy->bijmy", near, metric(vector)) * near).sum(-1)
        distance = squares.amin(-1).clamp(min=1e-6).sqrt()
        radial = torch.exp(-((self.sharpness * (distance[..., None] - self.centres)) ** 2))
        atoms = self.pair(torch.cat([angles.cos().flatten(-2), angles.sin().flatten(-2), radial], -1))
        batch, n, _, width = atoms.shape
        to, of, own = self.to_lattice_pair
        rows = torch.cat([atoms, to.expand(batch, n, 1, width)], 2)
        last = torch.cat([of.expand(batch, 1, n, width), own.expand(batch, 1, 1, width)], 2)
        return torch.cat([rows, last], 1)


class _Block(nn.Module):
    """Attention with pairs in its logits and its values, then a perceptron, both gated by the context."""

    def __init__(self, width: int, heads: int, pair_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zero(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = nn.Linear(pair_width, heads)
        self.of_pairs = nn.Linear(heads * pair_width, width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self,
        h: Float[Tensor, "batch n width"],
        pair: Float[Tensor, "batch n n pair"],
        bias: Float[Tensor, "batch 1 1 n"],
        c: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch n width"]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = torch.addcmul(shift, self.norm(h), 1.0 + scale)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        logits = q @ k.mT / math.sqrt(q.shape[-1]) + self.bias(pair).permute(0, 3, 1, 2) + bias
        attention = logits.softmax(-1)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        # sum_j a_hij pair_ij, without a (batch, n, n, width) array
        pairs = (attention.transpose(1, 2) @ pair).flatten(2)
        h = torch.addcmul(h, gate, self.out(mixed + self.of_pairs(pairs)))
        x = torch.addcmul(mlp_shift, self.norm(h), 1.0 + mlp_scale)
        return torch.addcmul(h, mlp_gate, self.down(nn.functional.gelu(self.up(x), approximate="tanh")))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
