"""`generate` for any task: what is recorded, what is disturbed, what is left out, and that processes do not matter."""

import json
from functools import partial

import h5py
import numpy as np
import pytest

from envs.metaworld import MetaWorld, MetaWorldMulti, expert
from envs.metaworld_tasks import INSTRUCTIONS
from envs.push3d import Push3D
from envs.push3d_expert import Push3DExpert
from policy.data import __main__ as cli
from policy.data.generate import TASKS, Generate, scene, task_leaf
from policy.data.recording import Bursts, Scene, play
from policy.data.replay import ReplayBuffer

DRAWER = "metaworld_drawer_open"


def generated(tmp_path, *words: str) -> ReplayBuffer:
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr.zip"
    assert cli.main(["generate", "jobs=1", f"out={out}", *words]) == 0
    return ReplayBuffer.load(out)


@pytest.mark.parametrize("name", [*sorted(p.stem for p in TASKS.glob("metaworld_*.yaml")), "push3d", "push3d_image"])
def test_leaves_name_an_environment_and_its_expert(name):
    leaf = task_leaf(name)
    made, told = scene(Generate(out="", task=name), leaf)
    env, acting = made.env(), made.expert()
    assert leaf["name"] == name and set(leaf["obs"]) <= set(env.observation_space.spaces)
    assert told["fps"] == env.metadata["render_fps"] and hasattr(acting, "act")
    if "tasks" in leaf["env"]:
        assert leaf["env"]["tasks"] == leaf["expert"]["tasks"]
    elif "task" in leaf["env"]:
        assert leaf["env"]["task"] == leaf["expert"]["task"]


def test_what_is_stored_replays_to_what_was_seen(tmp_path):
    buffer = generated(tmp_path, f"task={DRAWER}", "episodes=2", "seed=11", "rest=4")
    assert buffer.n_episodes == 2 and buffer.attributes["seeds"] == [11, 12]
    assert buffer.attributes["tasks"] == [INSTRUCTIONS["drawer-open-v3"]] and buffer.attributes["fps"] == 80
    assert {k: v.dtype.name for k, v in buffer.arrays.items()} == dict.fromkeys(
        ("action", "gripper", "goal", "hand", "objects", "reward"), "float32"
    )
    env = MetaWorld("drawer-open-v3")
    for i, seed in enumerate(buffer.attributes["seeds"]):
        rows = buffer.episode(i)
        seen, _ = env.reset(seed=seed)
        successes = []
        for t, action in enumerate(rows["action"]):
            assert all((seen[key] == rows[key][t]).all() for key in seen)
            seen, reward, *_, info = env.step(action)
            assert np.float32(reward) == rows["reward"][t]
            successes.append(info["is_success"])
        # the first success is followed by the rows of rest
        assert successes.index(True) == len(successes) - 1 - 4


def test_it_is_the_same_for_any_number_of_processes(tmp_path):
    common = ["generate", "task=metaworld_multi", "episodes=6", "noise_rate=0.1", "noise_scale=0.5"]
    for jobs in (1, 2):
        assert cli.main([*common, f"jobs={jobs}", f"out={tmp_path / f'{jobs}.npz'}"]) == 0
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    buffer = ReplayBuffer.load(tmp_path / "1.npz")
    tasks = task_leaf("metaworld_multi")["env"]["tasks"]
    assert buffer.attributes["tasks"] == [INSTRUCTIONS[task] for task in tasks]
    index = [int(buffer.episode(i)["task_index"][0]) for i in range(buffer.n_episodes)]
    assert index == [seed % len(tasks) for seed in buffer.attributes["seeds"]]
    assert buffer.arrays["task_index"].dtype == np.int64


def test_what_is_executed_is_disturbed_and_what_is_recorded_is_intended():
    env, acting = Push3D(), Push3DExpert()
    calm, shaken = (
        play(env, acting, 1, Scene(Push3D, Push3DExpert, bursts, rest=0))
        for bursts in (Bursts(), Bursts(rate=0.3, steps=4, scale=0.1))
    )
    assert calm.solved and (calm.arrays["action"][0] == shaken.arrays["action"][0]).all()
    assert calm.arrays["action"].shape != shaken.arrays["action"].shape
    # what the expert wanted, asked again with what was recorded
    acting.reset(1)
    for t, action in enumerate(shaken.arrays["action"]):
        seen = {key: shaken.arrays[key][t] for key in ("finger", "block", "goal")}
        np.testing.assert_array_equal(acting.act(seen), action)


def test_unsolved_episodes_are_left_out_and_counted(tmp_path, capsys):
    # a drawer takes its expert 85 to 95 steps
    buffer = generated(tmp_path, f"task={DRAWER}", "episodes=6", "seed=0", "max_steps=89", "rest=0")
    solved, unsolved = buffer.attributes["seeds"], buffer.attributes["unsolved"]
    assert sorted(solved + unsolved) == list(range(6)) and 0 < len(unsolved) < 6
    assert f"{len(unsolved)} of 6 episodes, unsolved" in capsys.readouterr().out
    assert buffer.n_episodes == len(solved) and buffer.episode_lengths.max() <= 89


def test_robomimics_format_can_be_played_back_by_robosuite(tmp_path):
    robosuite = pytest.importorskip("robosuite", reason="robosuite is not installed (extra robosuite)")
    out = tmp_path / "lift.hdf5"
    assert cli.main(["generate", "jobs=1", "task=lift", "episodes=2", "seed=3", "rest=2", f"out={out}"]) == 0
    with h5py.File(out) as file:
        args = json.loads(file["data"].attrs["env_args"])
        env = robosuite.make(args["env_name"], **args["env_kwargs"], renderer="mujoco")
        for demo in file["data"].values():
            assert demo["dones"][-3:].tolist() == [1, 1, 1] and demo["dones"][:-3].sum() == 0
            assert demo["actions"].shape == (demo.attrs["num_samples"], 7)
            env.reset_from_xml_string(demo.attrs["model_file"])
            for t in (0, len(demo["states"]) - 1):
                env.sim.set_state_from_flattened(demo["states"][t])
                env.sim.forward()
                seen = env.sim.data.body_xpos[env.sim.model.body_name2id("cube_main")]
                # as in robosuite, what is seen is a step of the simulation, 2 ms, older than the state
                np.testing.assert_allclose(seen, demo["obs/object"][t, :3], atol=1e-3)
            assert np.ptp(demo["obs/object"][:, 2]) > 0.02
        env.close()


def test_a_folder_of_lerobots_on_demand(tmp_path):
    out = tmp_path / "drawer"
    words = ["generate", "jobs=1", f"task={DRAWER}", "episodes=1", f"out={out}", "format=lerobot"]
    assert cli.main(words) == 0
    buffer = ReplayBuffer.load(out)
    assert buffer.n_episodes == 1 and buffer.attributes["tasks"] == [INSTRUCTIONS["drawer-open-v3"]]


def test_images_on_demand(tmp_path):
    buffer = generated(tmp_path, "task=push3d", "episodes=1", "seed=5", "rest=0", "images=true")
    pictures = buffer.arrays["side_image"]
    assert pictures.dtype == np.uint8 and pictures.shape == (buffer.n_steps, 84, 84, 3)
    env = Push3D(cameras=["side"])
    np.testing.assert_array_equal(env.reset(seed=5)[0]["side_image"], pictures[0])
    assert (pictures[0] != pictures[-1]).any()


def test_several_tasks_and_the_expert_that_is_told_which():
    tasks = ["reach-v3", "window-close-v3"]
    of = Scene(partial(MetaWorldMulti, tasks), partial(expert, tasks=tasks), rest=0)
    for seed in (0, 1):
        made = play(of.env(), of.expert(), seed, of)
        assert made.solved and (made.arrays["task_index"] == seed).all() and "instruction" not in made.arrays


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["task=metaworld_drawer"], "got 'metaworld_drawer'; expected one of"),
        ([f"task={DRAWER}", "near_goal=3"], "near_goal=3 for task metaworld_drawer_open; expected it with Push-T only"),
        ([f"task={DRAWER}", "noise_px=3"], "expected it with Push-T only"),
        (["task=pusht", "noise_scale=0.5"], "expected it with tasks other than Push-T only"),
        (["noise_rate=1.5"], "expected a probability"),
        ([f"task={DRAWER}", "cameras=[front]"], "got 'front'; expected some of corner2"),
        ([f"task={DRAWER}", "episodes=1", "jobs=1", "max_steps=3"], "got no solved episode"),
    ],
)
def test_mistakes(tmp_path, capsys, words, text):
    assert cli.main(["generate", f"out={tmp_path / 'a.npz'}", *words]) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "a.npz").exists()
