"""The kitchen: what counts as done, what the seed decides, which action moves what."""

import sys

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import kitchen
from envs.kitchen import ROBOT, TASKS, Kitchen
from envs.kitchen_expert import KitchenExpert, Style

DONE = {"microwave": ([22], [-0.75]), "slide cabinet": ([19], [0.37]), "light switch": ([17, 18], [-0.69, -0.05])}
"""Joints of some tasks, and where they should be."""


def put(env: Kitchen, task: str, share: float = 1.0) -> None:
    places, values = DONE[task]
    env._inner.data.qpos[places] = share * np.array(values)


def test_what_is_done_is_counted_once_in_the_order_in_which_it_was_and_stays_done():
    env = Kitchen(enough=2)
    _, info = env.reset(seed=0)
    assert info["completed"] == [] and not info["p1"]
    still = np.zeros(ROBOT)
    put(env, "slide cabinet", share=0.1)
    _, reward, *_, info = env.step(still)
    # 0.333 from where it should be
    assert reward == 0.0 and info["completed"] == []
    put(env, "slide cabinet")
    _, reward, solved, _, info = env.step(still)
    assert reward == 1.0 and not solved and info["completed"] == ["slide cabinet"] and info["p1"] and not info["p2"]
    env._inner.data.qpos[19] = 0.0
    put(env, "microwave")
    _, reward, solved, _, info = env.step(still)
    assert reward == 1.0 and solved and info["is_success"] and info["completed"] == ["slide cabinet", "microwave"]
    assert [info[f"p{n}"] for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert env.reset(seed=0)[1]["completed"] == []


def test_only_tasks_that_were_asked_for_count():
    env = Kitchen(tasks=("microwave",), enough=1)
    env.reset(seed=0)
    put(env, "slide cabinet")
    assert env.step(np.zeros(ROBOT))[4]["completed"] == []
    put(env, "microwave")
    assert env.step(np.zeros(ROBOT))[2]


def test_an_episode_depends_on_its_seed_alone():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (15, ROBOT))
    used, runs = Kitchen(), []
    used.reset(seed=9)
    used.step(actions[0])
    for env, seed in ((used, 1), (Kitchen(), 1), (used, 2)):
        seen = [env.reset(seed=seed)[0]] + [env.step(action)[0] for action in actions]
        assert all(env.observation_space.contains(row) for row in seen)
        runs.append(np.stack([np.concatenate(list(row.values())) for row in seen]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert 0.0 < np.abs(runs[2][0] - runs[0][0]).max() < 0.02


def test_without_noise_one_sees_what_is():
    env = Kitchen(noise=0.0)
    env.reset(seed=0)
    seen, *_, info = env.step(np.full(ROBOT, 0.2))
    places = np.concatenate([seen["robot_qpos"], seen["object_qpos"], seen["robot_qvel"], seen["object_qvel"]])
    np.testing.assert_allclose(places, info["state"], atol=1e-6)


@pytest.mark.parametrize("joint", range(7))
def test_an_action_moves_its_joint_the_way_it_says(joint):
    ends = []
    for sign in (-1.0, 1.0):
        env = Kitchen(noise=0.0)
        env.reset(seed=0)
        for _ in range(4):
            seen, *_ = env.step(sign * np.eye(ROBOT)[joint])
        ends.append(seen["robot_qpos"])
    moved = ends[1] - ends[0]
    assert moved[joint] > 0.05 and np.abs(moved).argmax() == joint


def test_pictures_show_what_moves():
    env = Kitchen(cameras=("overview",), size=48)
    before = env.reset(seed=0)[0]["overview_image"].astype(int)
    assert before.std() > 20
    put(env, "microwave")
    after = env.step(np.zeros(ROBOT))[0]["overview_image"].astype(int)
    assert (np.abs(after - before).max(-1) > 40).sum() > 20
    picture = env.render()
    assert picture is not None and picture.shape == (240, 240, 3)


def test_it_is_a_gymnasium_environment():
    check_env(Kitchen(max_steps=5), skip_render_check=True)
    env = Kitchen(max_steps=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(ROBOT))[3] for _ in range(2)] == [False, True]


def test_mistakes_are_named(monkeypatch):
    for wrong, said in (
        ({"tasks": ("dishes",)}, "tasks: got 'dishes'"),
        ({"cameras": ("top",)}, "cameras: got 'top'"),
        ({"tasks": TASKS[:2], "enough": 3}, "enough: got 3 of 2"),
        ({"noise": -1.0}, "noise: got 84, 280 and -1.0"),
    ):
        with pytest.raises(ValueError, match=said):
            Kitchen(**wrong)
    env = Kitchen()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="9 finite numbers"):
        env.step(np.zeros(7))
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.franka_kitchen", None)
    with pytest.raises(ValueError, match=r"diffusion-workbench\[arm\]"):
        kitchen._simulator.__wrapped__()


def play(expert: KitchenExpert, env: Kitchen, seed: int, disturb: float = 0.0) -> tuple[dict, np.ndarray]:
    """Let the expert act, one step in seven with N(0, disturb²) added: the last information, the actions it wanted."""
    rng, wanted = np.random.default_rng(seed), []
    seen, info = env.reset(seed=seed)
    expert.reset(seed)
    over = False
    while not over:
        action = expert.act(seen)
        assert action.shape == (ROBOT,) and np.abs(action).max() <= 1.0
        wanted.append(action)
        sent = action + disturb * rng.normal(size=ROBOT) * (len(wanted) % 7 == 0)
        seen, _, solved, late, info = env.step(sent)
        over = solved or late
    return info, np.stack(wanted)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_does_each_thing_also_when_disturbed(task):
    env, expert = Kitchen(tasks=(task,), enough=1, max_steps=160), KitchenExpert((task,), 1)
    info, calm = play(expert, env, seed=1)
    assert info["completed"] == [task]
    info, other = play(expert, env, seed=2, disturb=0.5)
    assert info["completed"] == [task]
    # every episode has a manner of its own, and is the same when played again
    n = min(len(calm), len(other))
    assert np.abs(calm[:n] - other[:n]).max() > 0.1
    np.testing.assert_array_equal(play(expert, env, seed=1)[1], calm)


def test_the_expert_does_four_of_seven_in_an_order_drawn_from_the_seed():
    env, expert = Kitchen(enough=4), KitchenExpert(enough=4)
    orders = []
    for seed in (3, 4, 5):
        info, _ = play(expert, env, seed)
        assert info["p4"] and tuple(info["completed"]) == expert.style.order[:4]
        orders.append(expert.style.order)
    assert len(set(orders)) == 3
    drawn = [Style.drawn(np.random.default_rng(seed), TASKS, 4).order[:4] for seed in range(200)]
    assert {order.index("hinge cabinet") for order in drawn if "hinge cabinet" in order} == {3}
    assert {order[0] for order in drawn} == set(TASKS) - {"hinge cabinet"}


def test_the_expert_takes_a_handle_again_that_it_lost():
    env, expert = Kitchen(tasks=("microwave",), enough=1, noise=0.0), KitchenExpert(("microwave",), 1)
    seen, info = env.reset(seed=0)
    expert.reset(0)
    pulled = False
    while not info["is_success"] and env._steps < 200:
        seen, *_, info = env.step(expert.act(seen))
        if not pulled and seen["object_qpos"][22 - ROBOT] < -0.2:
            pulled = True
            # shut while the hand is where it was pulled to
            env._inner.data.qpos[22] = 0.0
    assert pulled and info["completed"] == ["microwave"]


def test_a_model_of_its_own_lets_the_expert_touch_nothing_of_the_kitchen():
    env, expert = Kitchen(noise=0.0), KitchenExpert()
    seen, info = env.reset(seed=0)
    expert.act(seen)
    np.testing.assert_array_equal(env.state, info["state"])


def test_the_expert_names_what_it_cannot_do():
    with pytest.raises(ValueError, match="tasks: got 'dishes'"):
        KitchenExpert(("dishes",), 1)
