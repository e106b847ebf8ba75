"""A system as its leaf configures it, trained for a few steps: shared by the tests of experiments."""

from __future__ import annotations

import torch

from diffusion_core.draws import Draws
from images.config import configuration
from images.model import assemble, sampling
from images.systems.diffusion import Diffusion


def check_loss_falls(*words: str, steps: int = 24) -> None:
    """The sampler walks to t = 0, and the loss of black and white noise falls."""
    config = configuration(["task=digits", "network=unet2d_small", *words])
    torch.manual_seed(0)
    model = assemble(config, 10)
    assert isinstance(model, Diffusion)
    table = sampling(config).table(model.denoiser.schedule)
    assert float(table.reached[-1]) == 0.0
    image = torch.where(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0)
    batch = {"image": image, "label": torch.zeros(16, dtype=torch.int64)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(steps):
        loss = model(batch, Draws(torch.Generator().manual_seed(step % 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # the same three draws again and again: like is compared with like
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
