"""A stream with a network that knows the answer: where its actions go, what noise they keep, what steps they see."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_core.errors import WorkbenchError
from diffusion_core.grid import uniform
from diffusion_core.normalize import MinMax
from policy.config import PolicyConfig
from policy.model import Policy, assemble
from policy.runtime.streaming import Streaming
from tests.policy.conftest import config


def forcing(*words: str) -> tuple[Policy, PolicyConfig]:
    """An untrained policy on Push-T whose rows all have other units."""
    told = config("head=forcing", "preset=smoke", "horizon=17", "steps=16", *words)
    torch.manual_seed(0)
    low = -400.0 - torch.arange(34.0)
    return assemble(told, MinMax(torch.zeros(20), torch.full((20,), 512.0)), MinMax(low, -2.0 * low)), told


class Oracle(nn.Module):
    """Knows that the action of control step k is (200 + k, 300 - k), and counts how often it is asked."""

    token_times = True

    def __init__(self, stream: Streaming) -> None:
        super().__init__()
        self.policy, self.step, self.obs, self.asked = (stream.policy,), 0, {}, 0

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.asked += 1
        k = self.step - self.policy[0].n_obs_steps + 1 + torch.arange(x.shape[1])
        return self.policy[0].normalized(torch.stack([200.0 + k, 300.0 - k], -1).to(x).expand(x.shape), self.obs)


def seen(rng: np.random.Generator, n: int = 3) -> np.ndarray:
    return rng.uniform(100.0, 400.0, (n, 2, 20))


@pytest.mark.parametrize(("every", "evaluations"), [(1, 1), (2, 2), (4, 4), (8, 8)])
def test_every_action_arrives_at_its_step_under_the_noise_it_came_with(every, evaluations):
    stream = Streaming(*forcing(), every)
    assert stream.evaluations == evaluations
    oracle = stream.policy.denoiser.network = Oracle(stream)
    rng, seeds, kept = np.random.default_rng(0), [4, 5, 6], []
    for turn in range(20 // every):
        observations = seen(rng)  # the finger jumps, and with it what actions are measured from
        oracle.step, oracle.obs = turn * every, stream.policy.seen(observations)
        actions = stream(observations, seeds)
        k = turn * every + np.arange(every)
        np.testing.assert_allclose(actions, np.broadcast_to(np.stack([200 + k, 300 - k], -1), actions.shape), atol=1e-3)
        kept.append(torch.stack([stream.buffers[seed].noise for seed in seeds]))
    assert oracle.asked == 16 + (20 // every - 1) * evaluations
    first = 1 + every  # the rows that the last turn left noisy
    for before, after in itertools.pairwise(kept):
        assert (before[:, first:] != 0).all()
        torch.testing.assert_close(after[:, first:-every], before[:, first + every :])


def test_every_action_sees_the_whole_grid():
    stream = Streaming(*forcing(), 4)
    turn = torch.cat([stream.turn.times[:, 0], stream.turn.reached[-1:, 0]])
    grid = torch.cat([turn[:-1, 1 + 4 * group] for group in (3, 2, 1, 0)])
    torch.testing.assert_close(grid, uniform(16)[:-1])
    assert (turn[:, 0] == 0.0).all()
    opening = stream.first.reached[-1, 0]
    for group in range(3):
        assert (opening[5 + 4 * group : 9 + 4 * group] == turn[0, 1 + 4 * group]).all()


def test_a_robot_streams_the_same_alone_and_in_a_batch():
    policy, told = forcing()
    nn.init.normal_(policy.denoiser.network.outlet.weight, std=0.02)
    together, alone = Streaming(policy, told, 4), Streaming(policy, told, 4)
    rng = np.random.default_rng(1)
    for turn in range(4):
        observations = seen(rng)
        # the third robot begins later
        seeds = [7, 8, 9] if turn else [7, 8]
        batch = together(observations[: len(seeds)], seeds)
        np.testing.assert_array_equal(batch[1], alone(observations[1:2], [8])[0])


@pytest.mark.parametrize(
    ("words", "every", "text"),
    [
        (("steps=16",), 5, "got 16 denoising steps and 5 actions a turn, of 16"),
        (("steps=10",), 4, "got 10 denoising steps and 4 actions"),
        (("sampler=ddpm",), 4, "a sampler that adds noise"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(words, every, text):
    with pytest.raises(WorkbenchError, match=text):
        Streaming(*forcing(*words), every)


def test_other_heads_do_not_stream(shipped):
    with pytest.raises(WorkbenchError, match="got a head of Diffusion; expected head=forcing"):
        Streaming(shipped.policy, shipped.config)
