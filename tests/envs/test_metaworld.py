"""Meta-World: seeds decide everything, experts solve the tasks, pictures are the right way up, mistakes are named."""

import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import metaworld
from envs.metaworld import Expert, MetaWorld, MetaWorldMulti, expert
from envs.metaworld_tasks import INSTRUCTIONS

LEARNED = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "door-close-v3",
    "window-open-v3",
    "window-close-v3",
    "faucet-open-v3",
)


def play(env, acting, seed: int, steps: int = 200):
    seen, info = env.reset(seed=seed)
    rows, ended = [(seen, info)], False
    while not ended and len(rows) <= steps:
        seen, _, terminated, truncated, info = env.step(acting.act(seen))
        rows.append((seen, info))
        ended = terminated or truncated
    return rows


def test_every_task_of_the_package_has_an_instruction_of_its_own():
    from metaworld.policies import ENV_POLICY_MAP

    assert set(INSTRUCTIONS) == set(ENV_POLICY_MAP)
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS)


@pytest.mark.parametrize("task", LEARNED)
def test_experts_solve_what_is_learned(task):
    env, acting = MetaWorld(task), expert(task)
    for seed in (100_000, 100_001):
        rows = play(env, acting, seed)
        assert rows[-1][1]["is_success"] and not any(info["is_success"] for _, info in rows[:-1])
        assert all(env.observation_space.contains(seen) for seen, _ in rows)
        goals = np.stack([seen["goal"] for seen, _ in rows])
        assert (goals == goals[0]).all()


@pytest.mark.parametrize("task", ["drawer-open-v3", "pick-place-v3", "coffee-push-v3"])
def test_an_episode_depends_on_its_seed_alone(task):
    acting, used = expert(task), MetaWorld(task)
    play(used, acting, 7)
    play(used, acting, 8, steps=30)
    fresh = MetaWorld(task)
    for (a, told_a), (b, told_b) in zip(play(fresh, acting, 5), play(used, acting, 5), strict=True):
        np.testing.assert_array_equal(told_a["state"], told_b["state"])
        assert all((a[key] == b[key]).all() for key in a)
    assert not np.array_equal(fresh.reset(seed=6)[0]["goal"], used.reset(seed=5)[0]["goal"]) or task[:6] == "coffee"


def test_starts_fill_the_ranges_that_the_package_draws_from():
    env = MetaWorld("reach-v3")
    goals = np.stack([env.reset(seed=seed)[0]["goal"] for seed in range(40)])
    low, high = np.array([-0.1, 0.8, 0.05]), np.array([0.1, 0.9, 0.3])
    assert (goals >= low - 1e-6).all() and (goals <= high + 1e-6).all()
    # of 40 uniform draws the mean lies within 5 standard errors of the middle, and the ends come near
    assert (np.abs(goals.mean(0) - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * 40)).all()
    assert (np.ptp(goals, axis=0) > 0.75 * (high - low)).all()


def test_the_goal_is_where_success_is():
    env, acting = MetaWorld("reach-v3"), expert("reach-v3")
    for seed in range(3):
        rows = play(env, acting, seed)
        gaps = [np.linalg.norm(seen["hand"] - seen["goal"]) for seen, _ in rows]
        # success is judged between the fingers, a little below the hand that is observed
        assert gaps[0] > 0.1 and gaps[-1] < 0.1
        for _ in range(20):
            seen, *_, info = env.step(acting.act(rows[-1][0]))
            rows.append((seen, info))
        assert info["is_success"]


def test_actions_move_the_hand_and_are_cut_to_one():
    ends = []
    for action in ([1.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]):
        env = MetaWorld("reach-v3")
        begin = env.reset(seed=0)[0]["hand"]
        for _ in range(10):
            seen, *_ = env.step(np.array(action, np.float32))
        ends.append(seen["hand"] - begin)
    np.testing.assert_array_equal(*ends)
    # ten steps ask for 0.1 m; the hand follows what pulls it with a lag
    assert 0.05 < ends[0][0] <= 0.105 and abs(ends[0][1]) < 0.02


def test_gymnasium_accepts_it_with_a_camera():
    check_env(MetaWorld("drawer-open-v3", cameras=["corner2"], size=32), skip_render_check=False)
    check_env(MetaWorldMulti(["reach-v3", "drawer-open-v3"]), skip_render_check=False)


@pytest.mark.parametrize("camera", ["corner2"])
def test_pictures_are_the_right_way_up_and_not_mirrored(camera):
    env = MetaWorld("reach-v3", cameras=[camera], size=96)
    seen, _ = env.reset(seed=1)
    again = env.reset(seed=1)[0][f"{camera}_image"]
    np.testing.assert_array_equal(again, seen[f"{camera}_image"])
    axes = env._inner.data.camera(camera).xmat.reshape(3, 3)
    # it hangs the wrong way up: what it calls up is down in the world, and so the picture is turned
    assert -axes[2, 1] > 0.5

    def finger(picture):
        red, green, blue = picture.astype(int).transpose(2, 0, 1)
        return np.argwhere((blue > red + 60) & (green > red + 60)).mean(0)

    before, at = finger(seen[f"{camera}_image"]), seen["hand"]
    for _ in range(15):
        seen, *_ = env.step(np.array([1.0, 0.5, 0.0, 0.0]))
    moved, shift = seen["hand"] - at, finger(seen[f"{camera}_image"]) - before
    right, up = -(moved @ axes[:, 0]), -(moved @ axes[:, 1])
    # the finger goes in the picture where the hand goes as the camera's axes see it
    cosine = (right * shift[1] - up * shift[0]) / (np.hypot(right, up) * np.hypot(*shift))
    assert np.hypot(*shift) > 4.0 and cosine > 0.97


def test_the_seed_says_which_of_several_tasks():
    tasks = ["reach-v3", "drawer-close-v3", "window-open-v3"]
    env, acting = MetaWorldMulti(tasks), Expert(tasks)
    for seed in (3, 4, 5):
        rows = play(env, acting, seed)
        told = rows[-1][1]
        assert told["is_success"] and told["task_index"] == seed % 3
        assert rows[0][0]["instruction"] == told["instruction"] == INSTRUCTIONS[tasks[seed % 3]] == env.instruction
        assert env.observation_space.contains(rows[0][0])
        alone = MetaWorld(tasks[seed % 3]).reset(seed=seed)[0]
        assert all((alone[key] == rows[0][0][key]).all() for key in alone)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MetaWorld("drawer-opn-v3"), "got 'drawer-opn-v3'; expected one of assembly-v3"),
        (lambda: MetaWorld(cameras=["front"]), "got 'front'; expected some of corner2"),
        (lambda: MetaWorld(max_steps=0), "expected both at least 1"),
        (lambda: MetaWorldMulti([]), "tasks: got none"),
        (lambda: expert(), "expected one of the two"),
        (lambda: Expert(["reach-v2"]), "got \\['reach-v2'\\]"),
        (lambda: MetaWorld().step(np.array([np.nan, 0, 0, 0])), "expected 4 finite numbers"),
        (lambda: Expert(["reach-v3", "push-v3"]).act({"instruction": "dance"}), "got 'dance'"),
    ],
)
def test_mistakes(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    metaworld._kind.cache_clear()
    with pytest.raises(ValueError, match=r"diffusion-workbench\[manipulation\]"):
        MetaWorld("reach-v3")
