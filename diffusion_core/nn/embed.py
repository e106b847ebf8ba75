"""Embeddings of scalars, of positions, and of all that a network of images is told."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError


class Sinusoidal(nn.Module):
    """``[cos(scale f_k t), sin(scale f_k t)]`` with frequencies ``f_k`` from 1 down to 1/10000.

    Args:
        dim: size of the embedding, even.
        scale: t in [0, 1] is stretched to this range, the integer steps of the literature.

    Source: Vaswani et al. 2017, section 3.5 (arXiv 1706.03762); Ho et al. 2020, appendix B (arXiv 2006.11239).
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 1000.0) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"Sinusoidal: got dim={dim}; expected an even number of at least 4.")
        half = dim // 2
        frequencies = scale * torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def sinusoidal_positions(length: int, dim: int) -> Float[Tensor, "length dim"]:
    """``[sin(f_k p), cos(f_k p)]`` of the positions p = 0, 1, ...; dim even.

    Source: Vaswani et al. 2017, section 3.5 (arXiv 1706.03762).
    """
    frequencies = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def grid_positions(side: int, dim: int) -> Float[Tensor, "tokens dim"]:
    """The rows' positions in half of the features and the columns' in the others, row by row; dim divisible by 4.

    Source: Peebles & Xie 2023, section 3.2 (arXiv 2212.09748).
    """
    axis = sinusoidal_positions(side, dim // 2)
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class Condition(nn.Module):
    """All that a network of images is told: the time, and a dictionary whose keys its arguments fix.

    The embedding is ``e(t) + e(label) + e(level) + e(latent)``; the image joins x's channels; the context is handed
    on. A key that belongs to no argument is an error, as is a missing one, but for two: without "label" the
    condition is the null label, without "context" there is nothing to attend to.

    Args:
        channels: of x.
        dim: size of the embedding.
        time_dim: size of the sinusoidal embedding of t and of the level.
        n_classes: "label" (batch,) in 0..n_classes, of which the last is the null label; 0: no such key.
        image_channels: "image" (batch, image_channels, ...) of x's size; 0: no such key.
        level: whether there is "level" (batch,) in [0, 1], the noise level of the image.
        latent_dim: "latent" (batch, latent_dim); 0: no such key.
        context_dim: "context" (batch, tokens, context_dim); None: no such key.

    Source: labels added to the time: Dhariwal & Nichol 2021, section 3 (arXiv 2105.05233); image and level: Ho et al.
    2022 (arXiv 2106.15282); latent: Xiao et al. 2022 (arXiv 2112.07804).
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        time_dim: int,
        n_classes: int = 0,
        image_channels: int = 0,
        level: bool = False,
        latent_dim: int = 0,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        given = {"channels": channels, "n_classes": n_classes, "image_channels": image_channels}
        given |= {"latent_dim": latent_dim, "context_dim": context_dim or 0}
        if min(given.values()) < 0 or channels < 1 or context_dim == 0:
            raise WorkbenchError(f"network: got {given}; expected counts, channels at least 1: correct them.")
        self.n_classes, self.channels, self.inlet = n_classes, channels, channels + image_channels
        sizes = {"label": n_classes, "image": image_channels, "level": level, "latent": latent_dim}
        self.required = frozenset(key for key, size in sizes.items() if size and key != "label")
        self.known = self.required | ({"label"} if n_classes else set()) | ({"context"} if context_dim else set())
        self.tails = {"latent": (latent_dim,), "level": (), "label": ()}
        self.context_dim = context_dim

        def mlp(size: int) -> list[nn.Module]:
            return [nn.Linear(size, dim), nn.SiLU(), nn.Linear(dim, dim)]

        self.time = nn.Sequential(Sinusoidal(time_dim), *mlp(time_dim))
        self.label = nn.Embedding(n_classes + 1, dim) if n_classes else None
        self.level = nn.Sequential(Sinusoidal(time_dim), *mlp(time_dim)) if level else None
        self.latent = nn.Sequential(*mlp(latent_dim)) if latent_dim else None

    def forward(
        self, x: Float[Tensor, "batch channels *size"], t: Float[Tensor, " batch"], cond: Mapping[str, Tensor] | None
    ) -> tuple[Float[Tensor, "batch inlet *size"], Float[Tensor, "batch dim"], Tensor | None]:
        """Returns x with the image, the embedding, and the context (None without).

        Raises:
            WorkbenchError: the keys, a shape or a label is not what the arguments promised.
        """
        cond = cond or {}
        if not self.required <= cond.keys() <= self.known:
            raise WorkbenchError(
                f"cond: got the keys {sorted(cond)}; expected {sorted(self.required)}, and no others than "
                f"{sorted(self.known)}: pass those, or build the network for what you pass."
            )
        for key, value in cond.items():
            self._require_shape(key, value, x)
        embedding = self.time(t)
        if self.label is not None:
            embedding = embedding + self._label(self.label, cond.get("label"))
        if self.level is not None:
            embedding = embedding + self.level(cond["level"].to(x.dtype))
        if self.latent is not None:
            embedding = embedding + self.latent(cond["latent"])
        if self.inlet > self.channels:
            x = torch.cat([x, cond["image"]], dim=1)
        return x, embedding, cond.get("context")

    def _require_shape(self, key: str, value: Tensor, x: Tensor) -> None:
        if key == "image":
            expected: tuple[int, ...] = (len(x), self.inlet - self.channels, *x.shape[2:])
        elif key == "context":
            expected = (len(x), value.shape[1] if value.ndim > 1 else 1, self.context_dim or 0)
        else:
            expected = (len(x), *self.tails[key])
        if tuple(value.shape) != expected:
            raise WorkbenchError(
                f"cond[{key!r}]: got the shape {tuple(value.shape)}; expected {expected}: reshape it, or build the "
                "network for it."
            )

    def _label(self, table: nn.Embedding, label: Tensor | None) -> Tensor:
        if label is None:
            return table.weight[self.n_classes]
        # a CPU's look-up checks the range by itself; asking for the largest label would wait for an accelerator
        try:
            return table(label)
        except IndexError as error:
            raise WorkbenchError(
                f"cond['label']: got labels from {int(label.min())} to {int(label.max())}; expected 0 to "
                f"{self.n_classes - 1}, or {self.n_classes} for none: check the data's classes."
            ) from error
