"""Small networks of images for the tests, and their inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion_core.nn.attention import Attention
from diffusion_core.nn.transformer import DiT
from diffusion_core.nn.unet2d import UNet2d

CHANNELS, SIZE, CLASSES, IMAGE, LATENT, TOKENS, CONTEXT = 2, 8, 3, 1, 5, 4, 6
KEYS = {
    "n_classes": CLASSES,
    "image_channels": IMAGE,
    "level": True,
    "latent_dim": LATENT,
    "context_dim": CONTEXT,
}


def awake(network: nn.Module, std: float = 0.1) -> nn.Module:
    """The network in float64, every weight moved off its (partly zero) initial value."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.double().parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def unet(**arguments: object) -> UNet2d:
    torch.manual_seed(0)
    given = {"widths": (8, 12), "attention": (4,), "time_dim": 8, **arguments}
    return UNet2d(CHANNELS, SIZE, **given)


def dit(**arguments: object) -> DiT:
    torch.manual_seed(0)
    given = {"width": 16, "depth": 2, "heads": 2, "time_dim": 8, **arguments}
    return DiT(CHANNELS, SIZE, **given)


BUILD: dict[str, Callable[..., nn.Module]] = {"unet": unet, "dit": dit}


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    cond = {
        "label": torch.arange(batch) % CLASSES,
        "image": normal(batch, IMAGE, SIZE, SIZE),
        "level": torch.rand(batch, generator=generator, dtype=torch.float64),
        "latent": normal(batch, LATENT),
        "context": normal(batch, TOKENS, CONTEXT),
    }
    return normal(batch, CHANNELS, SIZE, SIZE), torch.linspace(0.1, 0.9, batch, dtype=torch.float64), cond


def attentions(network: nn.Module) -> dict[str, Attention]:
    return {name: part for name, part in network.named_modules() if isinstance(part, Attention)}


def maps(network: nn.Module, *arguments: object) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the map of every attention by name."""
    seen: dict[str, Tensor] = {}

    def store(name: str) -> Callable[[Tensor], Tensor]:
        def hook(attention: Tensor) -> Tensor:
            seen[name] = attention
            return attention

        return hook

    parts = attentions(network)
    for name, part in parts.items():
        part.hook = store(name)
    output = network(*arguments)
    for part in parts.values():
        part.hook = None
    return output, seen


def overfit(forward: Callable[[], Tensor], network: nn.Module, steps: int = 100, rate: float = 3e-3) -> float:
    """The last loss over the first."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = forward()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[-1] / losses[0]


def digits(count: int) -> Tensor:
    """Real 8x8 digits in [-1, 1]."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images[:count], dtype=torch.float32)[:, None] / 8.0 - 1.0
