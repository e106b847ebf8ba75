"""robomimic's tasks: the arm is robosuite's, seeds decide everything, experts solve them, pictures show what is."""

import gc
import json
import sys
import weakref

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.spatial.transform import Rotation

pytest.importorskip("robosuite", reason="robosuite is not installed (extra robosuite)")

from envs import manipulation_arm
from envs.manipulation import INSTRUCTIONS, Manipulation
from envs.manipulation_arm import Arm
from envs.manipulation_expert import ManipulationExpert, expert

TASKS = tuple(INSTRUCTIONS)


def play(env, acting, seed: int, steps: int = 400):
    acting.reset(seed)
    seen, info = env.reset(seed=seed)
    rows, ended = [(seen, info)], False
    while not ended and len(rows) <= steps:
        seen, _, terminated, truncated, info = env.step(acting.act(seen))
        rows.append((seen, info))
        ended = terminated or truncated
    return rows


def put(env, axes: slice, values) -> None:
    """Move the cube, along some axes."""
    # not above: how pictures are made is settled when it is imported, and `envs` says how
    import mujoco

    model, data = env.arm.model, env.arm.data
    first = model.jnt_qposadr[model.body("cube_main").jntadr[0]]
    data.qpos[first : first + 3][axes] = values
    mujoco.mj_forward(model, data)


def test_the_arm_moves_as_robosuite_moves_it():
    """Its own step, 25 evaluations of its own controller, from the same start with the same actions."""
    rng = np.random.default_rng(0)
    for absolute, turning, close in ((False, 0.0, 1e-9), (True, 1.0, 1e-9), (False, 1.0, 1e-4)):
        # relative turns go through single precision in robosuite
        ours, theirs = Arm("Lift", absolute), Arm("Lift", absolute)
        ours.reset(1)
        theirs.reset(1)
        # else its first torque is that of the mass matrix before the joints were placed
        theirs.task.robots[0].part_controllers["right"].new_update = True
        for step in range(12):
            action = rng.uniform(-1.0, 1.0, 7)
            action[3:6] *= turning
            if absolute:
                here = Rotation.from_matrix(ours.data.site_xmat[ours.site].reshape(3, 3))
                turned = Rotation.from_rotvec(0.3 * action[3:6]) * here
                action[:6] = np.concatenate([ours.data.site_xpos[ours.site] + 0.04 * action[:3], turned.as_rotvec()])
            ours.step(action)
            theirs.task.step(action)
            np.testing.assert_allclose(ours.state[1:], theirs.state[1:], atol=close, err_msg=f"step {step}")
        assert np.abs(ours.data.qvel[ours.dofs]).max() > 0.05


@pytest.mark.parametrize("task", TASKS)
def test_observations_are_what_robosuite_measures(task):
    env = Manipulation(task)
    env.reset(seed=2)
    for _ in range(5):
        seen, *_ = env.step(np.array([0.5, -0.3, -0.6, 0.1, 0.2, -0.4, -1.0]))
    suite = env.arm.task
    # the first time robosuite computes what the hand sees from where the object was before
    suite._get_observations(force_update=True)
    theirs = suite._get_observations(force_update=True)
    for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"):
        np.testing.assert_allclose(seen[key], theirs[key], atol=1e-6)
    name = {"Lift": "cube", "PickPlaceCan": "Can", "NutAssemblySquare": "SquareNut"}[task]
    parts = [theirs[f"{name}_pos"], theirs[f"{name}_quat"]]
    if task == "Lift":
        parts.append(-theirs["gripper_to_cube_pos"])
    else:
        parts += [theirs[f"{name}_to_robot0_eef_pos"], theirs[f"{name}_to_robot0_eef_quat"]]
    np.testing.assert_allclose(seen["object"], np.concatenate(parts), atol=1e-5)


def test_robosuite_makes_the_same_environment_of_what_a_file_says():
    env = Manipulation("PickPlaceCan", absolute=True)
    env.reset(seed=3)
    told = json.loads(json.dumps(env.env_args))
    assert told["type"] == 1
    made = manipulation_arm._robosuite().make(told["env_name"], **told["env_kwargs"], renderer="mujoco")
    made.reset()
    made.sim.data._data.qpos[:], made.sim.data._data.qvel[:] = env.arm.data.qpos, env.arm.data.qvel
    made.sim.forward()
    made.robots[0].part_controllers["right"].update_initial_joints(env.arm.data.qpos[env.arm.places])
    made.robots[0].part_controllers["right"].new_update = True
    pose = np.concatenate([[0.0, -0.1, 1.0], [3.0, 0.1, 0.0], [1.0]])
    for _ in range(3):
        env.step(pose)
        made.step(pose)
    arm = env.arm
    np.testing.assert_allclose(made.sim.data._data.qpos[arm.places], arm.data.qpos[arm.places], atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_experts_solve_the_tasks(task):
    for seed, absolute in ((100_000, False), (100_001, True)):
        env = Manipulation(task, absolute=absolute)
        rows = play(env, expert(task, absolute), seed)
        assert rows[-1][1]["is_success"] and not any(info["is_success"] for _, info in rows[:-1])
        assert all(env.observation_space.contains(seen) for seen, _ in rows)


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_depends_on_its_seed_alone_and_styles_differ(task):
    used, acting = Manipulation(task), expert(task)
    used.reset(seed=7)
    used.step(np.ones(7))
    before = np.random.get_state()[1].copy()
    rows = zip(play(used, acting, 4, 60), play(Manipulation(task), expert(task), 4, 60), strict=True)
    assert all((a["state"] == b["state"]).all() for (_, a), (_, b) in rows)
    # robosuite draws from numpy's global generator, which is lent
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    starts = [used.reset(seed=seed)[0] for seed in (4, 5)]
    assert np.abs(starts[0]["object"] - starts[1]["object"]).max() > 1e-3
    actions = []
    for seed in (1, 2):
        acting.reset(seed)
        actions.append(acting.act(starts[0]))
    assert np.linalg.norm(actions[0] - actions[1]) > 1e-2


def test_success_is_the_cube_in_the_air():
    env = Manipulation("Lift")
    env.reset(seed=0)
    for above, solved in ((0.035, False), (0.045, True)):
        put(env, slice(2, 3), 0.8 + above)
        assert env.arm.success() == solved


def test_an_expert_that_loses_the_cube_takes_it_again():
    env, acting = Manipulation("Lift"), ManipulationExpert("Lift")
    acting.reset(0)
    seen, _ = env.reset(seed=0)
    moved, legs = False, []
    for _ in range(150):
        seen, _, solved, _, _ = env.step(acting.act(seen))
        legs.append(acting._leg)
        if acting._leg == "close" and not moved:
            moved = True
            put(env, slice(0, 3), [0.08, 0.08, 0.822])
        if solved:
            break
    assert moved and solved and legs.count("above") > 5 and "above" in legs[legs.index("up") :]


def test_pictures_show_the_cube_where_it_is():
    env = Manipulation("Lift", cameras=("agentview", "robot0_eye_in_hand"), size=48)
    seen, _ = env.reset(seed=0)
    assert env.observation_space.contains(seen)

    def middle(x: float, y: float) -> np.ndarray:
        put(env, slice(0, 2), [x, y])
        picture = env._picture("agentview", 48).astype(int)
        red = (picture[..., 0] > 80) & (picture[..., 0] - picture[..., 1] > 50)
        assert 5 < red.sum() < 200
        return np.argwhere(red).mean(0)

    # the camera looks at the robot: x comes towards it, down in the picture, and y is to its right
    far, near, right = middle(-0.05, 0.0), middle(0.1, 0.0), middle(0.1, 0.1)
    assert near[0] > far[0] + 3 and right[1] > near[1] + 3
    picture = env.render()
    assert picture is not None and picture.shape == (240, 240, 3)


def test_it_is_a_gymnasium_environment():
    check_env(Manipulation("NutAssemblySquare", max_steps=5), skip_render_check=True)
    env = Manipulation("Lift", max_steps=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(7))[3] for _ in range(2)] == [False, True]


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="task: got 'Stack'"):
        Manipulation("Stack")
    with pytest.raises(ValueError, match="task: got 'Stack'"):
        expert("Stack")
    with pytest.raises(ValueError, match="cameras: got 'top'"):
        Manipulation(cameras=("top",))
    with pytest.raises(ValueError, match="got 0 and 400"):
        Manipulation(size=0)
    env = Manipulation()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.array([np.nan] * 7))
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(ValueError, match=r"diffusion-workbench\[robosuite\]"):
        manipulation_arm._robosuite.__wrapped__()


def test_what_is_closed_gives_its_memory_back_at_once():
    env = Manipulation("Lift", render_mode=None)
    gc.disable()
    try:
        model = weakref.ref(env.arm.model)
        env.close()
        env.close()
        assert model() is None
    finally:
        gc.enable()
