"""Products of policies: the laws of the algebra, costs, and what cannot be multiplied."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion_core import checkpoint
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample
from policy import evaluate, train
from policy.compose import Composition, Wish
from policy.model import restore, sampling_table
from tests.policy.conftest import config
from tests.policy.test_model import SMALL, observations, policy_of


def drawn(composed: Composition, n: int = 5, steps: tuple[str, ...] = ()) -> Tensor:
    settings = config(*SMALL, *steps)
    table = sampling_table(settings, composed.first)
    return composed.plan(observations(n), table, PerSample.from_seeds(range(n)))


def test_a_policy_to_the_first_power_is_itself_and_divided_by_another_of_itself_too():
    policy = policy_of(config(*SMALL)).double()
    table = sampling_table(config(*SMALL), policy)
    alone = policy.plan(observations(5), table, PerSample.from_seeds(range(5)))
    torch.testing.assert_close(drawn(Composition([policy], [1.0])), alone, rtol=1e-9, atol=1e-7)
    twin = copy.deepcopy(policy)
    for weights in ([1.5, -0.5], [0.25, 0.75]):
        torch.testing.assert_close(drawn(Composition([policy, twin], weights)), alone, rtol=1e-6, atol=1e-4)


def test_a_weight_of_nothing_is_no_factor():
    policy = policy_of(config(*SMALL)).double()
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for weights in other.head.parameters():
            weights.mul_(-0.5)
    alone = drawn(Composition([policy], [1.0]))
    torch.testing.assert_close(drawn(Composition([policy, other], [1.0, 0.0])), alone, rtol=1e-9, atol=1e-7)
    assert not torch.allclose(drawn(Composition([policy, other], [0.5, 0.5])), alone, atol=1.0)


def test_a_cost_is_lowered_the_more_the_stronger_it_is():
    policy = policy_of(config(*SMALL)).double()
    told: list[float] = []

    def far_right(actions: Tensor, obs: dict[str, Tensor]) -> Tensor:
        assert obs["keypoints"].shape[1:] == (2, 20)
        return ((actions[..., 0] - 400.0) ** 2).mean(1) / 1e4

    for strength in (0.0, 1.0, 4.0):
        wishes = [Wish(far_right, strength)] if strength else []
        actions = drawn(Composition([policy], [1.0], wishes), 40, ("clip=null",))
        told.append(float(far_right(actions, observations(40)).mean()))
    assert told[0] > 1.05 * told[1] and told[1] > 1.05 * told[2]


def test_what_has_other_units_or_another_shape_is_refused():
    policy = policy_of(config(*SMALL))
    scaled = copy.deepcopy(policy)
    scaled.action_normalizer.high += 1.0
    absolute = policy_of(config(*SMALL, "task.reference=[]"))
    flow = policy_of(config(*SMALL, "schedule=linear"))
    for other, words in (
        (scaled, "units=<run of the first>"),
        (absolute, "reference=\\[\\]"),
        (flow, "another schedule"),
    ):
        with pytest.raises(WorkbenchError, match=words):
            Composition([policy, other], [1.0, 1.0])
    with pytest.raises(WorkbenchError, match="got 1 policies and 2 weights"):
        Composition([policy], [1.0, 2.0])


def test_policies_of_one_scale_multiply_and_act(trained, data):
    """A second policy takes the first one's units; their product runs in the simulator."""
    settings = config("preset=smoke", f"data.source={data}", f"units={trained}", "data.max_episodes=3")
    settings.task.env["max_steps"] = 16
    second = train.untrained(settings, train.load_data(settings)).eval()
    first, own = restore(checkpoint.find(str(trained)))
    both = Composition([first, second], [1.0, 0.5])
    table = sampling_table(replace(own, grid=own.grid | {"start": 0.99}), first)
    episodes = evaluate.rollout(both, settings, [1, 2], table)
    assert [e.steps for e in episodes] == [16, 16]
    alone = evaluate.rollout(first, settings, [1, 2], table)
    assert any((a.actions[0] != b.actions[0]).any() for a, b in zip(episodes, alone, strict=True))
    other = config("preset=smoke", f"data.source={data}", f"units={trained}", "horizon=12")
    with pytest.raises(WorkbenchError, match="sees and does something else"):
        train.untrained(other, train.load_data(other))
