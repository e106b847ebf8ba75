"""A tiny teacher and its batches, shared by the tests of distilled systems."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from diffusion_core import grid
from diffusion_core.draws import Draws
from diffusion_core.nn.unet2d import UNet2d
from diffusion_core.noise import PerSample
from diffusion_core.solvers import ddim
from images.systems import Component, Parts, Sampling
from images.systems.diffusion import Diffusion

NETWORK: Callable[..., nn.Module] = partial(UNet2d, widths=(8, 16), attention=(4,), heads=1, time_dim=16)
PARTS = Parts(shape=(1, 8, 8), n_classes=3, build_network=NETWORK)
LABELS = torch.tensor([0, 1, 2, 0])


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def noise(n: int = 4) -> PerSample:
    return PerSample.from_seeds(range(n))


def batch(n: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"image": torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1, "label": torch.arange(n) % 3}


def ways(steps: int) -> Sampling:
    return Sampling(partial(ddim, eta=0.0), steps, grid.uniform)


def shaken(module: nn.Module, seed: int = 1) -> None:
    """Networks begin with an outlet of zeros: every one of them would be the same function."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def teacher(prediction: str = "v", seed: int = 1) -> Diffusion:
    torch.manual_seed(0)
    found = Diffusion(Parts(PARTS.shape, 3, NETWORK, prediction=prediction))  # type: ignore[arg-type]
    shaken(found, seed)
    return found


def built(kind: Callable[..., Component], parent: Component | None, **own: object) -> Component:
    return kind(Parts(PARTS.shape, 3, NETWORK, parent=parent), **own)


def fall(system: Component, steps: int, rate: float) -> tuple[float, float]:
    """The loss of the first batch's draws before and after a few steps on the same."""
    learning = [p for p in system.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=rate)
    with torch.no_grad():
        before = float(system(batch(), draws()).mean())
    for step in range(steps):
        optimizer.zero_grad()
        system(batch(), draws(step)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return before, float(system(batch(), draws()).mean())
