"""The arm and its blocks: inverse kinematics, grasping by friction, and what is refused."""

from importlib.util import find_spec

import numpy as np
import pytest

from envs.stacking import BLOCKS, SIDE, WIDTH, Stacking, clear, model, on, scattered, tower
from envs.stacking_expert import carried_out, motion

pytestmark = pytest.mark.skipif(
    find_spec("gymnasium_robotics") is None, reason="the arm's model: pip install 'diffusion-workbench[arm]'"
)


@pytest.fixture(scope="module")
def env() -> Stacking:
    return Stacking()


def test_the_hand_goes_where_it_is_told_and_stays_upright(env: Stacking) -> None:
    env.reset(scattered(np.random.default_rng(0)))
    for xyz in ([0.45, 0.1, 0.2], [0.6, -0.2, 0.1], [0.38, 0.22, 0.25]):
        for _ in range(40):
            env.step(np.array([*xyz, WIDTH]))
        np.testing.assert_allclose(env.tips(), xyz, atol=4e-3)
        upright = env.data.site_xmat[env.site].reshape(3, 3)
        np.testing.assert_allclose(upright, np.diag([1.0, -1.0, -1.0]), atol=0.05)


def test_a_scripted_hand_stacks_by_friction_alone(env: Stacking) -> None:
    assert model().neq == 0
    came_off = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        state = env.reset(scattered(rng))
        a, b = (int(k) for k in rng.choice(BLOCKS, 2, replace=False))
        target = state[4 + 3 * b : 7 + 3 * b] + np.array([0.0, 0.0, SIDE])
        states = carried_out(env, motion(state, a, target, 0.16))
        assert states[:, 4 + 3 * a + 2].max() > 0.1
        came_off += on(states[-1][4:].reshape(BLOCKS, 3), a, b)
    assert came_off >= 18


def test_the_same_actions_come_to_the_same(env: Stacking) -> None:
    blocks = scattered(np.random.default_rng(3))
    ends = []
    for _ in range(2):
        state = env.reset(blocks)
        ends.append(carried_out(env, motion(state, 0, state[7:10] + np.array([0.0, 0.0, SIDE]), 0.16))[-1])
    np.testing.assert_array_equal(*ends)


def test_towers_stand(env: Stacking) -> None:
    state = env.reset(tower([0.5, 0.0], [2, 0, 3]))
    blocks = state[4:].reshape(BLOCKS, 3)
    assert on(blocks, 0, 2) and on(blocks, 3, 0) and clear(blocks, 3) and not clear(blocks, 0)
    for _ in range(20):
        state = env.step(np.array([0.4, 0.2, 0.3, WIDTH]))
    np.testing.assert_allclose(state[4:].reshape(BLOCKS, 3), blocks, atol=3e-3)


def test_what_does_not_fit_is_refused(env: Stacking) -> None:
    blocks = scattered(np.random.default_rng(0))
    inside = blocks.copy()
    inside[1] = inside[0] + 0.01
    far = blocks.copy()
    far[0, 0] = 1.5
    for wrong in (inside, far, blocks - [0.0, 0.0, 0.01]):
        with pytest.raises(ValueError, match="four middles"):
            env.reset(wrong)
    with pytest.raises(ValueError, match="expected finite x, y, z and width"):
        env.step(np.array([0.4, np.nan, 0.1, 0.0]))
