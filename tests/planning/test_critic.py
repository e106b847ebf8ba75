"""The critic of strides: it learns a ratio that is known, and tells through walls from along them."""

from __future__ import annotations

import pytest
import torch

from diffusion_core.draws import Draws
from planning.critic import StrideCritic


def trained(batch, steps: int) -> StrideCritic:
    torch.manual_seed(0)
    critic = StrideCritic(width=64)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / steps)
        loss = critic.loss(*batch(step), Draws(torch.Generator().manual_seed(step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic.requires_grad_(False).eval()


def test_it_learns_the_ratio_of_densities():
    """Strides of N(x, 1/2) where x is +-1: log N(s; x, 1/2) - log mean over both x."""

    def batch(step: int):
        generator = torch.Generator().manual_seed(10_000 + step)
        side = 2.0 * torch.randint(0, 2, (256, 1, 1), generator=generator) - 1.0
        first = torch.cat([side, torch.zeros_like(side)], -1)
        stride = first + 0.5**0.5 * torch.randn(256, 1, 2, generator=generator)
        return torch.cat([first, first + stride], 1), torch.full((256,), 0.1)

    critic = trained(batch, 500)
    s = torch.linspace(-1.5, 1.5, 13)
    place = torch.tensor([1.0, 0.0]).expand(13, 2)
    found = critic.ratio(place, torch.stack([s, torch.zeros(13)], -1), torch.full((13,), 0.1))
    # log N(s; 1) - log (N(s; 1) + N(s; -1)) / 2, with variance 1/2
    exact = 0.6931 - torch.nn.functional.softplus(-4.0 * s)
    assert (found - exact).abs()[2:].max() < 0.35
    assert float((found - exact)[3:].abs().mean()) < 0.12


def test_a_stride_through_a_wall_is_unlikely_and_one_of_another_pace_is_no_negative():
    """Two rooms, a wall at x = 0 between them: nobody crosses it."""

    def batch(step: int):
        generator = torch.Generator().manual_seed(20_000 + step)
        xy = torch.rand(256, 6, 2, generator=generator)
        side = torch.randint(0, 2, (256, 1), generator=generator).float()
        xy[..., 0] = xy[..., 0] * (2.0 * side - 1.0)
        return xy, torch.full((256,), 0.1)

    critic = trained(batch, 300)
    along, through = torch.tensor([[-0.8, 0.5], [-0.2, 0.5]]), torch.tensor([[-0.3, 0.5], [0.3, 0.5]])
    r = critic(torch.stack([along, through]), torch.full((2,), 0.1))[:, 0]
    assert r[0] > 0.1 and r[1] < -1.5
    # all paces differ: there is nothing to compare with, and only the first half of the loss is left
    xy = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0))
    paces = torch.tensor([0.1, 0.2, 0.3, 0.4])
    loss = critic.loss(xy, paces, Draws(torch.Generator().manual_seed(1)))
    node = (Draws(torch.Generator().manual_seed(1)).uniform((4, 4)) * 2).long()
    chosen = critic(xy, paces).gather(1, node)
    assert loss.tolist() == pytest.approx(torch.nn.functional.softplus(-chosen).mean(1).tolist(), abs=1e-6)
