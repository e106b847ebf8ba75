"""The conditional temporal U-Net of diffusion policies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core.errors import WorkbenchError
from diffusion_core.nn.embed import Sinusoidal

FEW = 32
"""Positions up to which a convolution is quicker as a product of matrices."""


class UNet1d(nn.Module):
    """``(x, t, cond) -> x-shaped``: convolutions along time, the condition enters every block by FiLM.

    Args:
        horizon: length of x; must be divisible by ``2 ** (len(widths) - 1)``.
        dim: channels of x.
        cond_dim: size of the condition vector.
        widths: channels per resolution, finest first.
        kernel_size: of the residual convolutions, odd.
        groups: of the group norms; must divide every width.
        time_dim: size of the embedding of t.

    Source: Chi et al. 2023, section 3.1 (arXiv 2303.04137), after Janner et al. 2022, figure A1
    (arXiv 2205.09991); FiLM: Perez et al. 2018 (arXiv 1709.07871).
    """

    def __init__(
        self,
        horizon: int,
        dim: int,
        cond_dim: int,
        widths: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        groups: int = 8,
        time_dim: int = 256,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(widths) - 1)
        if horizon % factor or any(w % groups for w in widths) or kernel_size % 2 == 0:
            raise WorkbenchError(
                f"UNet1d: got horizon={horizon}, widths={list(widths)}, groups={groups}, kernel_size={kernel_size}; "
                f"expected a horizon divisible by {factor}, widths divisible by groups, an odd kernel."
            )
        self.time = nn.Sequential(
            Sinusoidal(time_dim), nn.Linear(time_dim, 4 * time_dim), nn.Mish(), nn.Linear(4 * time_dim, time_dim)
        )

        def pair(inlet: int, outlet: int) -> _Pair:
            return _Pair(inlet, outlet, time_dim + cond_dim, kernel_size, groups)

        inner = len(widths) - 1
        self.down = nn.ModuleList(pair(i, o) for i, o in zip((dim, *widths[:-1]), widths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:inner])
        self.middle = pair(widths[-1], widths[-1])
        self.up = nn.ModuleList(pair(2 * i, o) for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(w, w, 4, stride=2, padding=1) for w in widths[-2::-1])
        self.outlet = nn.Sequential(
            _conv_norm_mish(widths[0], widths[0], kernel_size, groups), nn.Conv1d(widths[0], dim, 1)
        )

    def forward(
        self, x: Float[Tensor, "batch horizon dim"], t: Float[Tensor, " batch"], cond: Float[Tensor, "batch cond"]
    ) -> Float[Tensor, "batch horizon dim"]:
        c = torch.cat([self.time(t), cond], dim=1)
        h = x.transpose(1, 2)
        skips = []
        for level, pair in enumerate(self.down):
            h = pair(h, c)
            skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self.middle(h, c)
        for pair, grow in zip(self.up, self.grow, strict=True):
            h = grow(pair(torch.cat([h, skips.pop()], dim=1), c))
        return self.outlet(h).transpose(1, 2)


class _Conv1d(nn.Conv1d):
    """A convolution of odd kernel that keeps the length; a few positions on a CPU are one product of matrices.

    There torch reorders all weights at every call, which takes several times as long as the convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        # a compiler has its own way; what is exported is run as it stands
        as_is = torch.compiler.is_exporting() or not torch.compiler.is_compiling()
        few = as_is and input.shape[0] * input.shape[2] <= FEW
        if torch.is_grad_enabled() or not few or input.device.type != "cpu":
            return super().forward(input)
        reach = self.kernel_size[0] // 2
        seen = functional.pad(input, (reach, reach)).unfold(2, self.kernel_size[0], 1)
        flat = seen.transpose(1, 2).flatten(2)
        return functional.linear(flat, self.weight.flatten(1), self.bias).transpose(1, 2)


def _conv_norm_mish(inlet: int, outlet: int, kernel_size: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        _Conv1d(inlet, outlet, kernel_size, padding=kernel_size // 2), nn.GroupNorm(groups, outlet), nn.Mish()
    )


class _Pair(nn.Module):
    """Two residual blocks at one resolution."""

    def __init__(self, inlet: int, outlet: int, cond_dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.first = _ResidualBlock(inlet, outlet, cond_dim, kernel_size, groups)
        self.second = _ResidualBlock(outlet, outlet, cond_dim, kernel_size, groups)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.second(self.first(h, c), c)


class _ResidualBlock(nn.Module):
    """Two convolutions; between them ``scale * h + bias`` with (scale, bias) linear in the condition."""

    def __init__(self, inlet: int, outlet: int, cond_dim: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        self.first = _conv_norm_mish(inlet, outlet, kernel_size, groups)
        self.second = _conv_norm_mish(outlet, outlet, kernel_size, groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * outlet))
        self.skip = nn.Conv1d(inlet, outlet, 1) if inlet != outlet else nn.Identity()

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, bias = self.film(c)[..., None].chunk(2, dim=1)
        return self.second(torch.addcmul(bias, self.first(h), scale)) + self.skip(h)
