"""Heads on a world with a known answer: a sign that is seen, and a coin that is not."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_core.configure import bind, build, table
from diffusion_core.denoise import NetworkDenoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws, uniform_times
from diffusion_core.noise import PerSample
from diffusion_core.solvers import Table
from policy.heads import Head, Parts, Shape
from tests.policy.conftest import config
from tests.policy.test_config import names

SHAPE = Shape(horizon=4, dim=2, n_obs_steps=2, features=3, n_action_steps=3)
SMALL = {
    "diffusion": ("steps=10",),
    "flow": ("steps=10",),
    "regression": (),
    "lstm_gmm": ("head.width=48", "head.layers=1"),
    "ibc": ("head.width=64", "head.negatives=64", "head.samples=256"),
    "bet": ("head.bins=8", "head.width=32", "head.depth=1", "head.heads=2"),
    "consistency": ("steps=2",),
    "forcing": ("steps=10",),
    "product": ("steps=10",),
    "act": ("head.width=32", "head.encoder_depth=1", "head.decoder_depth=1", "head.heads=2"),
}
ONE_ANSWER = ("regression", "act")
"""Heads that give the same chunk to the same observation."""


def world(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks (n, 4, 2), conditions (n, 6), coins: the first dimension follows the seen sign, the second the coin."""
    generator = torch.Generator().manual_seed(seed)
    sign, coin = (2.0 * torch.randint(0, 2, (n,), generator=generator) - 1.0 for _ in range(2))
    ramp = torch.linspace(0.2, 0.8, SHAPE.horizon)
    chunk = torch.stack([sign[:, None] * ramp, coin[:, None] * ramp], -1)
    cond = torch.randn(n, SHAPE.cond_dim, generator=generator)
    cond[:, -1] = sign
    return chunk + 0.02 * torch.randn(chunk.shape, generator=generator), cond, coin


def head_of(name: str, chunks: Tensor | None) -> tuple[Head, Table | None]:
    """The head, small, and its solver's table."""
    found = config(f"head={name}", "preset=smoke", *SMALL[name])
    torch.manual_seed(0)
    network = build(found.network, horizon=SHAPE.horizon, dim=SHAPE.dim, cond_dim=SHAPE.cond_dim)
    denoiser = NetworkDenoiser(network, build(found.schedule), found.prediction, found.clip)
    head = build(found.head, Parts(SHAPE, denoiser, bind(found.loss), partial(uniform_times, n_train=None), chunks))

    arguments = found.sampler, found.grid, found.steps, denoiser.schedule, head.arrange
    solver = table(*arguments) if head.denoises else None
    return head, solver


@pytest.fixture(scope="module", params=sorted(SMALL))
def trained(request) -> tuple[str, Head, Table | None, list[float]]:
    chunk, cond, _ = world(2048)
    head, solver = head_of(request.param, chunk)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    generator, losses = torch.Generator(), []
    for step in range(600):
        rows = torch.randint(0, len(chunk), (128,), generator=generator.manual_seed(step))
        loss = head.loss(chunk[rows], cond[rows], Draws(generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return request.param, head.eval().requires_grad_(False), solver, losses


def test_every_leaf_is_tried_here():
    assert set(SMALL) == set(names("head"))


def test_the_loss_falls(trained):
    _, _, _, losses = trained
    assert sum(losses[-50:]) / 50 < sum(losses[:5]) / 5 - 0.02


def test_what_is_seen_is_followed_and_the_coin_is_tossed(trained):
    name, head, solver, _ = trained
    chunk, cond, _ = world(400, seed=1)
    drawn = head.draw(cond, solver, PerSample.from_seeds(range(400)))
    assert drawn.shape == chunk.shape
    assert ((drawn[:, -1, 0] > 0) == (cond[:, -1] > 0)).float().mean() > 0.97
    torch.testing.assert_close(drawn[..., 0].abs().mean(0), chunk[..., 0].abs().mean(0), atol=0.15, rtol=0.0)
    end = drawn[:, -1, 1]
    if name in ONE_ANSWER:
        assert torch.equal(drawn, head.draw(cond, solver, PerSample.from_seeds(range(400, 800))))
        if name == "regression":
            assert end.abs().mean() < 0.2  # the mean of both sides
    else:
        near = (end.abs() - 0.8).abs() < 0.25
        # from scratch a consistency model needs longer than the others
        assert near.float().mean() > (0.55 if name == "consistency" else 0.85)
        heads = (end > 0).float().mean()
        assert abs(heads - 0.5) < 4 * 0.5 / 400**0.5 + 0.1
    if name == "product":
        assert set(drawn[..., 1].unique().tolist()) == {-1.0, 1.0}
        # the classes are drawn one by one, and still agree: the network sees those that are known
        assert (drawn[..., 1] == end[:, None]).all(1).float().mean() > 0.9


def test_a_draw_is_the_same_alone_and_in_a_batch(trained):
    _, head, solver, _ = trained
    head = copy.deepcopy(head).double()
    _, cond, _ = world(9, seed=2)
    cond, seeds = cond.double(), list(range(70, 79))
    together = head.draw(cond, solver, PerSample.from_seeds(seeds))
    alone = torch.cat([head.draw(cond[i : i + 1], solver, PerSample.from_seeds(seeds[i : i + 1])) for i in range(9)])
    torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_fills_a_head_that_has_seen_no_data(trained):
    name, head, solver, _ = trained
    fresh, _ = head_of(name, None)
    fresh.load_state_dict(head.state_dict())
    _, cond, _ = world(5, seed=3)
    one, other = (h.draw(cond, solver, PerSample.from_seeds(range(5))) for h in (head, fresh.eval()))
    # torch takes another way through a transformer when it needs no gradient
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_likelihood_is_that_of_the_mixture():
    """LSTM-GMM: the loss is minus the log density, which integrates to one."""
    head, _ = head_of("lstm_gmm", None)
    shape = Shape(1, 1, 1, 3, 1)
    parts = Parts(shape, NetworkDenoiser(torch.nn.Identity(), build(config().schedule), "x0", 1.0), lambda *_: None)
    head = type(head)(parts, width=8, layers=1)
    grid = torch.linspace(-15.0, 15.0, 6001)[:, None, None]
    cond = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).expand(6001, 3)
    log_p = -head.loss(grid, cond, Draws(torch.Generator()))
    assert float(torch.trapezoid(log_p.exp(), grid.flatten())) == pytest.approx(1.0, abs=1e-3)


def test_the_search_finds_the_lowest_energy():
    """Implicit: with a known energy the answer is its minimum."""
    head, _ = head_of("ibc", None)
    goal = 0.6 * torch.tanh(torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0)))
    head.energy = lambda chunks, cond: 40.0 * ((chunks - goal) ** 2).flatten(2).sum(-1)  # type: ignore[method-assign]
    head.samples, head.rounds = 2048, 6
    found = head.draw(torch.zeros(3, 6), None, PerSample.from_seeds([0, 1, 2]))
    assert (found - goal[:, 0]).abs().max() < 0.25


def test_more_bins_than_chunks_is_one_line():
    with pytest.raises(WorkbenchError, match=r"head.bins: got 8 for 5 chunks; expected fewer bins, or more data"):
        head_of("bet", world(5)[0])
