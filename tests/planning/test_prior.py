"""The prior of plans: what its network is told and shown, and that it learns a law that is known."""

from __future__ import annotations

import pytest
import torch

from diffusion_core import sample
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import Known, start
from diffusion_core.grid import uniform
from diffusion_core.nn.mlp import ResidualMLP
from diffusion_core.noise import Shared
from diffusion_core.normalize import MinMax
from diffusion_core.schedule import Cosine
from diffusion_core.solvers import ddpm
from planning.prior import CONDITIONS, TrajectoryPrior

HORIZON = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prior(network=None, ends_clean: float = 0.7) -> TrajectoryPrior:
    network = network or ResidualMLP(HORIZON, 2, CONDITIONS, width=64, depth=2)
    normalizer = MinMax(torch.tensor([-2.0, -2.0]), torch.tensor([2.0, 2.0]))
    return TrajectoryPrior(NetworkDenoiser(network, Cosine(), "x0"), normalizer, HORIZON, (0.02, 0.08), ends_clean)


class Recording(torch.nn.Module):
    """Answers zero, and keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, cond):
        self.seen.append((x, t, cond))
        return torch.zeros_like(x)


def walks(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Walks of standard normal steps from the middle: given both ends, a bridge."""
    steps = torch.randn(n, HORIZON - 1, 2, generator=seeded(seed))
    xy = torch.cat([torch.zeros(n, 1, 2), steps.cumsum(1)], 1)
    return {"xy": xy + torch.randn(n, 1, 2, generator=seeded(seed + 1)), "dt": torch.full((n,), 0.04)}


def test_the_network_is_told_the_pace_and_which_ends_it_is_shown():
    network = Recording()
    model = prior(network)
    batch = walks(400, 0) | {"dt": torch.tensor([0.02, 0.04, 0.08, 0.04]).repeat(100)}
    model(batch, Draws(seeded()))
    x, _, cond = network.seen[0]
    assert cond[:4, 0].tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0], abs=1e-6)
    x0 = model.normalizer.normalize(batch["xy"])
    for column, place in ((1, 0), (2, -1)):
        told = cond[:, column] == 1.0
        assert ((x[:, place] == x0[:, place]).all(1) == told).all()
        assert abs(float(told.float().mean()) - 0.7) < 4 * (0.7 * 0.3 / 400) ** 0.5
    assert (x[:, 1:-1] != x0[:, 1:-1]).all()


def test_it_learns_the_bridge_between_two_ends():
    """A Gaussian walk between known ends is known: mean on the line, variance k (n - k) / n."""
    torch.manual_seed(0)
    model = prior()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1.0 - step / 600)
        loss = model(walks(256, 10 * step), Draws(seeded(1_000_000 + step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    n, ends = 2000, torch.tensor([[-0.8, 0.4], [0.8, -0.4]])
    mask = torch.zeros(1, HORIZON, 1, dtype=torch.bool)
    mask[:, [0, -1]] = True
    values = torch.zeros(1, HORIZON, 2)
    values[:, [0, -1]] = model.normalizer.normalize(ends)
    expert = model.at(torch.full((n,), 0.04)) * Known(mask, values, mode="clean")
    table = ddpm(Cosine(), uniform(60))
    with torch.no_grad():
        z = start(expert, torch.randn(n, HORIZON, 2, generator=seeded(1)))
        x = model.normalizer.unnormalize(sample.sample(expert, table, z, noise=Shared(seeded(2))))
    torch.testing.assert_close(x[:, [0, -1]], ends.expand(n, 2, 2), atol=1e-5, rtol=0.0)
    share = torch.arange(1, HORIZON - 1)[:, None] / (HORIZON - 1)
    line, spread = ends[0] + share * (ends[1] - ends[0]), (share * (1 - share) * (HORIZON - 1)).sqrt()
    # a network of seconds; one that did not know its ends would be off by 0.4 and wider than the bridge
    assert (x[:, 1:-1].mean(0) - line).abs().max() < 0.25
    width = x[:, 1:-1].std(0) / spread
    assert width.min() > 0.5 and width.max() < 1.15


def test_a_pace_that_was_never_seen_is_refused():
    with pytest.raises(WorkbenchError, match=r"got 0.4 to 0.4 s; expected some of 0.08 to 0.32 s"):
        prior().at(torch.tensor([0.1]))
