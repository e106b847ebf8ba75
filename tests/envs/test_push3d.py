"""The T on a table: its friction, its measure, its expert, and what the seed decides."""

import time

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import pusht
from envs.push3d import DT, HEIGHT, SUCCESS, Push3D, coverage, planar
from envs.push3d_expert import Push3DExpert


def play(env, acting, seed: int):
    acting.reset(seed)
    seen, info = env.reset(seed=seed)
    rows, ended = [(seen, info)], False
    while not ended:
        seen, _, terminated, truncated, info = env.step(acting.act(seen))
        rows.append((seen, info))
        ended = terminated or truncated
    return rows


@pytest.mark.parametrize("goals", ["one", "any"])
def test_the_expert_solves_it(goals):
    env, acting = Push3D(goals), Push3DExpert()
    for seed in (100_000, 100_001):
        rows = play(env, acting, seed)
        assert rows[-1][1]["is_success"] and rows[-1][1]["coverage"] > SUCCESS
        assert all(env.observation_space.contains(seen) for seen, _ in rows)
        # the block slides: it never leaves the table and never tips
        assert abs(env.data.body("block").xpos[2] - HEIGHT / 2) < 2e-3
        assert env.data.body("block").xmat[8] > 0.99


def test_an_episode_depends_on_its_seed_alone_and_styles_differ():
    used, acting = Push3D(), Push3DExpert()
    play(used, acting, 3)
    again, before = play(used, acting, 4), play(Push3D(), Push3DExpert(), 4)
    assert [info["state"].tolist() for _, info in again] == [info["state"].tolist() for _, info in before]
    starts = {seed: used.reset(seed=seed)[1]["state"] for seed in (4, 5)}
    assert np.abs(starts[4] - starts[5]).max() > 0.01
    seen, _ = used.reset(seed=4)
    actions = []
    for seed in (1, 2):
        acting.reset(seed)
        actions.append(acting.act(seen))
    assert np.linalg.norm(actions[0] - actions[1]) > 1e-3


def test_a_block_left_alone_slows_down_by_friction():
    # envs chooses how mujoco draws, and must so be imported before it
    import mujoco

    env = Push3D()
    env.reset(seed=0)
    env.data.qpos[-2:], env.data.ctrl[:] = [0.28, 0.28], [0.28, 0.28]
    env.data.qvel[:2] = [-0.3, 0.0]
    mujoco.mj_forward(env.model, env.data)
    begin = env.data.qpos[:2].copy()
    for _ in range(20):
        env.step(np.array([0.28, 0.28]))
    slid = float(np.linalg.norm(env.data.qpos[:2] - begin))
    # v² / (2 mu g); a T thrown without spin barely turns
    assert slid == pytest.approx(0.3**2 / (2 * 0.5 * 9.81), rel=0.15)
    assert np.abs(env.data.qvel[:6]).max() < 1e-3


def test_the_finger_goes_where_it_is_told():
    env = Push3D()
    env.reset(seed=0)
    env.data.qpos[:2] = [0.25, -0.25]
    for _ in range(20):
        seen, *_ = env.step(np.array([-0.2, 0.15]))
    np.testing.assert_allclose(seen["finger"], [-0.2, 0.15], atol=1e-3)
    for _ in range(30):
        seen, *_ = env.step(np.array([-9.0, 0.0]))
    np.testing.assert_allclose(seen["finger"], [-0.3, 0.0], atol=1e-3)


def test_coverage_is_the_planar_one_and_moves_with_the_goal():
    goal = np.array([0.03, -0.02, 1.1])
    assert coverage(goal, goal) == pytest.approx(1.0)
    # half the width of the stem aside along the stem's normal, seen from the goal
    pose = np.array([*(goal[:2] + pusht.rotation(goal[2]) @ [0.015, 0.0]), goal[2]])
    assert coverage(pose, goal) == pytest.approx((105 * 30 + 15 * 90) / pusht.AREA)
    np.testing.assert_allclose(planar(goal, goal), pusht.GOAL)


def test_it_is_many_times_faster_than_time():
    env = Push3D()
    env.reset(seed=0)
    begin = time.process_time()
    for k in range(100):
        env.step(np.array([0.1 * np.cos(k / 8), 0.1 * np.sin(k / 8)]))
    assert 100 * DT / (time.process_time() - begin) > 20.0


def test_gymnasium_accepts_it_and_cameras_show_the_block():
    env = Push3D("any", cameras=["side", "top"], size=48)
    check_env(env, skip_render_check=False)
    seen, info = env.reset(seed=2)
    top = seen["top_image"].astype(int)
    blue = (top[..., 2] > top[..., 0] + 20) & (top[..., 2] > top[..., 1] + 5)
    row, column = np.argwhere(blue).mean(0)
    # 0.85 m above the table, 45 degrees of view: 48 px are 0.7 m, x to the right and y up
    scale = 2 * (0.85 - HEIGHT) * np.tan(np.pi / 8) / 48
    centre = info["state"][2:4] + pusht.rotation(info["state"][4]) @ [0.0, 0.0407]
    np.testing.assert_allclose([(column - 23.5) * scale, (23.5 - row) * scale], centre, atol=0.02)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Push3D("two"), "got 'two'; expected 'one' or 'any'"),
        (lambda: Push3D(cameras=["front"]), "got 'front'; expected some of side, top"),
        (lambda: Push3D(size=0), "expected both at least 1"),
        (lambda: Push3D().step(np.array([0.0, np.inf])), "expected 2 finite numbers"),
    ],
)
def test_mistakes(make, text):
    with pytest.raises(ValueError, match=text):
        make()
