"""Half cheetahs side by side are gymnasium's, and their search finds something."""

import gymnasium
import numpy as np
import pytest

from envs.cheetah import ACTIONS, Cheetahs, score
from envs.cheetah_search import Linear, returns, search, stages


def test_steps_are_those_of_gymnasium() -> None:
    peer = gymnasium.make("HalfCheetah-v5").unwrapped
    ours = Cheetahs(2)
    obs = ours.reset(seed=3)
    peer.reset(seed=0)
    peer.set_state(ours.data[1].qpos.copy(), ours.data[1].qvel.copy())
    rng = np.random.default_rng(0)
    for _ in range(100):
        actions = rng.uniform(-1.0, 1.0, (2, ACTIONS))
        obs, rewards = ours.step(actions)
        wanted, reward, *_ = peer.step(actions[1].astype(np.float32).astype(np.float64))
        np.testing.assert_allclose(obs[1], wanted, atol=1e-5)
        assert rewards[1] == pytest.approx(reward, abs=1e-4)
        # the peer's actions are rounded: go on from the same state
        peer.set_state(ours.data[1].qpos.copy(), ours.data[1].qvel.copy())


def test_each_is_the_same_whoever_is_beside_it() -> None:
    both, alone = Cheetahs(2), Cheetahs(1)
    np.testing.assert_array_equal(both.reset(seed=5)[1], alone.reset(seed=6)[0])
    action = np.full((1, ACTIONS), 0.3)
    np.testing.assert_array_equal(both.step(np.repeat(action, 2, 0))[0][1], alone.step(action)[0][0])


def test_restored_states_go_on() -> None:
    cheetahs = Cheetahs(1)
    cheetahs.reset(seed=0)
    state = np.concatenate([cheetahs.data[0].qpos, cheetahs.data[0].qvel])[None]
    action = np.full((1, ACTIONS), -0.4)
    first = cheetahs.step(action)[0]
    cheetahs.restore(state)
    np.testing.assert_allclose(cheetahs.step(action)[0], first, atol=1e-9)


def test_stages_become_better() -> None:
    found, seen = returns(stages(), seed=11, steps=200)
    assert seen.shape == (200 * len(stages()), 17)
    assert found[-1] > 700.0
    assert found[-1] > found[3] > found[1]
    assert score(12135.0) == pytest.approx(100.0)


def test_a_few_iterations_of_search_already_run() -> None:
    *_, (policy, last) = search(12, seed=1, steps=100)
    (first, _), *_ = search(1, seed=1, steps=100)
    standing, _ = returns([Linear(np.zeros((6, 17)), policy.mean, policy.std)], seed=2, steps=100)
    assert isinstance(first, Linear)
    assert last > standing[0] + 10.0


def test_actions_must_fit() -> None:
    cheetahs = Cheetahs(2)
    cheetahs.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected finite \(2, 6\)"):
        cheetahs.step(np.zeros((1, ACTIONS)))
    with pytest.raises(ValueError, match="1 not finite"):
        cheetahs.step(np.array([[np.nan, 0, 0, 0, 0, 0], [0.0] * 6]))
