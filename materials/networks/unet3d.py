"""UniMat's network: a U-Net of films, whose frames are the layers of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import Sinusoidal
from materials.networks.periodic import LatticeScale
from materials.unimat import CHANNELS, ROWS, Coords


class UniMatUNet(nn.Module):
    """``(x_t, t, cond) -> outputs`` for the table and the lattice.

    Residual blocks of convolutions inside a layer (or over layers, too), attention inside a layer where the table is at
    most ``attention`` high, then attention over the layers of each place; the table is 9 x 18, 3 x 6, then 1 x 2. The
    lattice joins the context of every block; its answer is read from the pooled features of the smallest table.

    Args:
        labels: properties that it may be told.
        coords: of the table, see `materials.unimat`.
        layers: of the table, the most atoms of one element; the network itself works for any.
        width: channels at 9 x 18; ``multipliers`` times as many below.
        multipliers: of the width, one for each of the three sizes.
        blocks: residual blocks at each size.
        attention: the largest height at which places of a layer attend to one another; 0: nowhere.
        head: features of an attention head.
        full: convolutions reach over layers (3 x 3 x 3), not only inside of one (1 x 3 x 3).
        dropout: in residual blocks.

    Source: Yang et al. 2023, table 4 (arXiv 2311.09235): width 256, multipliers 1, 2, 4, three blocks, attention at
    heights 9, 3, 1, heads of 64, dropout 0.1; after Ho et al. 2022, "Video diffusion models" (arXiv 2204.03458).
    """

    def __init__(
        self,
        labels: int = 0,
        coords: Coords = "raw",
        layers: int = 4,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        attention: int = 3,
        head: int = 32,
        full: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(multipliers) != 3 or min(width, blocks, head, layers, *multipliers) < 1:
            raise WorkbenchError(
                f"UniMatUNet: got width={width}, multipliers={list(multipliers)}, blocks={blocks}, head={head}, "
                f"layers={layers}; "
                "expected three multipliers, and at least 1 of each."
            )
        self.scale = LatticeScale()
        self.labels, self.coords, self.layers = labels, coords, layers
        channels, context = CHANNELS[coords], 4 * width
        widths = [width * m for m in multipliers]
        self.clock = Sinusoidal(max(width, 32))
        self.told = nn.Sequential(
            nn.Linear(max(width, 32) + 6 + 1 + 2 * labels, context), nn.SiLU(), nn.Linear(context, context), nn.SiLU()
        )
        kernel = 3 if full else (1, 3, 3)
        # the composition, and whether it is given
        self.inlet = nn.Conv3d(channels + 2, width, kernel, padding="same")
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        heights = (ROWS, 3, 1)
        before = width
        kept = [width]
        for level, wide in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(_Stage(before, wide, context, kernel, heights[level] <= attention, head, dropout))
                before = wide
                kept.append(wide)
            if level < 2:
                stage.append(nn.Conv3d(wide, wide, (1, 3, 3), stride=(1, 3, 3)))
                kept.append(wide)
            self.down.append(stage)
        self.middle = _Stage(before, before, context, kernel, attention > 0, head, dropout)
        for level in (2, 1, 0):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                skip = kept.pop()
                stage.append(
                    _Stage(before + skip, widths[level], context, kernel, heights[level] <= attention, head, dropout)
                )
                before = widths[level]
            if level > 0:
                stage.append(nn.ConvTranspose3d(before, before, (1, 3, 3), stride=(1, 3, 3)))
            self.up.append(stage)
        self.norm = _norm(width)
        self.outlet = _zero(nn.Conv3d(width, channels, kernel, padding="same"))
        self.lattice_out = nn.Sequential(
            nn.Linear(widths[-1] + context, context), nn.SiLU(), _zero(nn.Linear(context, 6))
        )

    def forward(
        self, x_t: Mapping[str, Tensor], t: Mapping[str, Tensor], cond: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What the heads want of ``table`` and ``lattice``.

        Args:
            x_t: ``table`` (batch, channels, layers, 9, 18) and ``lattice`` (batch, 6).
            t: times of the fields, (batch,); that of the table is looked at.
            cond: ``composition`` (batch, 1, layers, 9, 18), ``given`` (batch,) whether it and the number of atoms are
                to be looked at, ``counts`` (batch,) atoms; ``labels`` and ``told`` as for the `PeriodicTransformer`.
        """
        table, lattice = x_t["table"], x_t["lattice"]
        given = cond["given"].to(table)
        counts = cond["counts"].to(table)
        parts = [self.clock(t["table"].to(table)), lattice, (1.0 + counts)[:, None].log() * given[:, None]]
        if self.labels:
            told = cond["told"].to(table)
            parts += [cond["labels"].to(table) * told, told]
        c = self.told(torch.cat(parts, 1))
        flag = given[:, None, None, None, None]
        composition = cond["composition"].to(table) * flag
        h = self.inlet(torch.cat([table, composition, flag.expand_as(composition)], 1))
        kept = [h]
        for stage in self.down:
            assert isinstance(stage, nn.ModuleList)
            for part in stage:
                h = part(h, c) if isinstance(part, _Stage) else part(h)
                kept.append(h)
        h = self.middle(h, c)
        pooled = h.mean((2, 3, 4))
        for stage in self.up:
            assert isinstance(stage, nn.ModuleList)
            for part in stage:
                h = part(torch.cat([h, kept.pop()], 1), c) if isinstance(part, _Stage) else part(h)
        answer = self.outlet(nn.functional.silu(self.norm(h)))
        return {"table": answer, "lattice": self.lattice_out(torch.cat([pooled, c], 1))}


class _Stage(nn.Module):
    """A residual block, then attention inside a layer, then over layers, each added."""

    def __init__(
        self,
        inlet: int,
        outlet: int,
        context: int,
        kernel: int | tuple[int, int, int],
        in_space: bool,
        head: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first, self.second = _norm(inlet), _norm(outlet)
        self.one = nn.Conv3d(inlet, outlet, kernel, padding="same")
        self.two = _zero(nn.Conv3d(outlet, outlet, kernel, padding="same"))
        self.modulation = nn.Linear(context, 2 * outlet)
        self.skip = nn.Conv3d(inlet, outlet, 1) if inlet != outlet else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.space = _Attention(outlet, head) if in_space else None
        self.layers = _Attention(outlet, head)

    def forward(
        self, h: Float[Tensor, "batch inlet layers tall wide"], c: Float[Tensor, "batch context"]
    ) -> Float[Tensor, "batch outlet layers tall wide"]:
        scale, shift = self.modulation(c)[:, :, None, None, None].chunk(2, 1)
        x = self.one(nn.functional.silu(self.first(h)))
        x = torch.addcmul(shift, self.second(x), 1.0 + scale)
        h = self.skip(h) + self.two(self.dropout(nn.functional.silu(x)))
        batch, width, deep, tall, wide = h.shape
        if self.space is not None:
            tokens = h.permute(0, 2, 3, 4, 1).reshape(batch * deep, tall * wide, width)
            h = h + self.space(tokens).reshape(batch, deep, tall, wide, width).permute(0, 4, 1, 2, 3)
        tokens = h.permute(0, 3, 4, 2, 1).reshape(batch * tall * wide, deep, width)
        return h + self.layers(tokens).reshape(batch, tall, wide, deep, width).permute(0, 4, 3, 1, 2)


class _Attention(nn.Module):
    """Self-attention of tokens that have no position, 0 at first."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.heads = max(1, width // head)
        if width % self.heads:
            raise WorkbenchError(f"UniMatUNet: got {width} channels and heads of {head}; expected a multiple.")
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), _zero(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n width"]:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(g for g in range(8, 0, -1) if channels % g == 0), channels)


def _zero(layer: Any) -> Any:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
