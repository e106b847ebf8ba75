"""The policy: which part of a chunk is executed, whose business a plan is, and what a checkpoint brings back."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_core import checkpoint
from diffusion_core.configure import plain, table
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from diffusion_core.noise import PerSample
from diffusion_core.normalize import MinMax
from policy.config import PolicyConfig
from policy.model import Policy, assemble, restore
from policy.train import load_data, untrained
from tests.policy.conftest import config

SMALL = ("preset=smoke", "network.width=32", "network.depth=1", "sampler=ddim", "steps=5")


Seen = dict[str, Tensor]


def observations(n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Seen:
    rows = 100.0 + 300.0 * torch.rand(n, 2, 20, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return {"keypoints": rows}


def rows(obs: Seen, which: object) -> Seen:
    return {key: values[which] for key, values in obs.items()}


def policy_of(settings: PolicyConfig) -> Policy:
    """A policy with weights all over the place, so that every part of it matters."""
    generator = torch.Generator().manual_seed(3)
    chunks = 80.0 * torch.randn(200, 2 * settings.horizon, generator=generator)
    policy = assemble(
        settings, MinMax.fit(observations(200, 1, torch.float32)["keypoints"].flatten(0, 1)), MinMax.fit(chunks)
    )
    with torch.no_grad():
        for weights in policy.parameters():
            weights.normal_(0.0, 0.2, generator=generator)
    return policy.eval()


def plan(policy: Policy, settings: PolicyConfig, obs: Seen, seeds: list[int]) -> Tensor:
    solver = table(settings.sampler, settings.grid, settings.steps, policy.denoiser.schedule)
    return policy.plan(obs, solver, PerSample.from_seeds(seeds))


@pytest.mark.parametrize(("n_obs_steps", "n_action_steps"), [(2, 8), (1, 8), (3, 4), (2, 15)])
def test_what_is_executed_begins_at_the_newest_observation(n_obs_steps, n_action_steps):
    """Step h of a chunk stands beside step h of its window, whose first n_obs_steps are the observations."""
    settings = replace(config(*SMALL), n_obs_steps=n_obs_steps, n_action_steps=n_action_steps)
    policy = policy_of(settings)
    chunk = torch.arange(16.0)[None, :, None].expand(3, 16, 2)
    executed = policy.executed(chunk)
    assert executed[0, :, 0].tolist() == list(range(n_obs_steps - 1, n_obs_steps - 1 + n_action_steps))


def test_so_it_stands_in_the_training_windows(data):
    """The first executed action of a window is the one recorded beside its newest observation."""
    settings = config(*SMALL, f"data.source={data}", "data.mirror=false")
    demonstrations = load_data(settings).training
    batch = demonstrations.batch(torch.arange(len(demonstrations)))
    first = policy_of(settings).executed(batch["action"])[:, 0]
    step = demonstrations.index[:, settings.n_obs_steps - 1]
    assert torch.equal(batch["obs"]["keypoints"][:, -1], demonstrations.obs["keypoints"][step])
    assert torch.equal(first, demonstrations.action[step])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpm_solver_pp_2m"])
def test_a_plan_is_the_same_alone_and_in_any_batch_and_place(sampler):
    settings = config(*SMALL, f"sampler={sampler}")
    policy = policy_of(settings).double()
    obs, seeds = observations(17), [9000 + i for i in range(17)]
    together = plan(policy, settings, obs, seeds)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(4))
    shuffled = plan(policy, settings, rows(obs, order), [seeds[i] for i in order])
    alone = torch.cat([plan(policy, settings, rows(obs, slice(i, i + 1)), seeds[i : i + 1]) for i in range(17)])
    torch.testing.assert_close(shuffled, together[order], rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(alone, together, rtol=1e-11, atol=1e-9)
    assert torch.equal(alone.float(), together.float())
    assert together.std(0).min() > 1.0  # they are not all the same plan


def test_other_noise_or_another_observation_is_another_plan():
    settings = config(*SMALL)
    policy = policy_of(settings).double()
    obs = observations(2)
    base = plan(policy, settings, obs, [1, 2])
    assert not torch.allclose(plan(policy, settings, obs, [3, 4]), base)
    assert not torch.allclose(plan(policy, settings, rows(obs, [1, 0]), [1, 2]), base)
    assert torch.equal(plan(policy, settings, obs, [1, 2]), base)


def test_with_a_reference_moving_the_robot_moves_the_plan_with_it():
    """Displacements are learned; the origin is the finger, features 18 and 19 of the newest observation."""
    settings = config(*SMALL)
    policy = policy_of(settings).double()
    x, obs = torch.randn(4, 16, 2, dtype=torch.float64), observations(4)
    moved = {"keypoints": obs["keypoints"].clone()}
    moved["keypoints"][:, -1, 18] += 7.0
    moved["keypoints"][:, -1, 19] -= 3.0
    shift = policy.actions(x, moved) - policy.actions(x, obs)
    torch.testing.assert_close(shift, torch.tensor([7.0, -3.0], dtype=torch.float64).expand_as(shift))
    absolute = policy_of(config(*SMALL, "task.reference=[]")).double()
    assert torch.equal(absolute.actions(x, moved), absolute.actions(x, obs))


@pytest.mark.parametrize("reference", ["[18,19]", "[]"])
def test_training_and_sampling_agree_on_what_a_normalised_chunk_is(data, reference):
    """A perfect denoiser returns the demonstration: normalise as in training, come back as in sampling."""
    settings = config(*SMALL, f"data.source={data}", f"task.reference={reference}")
    training = load_data(settings).training
    policy = untrained(settings, load_data(settings))
    seen: list[Tensor] = []

    def remember(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        seen.append(x_t)
        return torch.zeros_like(x_t)

    policy.denoiser.network.forward = remember  # type: ignore[method-assign]

    class NoNoise(Draws):
        def uniform(self, shape, dtype=torch.float64):
            return torch.zeros(shape, dtype=dtype)

        def normal(self, shape, dtype=torch.float32):
            return torch.zeros(shape, dtype=dtype)

    batch = training.batch(torch.arange(64))
    policy(batch, NoNoise(torch.Generator()))
    assert seen[0].abs().max() <= 1.0 + 1e-5
    alpha = float(policy.denoiser.schedule.alpha(torch.zeros(1, dtype=torch.float64)))
    torch.testing.assert_close(policy.actions(seen[0] / alpha, batch["obs"]), batch["action"], rtol=1e-5, atol=1e-3)


def saved(policy: Policy, settings: PolicyConfig, folder: Path, **meta: str) -> checkpoint.Checkpoint:
    about = {"domain": "policy", "task": settings.task.name, "data": "none", "commit": "none"} | meta
    path = checkpoint.save(folder, 1, {"model": policy.state_dict()}, plain(settings), about)
    return checkpoint.load(path)


def test_a_restored_policy_plans_exactly_as_the_one_that_was_saved(tmp_path):
    settings = config(*SMALL)
    policy = policy_of(settings)
    back, its_settings = restore(saved(policy, settings, tmp_path))
    assert its_settings == settings
    obs = observations(6, dtype=torch.float32)
    assert torch.equal(plan(back, its_settings, obs, list(range(6))), plan(policy, settings, obs, list(range(6))))
    assert not back.training and not any(p.requires_grad for p in back.parameters())


def test_the_normalizer_comes_back_with_the_checkpoint_to_the_last_bit(tmp_path):
    settings = config(*SMALL)
    policy = policy_of(settings)
    back, _ = restore(saved(policy, settings, tmp_path))
    pairs = ((policy.observer.normalizer, back.observer.normalizer), (policy.action_normalizer, back.action_normalizer))
    for one, other in pairs:
        assert torch.equal(one.low, other.low) and torch.equal(one.high, other.high)
        x = torch.randn(9, len(one.low))
        assert torch.equal(one.normalize(x), other.normalize(x))
        torch.testing.assert_close(other.unnormalize(other.normalize(x)), x, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_is_not_this_policys_is_one_line(tmp_path):
    settings = config(*SMALL)
    policy = policy_of(settings)
    wrong = {
        "domain=policy": saved(policy, settings, tmp_path / "a", domain="planning"),
        "are missing": saved(policy, replace(settings, network=settings.network | {"depth": 2}), tmp_path / "b"),
        "has shape": saved(policy, replace(settings, network=settings.network | {"width": 16}), tmp_path / "c"),
        "has shape (": saved(policy, replace(settings, n_obs_steps=1), tmp_path / "d"),
    }
    fine = saved(policy, settings, tmp_path / "e")
    wrong["os.system"] = replace(fine, config=copy.deepcopy(fine.config) | {"schedule": {"_target_": "os.system"}})
    wrong["widht"] = replace(fine, config=fine.config | {"network": fine.config["network"] | {"widht": 1}})
    wrong["horizn"] = replace(fine, config=fine.config | {"horizn": 1})
    for words, found in wrong.items():
        with pytest.raises(WorkbenchError) as caught:
            restore(found)
        assert "\n" not in str(caught.value)
        assert words in str(caught.value), words


def test_the_denoising_ends_in_the_plan():
    settings = config(*SMALL)
    policy = policy_of(settings)
    obs = observations(3, dtype=torch.float32)
    solver = table(settings.sampler, settings.grid, settings.steps, policy.denoiser.schedule)
    states = list(policy.denoising(obs, solver, PerSample.from_seeds([1, 2, 3])))
    assert len(states) == 5 and states[-1].t == 0.0
    last = policy.actions(states[-1].x, obs)
    assert torch.equal(last, plan(policy, settings, obs, [1, 2, 3]))
    assert np.isfinite(last.numpy()).all() and states[-1].x.abs().max() <= settings.clip
