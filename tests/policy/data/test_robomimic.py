"""robomimic's HDF5: the same file out as in, its errors, and the windows of robomimic's own loader."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from policy.data import forms, robomimic, sources
from policy.data.demonstrations import Demonstrations
from policy.data.replay import ReplayBuffer
from policy.data.windows import windows
from tests.policy.data.files import ENV_ARGS, content, expert, robomimic_file

N_STEPS = sum(8 + i for i in range(12))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return robomimic_file(tmp_path_factory.mktemp("robomimic") / "demo.hdf5")


def test_arrays_have_the_names_of_this_project(file):
    buffer = ReplayBuffer.load(file)
    kinds = {k: (v.dtype.name, v.shape) for k, v in buffer.arrays.items()}
    assert kinds == {
        "action": ("float64", (N_STEPS, 2)),
        "action_dict.abs_pos": ("float32", (N_STEPS, 2)),
        "agent_pos": ("float32", (N_STEPS, 2)),
        "agentview_image": ("uint8", (N_STEPS, 48, 48, 3)),
        "done": ("int64", (N_STEPS,)),
        "object": ("float64", (N_STEPS, 3)),
        "reward": ("float64", (N_STEPS,)),
        "sim_state": ("float64", (N_STEPS, 18)),
    }
    assert robomimic.env_args(buffer.attributes) == ENV_ARGS and forms.rate(buffer.attributes) == 10.0
    assert {k: v.shape for k, v in forms.describe(file)[1].items() if k in kinds} == {
        k: s for k, (_, s) in kinds.items()
    }


def test_demos_are_in_the_order_of_their_numbers(file):
    buffer = ReplayBuffer.load(file, ["agent_pos"])
    assert buffer.episode_lengths.tolist() == [8 + i for i in range(12)]
    for i in range(12):
        np.testing.assert_array_equal(buffer.episode(i)["agent_pos"], expert().episode(i)["state"][: 8 + i, :2])


@pytest.mark.parametrize("next_obs", ["shifted", "other", "none"])
def test_out_is_what_came_in(tmp_path, next_obs):
    came = robomimic_file(tmp_path / "in.hdf5", next_obs=next_obs)
    buffer = ReplayBuffer.load(came)
    assert ("next_obs.object" in buffer.arrays) == (next_obs == "other")
    buffer.save(tmp_path / "out.hdf5")
    assert content(tmp_path / "out.hdf5") == content(came)


@pytest.mark.parametrize("between", ["store.zarr", "store.zarr.zip", "store.npz"])
def test_out_is_what_came_in_by_way_of_a_store(tmp_path, file, between):
    ReplayBuffer.load(file).save(tmp_path / between)
    ReplayBuffer.load(tmp_path / between).save(tmp_path / "out.hdf5")
    assert content(tmp_path / "out.hdf5") == content(file)


def test_the_comparison_of_files_sees_a_change(tmp_path, file):
    buffer = ReplayBuffer.load(file)
    buffer.attributes["robomimic"]["demos"][3]["attributes"]["success"]["dtype"] = "<f8"
    buffer.save(tmp_path / "out.hdf5")
    assert content(tmp_path / "out.hdf5") != content(file)


def test_a_policy_learns_from_the_demos_of_a_filter(file):
    train = ReplayBuffer.load(file, filter_key="train")
    found, line = sources.load(str(file), ["agent_pos"], filter_key="train")
    assert found.n_episodes == train.n_episodes < ReplayBuffer.load(file).n_episodes
    assert line.startswith(f"file, train: {train.n_episodes} episodes")
    assert sources.load(str(file), ["agent_pos"])[1].startswith("file: ")


def test_a_filter_takes_its_demos_under_their_names(tmp_path, file):
    train = ReplayBuffer.load(file, filter_key="train")
    assert train.episode_lengths.tolist() == [8 + i for i in range(2, 12)]
    train.save(tmp_path / "train.hdf5")
    kept, whole = content(tmp_path / "train.hdf5"), content(file)
    assert "data/demo_0" not in kept and kept["data"][1]["total"][1] == train.n_steps
    assert kept["mask/valid"][0][1] == (0,) and kept["mask/train"] == whole["mask/train"]
    assert all(kept[name] == whole[name] for name in kept if name.startswith("data/demo_"))


def test_files_end_to_end(tmp_path, file):
    buffer = ReplayBuffer.load(file)
    train, valid = (ReplayBuffer.load(file, filter_key=key) for key in ("train", "valid"))
    joined = robomimic.join([p.attributes["robomimic"] for p in (valid, train)], [2, 10])
    ReplayBuffer(buffer.arrays, buffer.episode_ends, attributes={"robomimic": joined}).save(tmp_path / "joined.hdf5")
    got, whole = content(tmp_path / "joined.hdf5"), content(file)
    assert {k for k in got if k.startswith("data")} == {k for k in whole if k.startswith("data")}
    assert all(got[k] == whole[k] for k in got if k.startswith("data"))
    # "train" lists its demos from the last to the first
    assert [n.decode() for n in got["mask/train"][0][2]] == [f"demo_{i}" for i in range(11, 1, -1)]
    other = dict(train.attributes["robomimic"], data={"env_args": "{}"})
    with pytest.raises(WorkbenchError, match="differ in data"):
        robomimic.join([valid.attributes["robomimic"], other], [2, 10])


def test_a_buffer_of_other_episodes_is_refused(tmp_path, file):
    buffer = ReplayBuffer.load(file).subset([0, 1])
    with pytest.raises(WorkbenchError, match="got 2 episodes with attributes of 12 demos"):
        buffer.save(tmp_path / "out.hdf5")
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40_000])


def damage(path: Path) -> None:
    with h5py.File(path, "r") as file:
        where = file["data/demo_3/obs/agentview_image"].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[where.byte_offset : where.byte_offset + where.size] = bytes(where.size)
    path.write_bytes(raw)


def change(what):
    def harm(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            what(file)

    return harm


def lose(name: str):
    return change(lambda file: file.__delitem__(name))


def replace(name: str, values):
    def what(file):
        del file[name]
        file[name] = values

    return change(what)


@pytest.mark.parametrize(
    ("harm", "options", "text"),
    [
        (cut, {}, "cannot be opened as HDF5 .*truncated"),
        (damage, {}, "obs/agentview_image of demo_3 cannot be read"),
        (lambda path: path.write_text("hello"), {}, "cannot be opened as HDF5"),
        (lambda path: path.unlink(), {}, "no such file"),
        (lose("data/demo_3/obs/object"), {}, "got no obs/object in demo_3"),
        (lose("data/demo_0/obs/object"), {}, "got no obs/object in demo_0"),
        (lambda path: None, {"keys": ["wrist_image"]}, "expected also wrist_image"),
        (replace("data/demo_3/obs/object", np.zeros((4, 3))), {}, "demo_3 has 11 actions but obs/object of 4"),
        (replace("data/demo_3/rewards", np.zeros(())), {}, "demo_3 has 11 actions but rewards of 0"),
        (replace("data/demo_3/obs/object", np.zeros((11, 4))), {}, r"got obs/object of float64 \(11, 4\) in demo_3"),
        (replace("data/demo_0/obs/object", ["a"] * 8), {}, "got obs/object of type object; expected numbers"),
        (change(lambda f: f["data/demo_3"].attrs.modify("num_samples", 12)), {}, "actions but num_samples of 12"),
        (change(lambda f: f["data"].attrs.modify("env_args", "{PushT}")), {}, "env_args = '{PushT}', which is no JSON"),
        (change(lambda f: f["data"].clear()), {}, "without data/demo_0"),
        (lambda path: None, {"filter_key": "tran"}, r"got no filter key 'tran'; expected .*\(train, valid\)"),
        (lose("data/demo_3"), {"filter_key": "train"}, "mask/train names demo_3"),
    ],
)
def test_errors(tmp_path, file, harm, options, text):
    path = tmp_path / "demo.hdf5"
    path.write_bytes(file.read_bytes())
    harm(path)
    with pytest.raises(WorkbenchError, match=text) as caught:
        ReplayBuffer.load(path, **options)
    assert "\n" not in str(caught.value)


def test_what_is_left_out_may_be_wrong(tmp_path, file):
    path = tmp_path / "demo.hdf5"
    path.write_bytes(file.read_bytes())
    replace("data/demo_3/obs/object", np.zeros((4, 3)))(path)
    assert ReplayBuffer.load(path, ["action", "agent_pos"]).n_steps == N_STEPS


def test_attributes_of_other_stores_go_into_one_of_data(tmp_path):
    buffer = expert().subset([0])
    buffer.save(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert json.loads(file["data"].attrs["attributes"]) == buffer.attributes
        assert sorted(file["data/demo_0"]) == ["actions", "obs"]
    assert ReplayBuffer.load(tmp_path / "a.hdf5").attributes == buffer.attributes


@pytest.mark.parametrize("filter_key", [None, "valid"])
@pytest.mark.parametrize(("frame_stack", "seq_length"), [(1, 1), (2, 1), (1, 8), (2, 7), (3, 6)])
@pytest.mark.parametrize(("pad_frame_stack", "pad_seq_length"), [(True, True), (True, False), (False, True)])
def test_windows_are_those_of_robomimic(
    tmp_path, file, frame_stack, seq_length, pad_frame_stack, pad_seq_length, filter_key
):
    theirs = pytest.importorskip(
        "robomimic.utils.dataset",
        reason="robomimic is not installed: pip install --no-deps robomimic && pip install termcolor",
    )
    buffer = ReplayBuffer.load(file, filter_key=filter_key)
    buffer.save(tmp_path / "ours.hdf5")
    obs_keys = ("agent_pos", "object", *(["agentview_image"] if filter_key else []))
    dataset = theirs.SequenceDataset(
        str(tmp_path / "ours.hdf5"),
        obs_keys,
        ("actions", "rewards", "dones"),
        frame_stack=frame_stack,
        seq_length=seq_length,
        pad_frame_stack=pad_frame_stack,
        pad_seq_length=pad_seq_length,
        load_next_obs=False,
        filter_by_attribute=filter_key,
    )
    horizon = frame_stack - 1 + seq_length
    before, after = (frame_stack - 1) * pad_frame_stack, (seq_length - 1) * pad_seq_length
    index = windows(buffer.episode_ends, horizon, before, after)
    assert len(index) == len(dataset)
    sample = [dataset[i] for i in range(len(dataset))]
    for name, key in (("actions", "action"), ("rewards", "reward"), ("dones", "done")):
        np.testing.assert_array_equal(np.stack([s[name] for s in sample]), buffer.arrays[key][index])
    for key in obs_keys:
        np.testing.assert_array_equal(np.stack([s["obs"][key] for s in sample]), buffer.arrays[key][index])
    if pad_frame_stack and pad_seq_length:
        obs = {key: buffer.arrays[key] for key in obs_keys}
        action = buffer.arrays["action"].astype(np.float32)
        ours = Demonstrations(obs, action, buffer.episode_ends, horizon, frame_stack, seq_length)
        batch = ours.batch(torch.arange(len(ours)))
        assert len(ours) == len(dataset)
        np.testing.assert_array_equal(batch["action"], np.stack([s["actions"] for s in sample]).astype(np.float32))
        for key in obs_keys:
            seen = np.stack([s["obs"][key][:frame_stack] for s in sample])
            np.testing.assert_array_equal(batch["obs"][key], seen.astype(np.asarray(batch["obs"][key]).dtype))
