"""Files of other projects' layouts, written from the shipped Push-T demonstrations by those projects' rules."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.pusht import PushT
from policy.data.replay import ReplayBuffer
from policy.data.sources import EXPERT

ENV_ARGS = {"env_name": "PushT", "env_type": 1, "env_kwargs": {"control_freq": 10, "note": "ü"}}


@cache
def expert() -> ReplayBuffer:
    return ReplayBuffer.load(EXPERT)


@cache
def pusht(n_episodes: int = 3, steps: int = 20) -> ReplayBuffer:
    """The first steps of some of the expert's episodes, with the environment's images; the last ones are longer."""
    env = PushT(obs="image", render_mode=None)
    episodes = []
    for i in range(n_episodes):
        part = {key: values[: steps + i] for key, values in expert().episode(i).items()}
        part["img"] = np.stack([env.reset(options={"state": row})[0]["image"] for row in part["state"]])
        episodes.append(part)
    return ReplayBuffer.from_episodes(episodes, {"made": "for a test", "seeds": [1, 2]})


def robomimic_file(path: Path, n_demos: int = 12, next_obs: str = "shifted") -> Path:
    """robomimic's layout with what its scripts write, and an array more.

    Args:
        path: of the file.
        n_demos: demos; their lengths are 8, 9, ...
        next_obs: "shifted" observations of which only the last is new, "other" ones, or "none".
    """
    env = PushT(obs="image", render_mode=None)
    # a few real images, repeated: drawing is slow
    shown = np.stack(
        [env.reset(options={"state": row})[0]["image"][::2, ::2] for row in expert().episode(0)["state"][:9]]
    )
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for i in range(n_demos):
            n, episode = 8 + i, expert().episode(i)
            rows = {
                "agent_pos": episode["state"][: n + 1, :2],
                "object": episode["state"][: n + 1, 2:].astype(np.float64),
            }
            rows["agentview_image"] = np.resize(shown, (n + 1, 48, 48, 3))
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = n
            demo.attrs["model_file"] = f"<mujoco model='{i}'/>" * 4_000
            demo.attrs["success"] = np.float32(1.0)
            demo.create_dataset("actions", data=episode["action"][:n].astype(np.float64) / 256 - 1)
            demo.create_dataset("states", data=episode["keypoint"][:n].reshape(n, -1).astype(np.float64))
            demo.create_dataset("rewards", data=np.arange(n, dtype=np.float64))
            demo.create_dataset("dones", data=np.eye(n, dtype=np.int64)[-1])
            demo.create_dataset("action_dict/abs_pos", data=episode["action"][:n])
            for key, values in rows.items():
                demo.create_dataset(f"obs/{key}", data=values[:n], compression="gzip")
                if next_obs != "none":
                    after = values[1:] if next_obs == "shifted" else values[1:][::-1]
                    demo.create_dataset(f"next_obs/{key}", data=after, compression="gzip")
        data.attrs["total"] = sum(8 + i for i in range(n_demos))
        data.attrs["env_args"] = json.dumps(ENV_ARGS, indent=4)
        names = [f"demo_{i}" for i in range(n_demos)]
        file["mask/train"] = np.array(names[:1:-1], dtype="S")
        file["mask/valid"] = np.array(names[:2], dtype=h5py.string_dtype())
    return path


def content(path: Path) -> dict[str, Any]:
    """Everything a file says: of each dataset its type and bytes, of each group and dataset its typed attributes."""
    found: dict[str, Any] = {}

    def attributes(item: Any) -> dict[str, Any]:
        told = {}
        for name in item.attrs:
            value = item.attrs[name]
            told[name] = (type(value), value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value)
        return told

    def visit(name: str, item: Any) -> None:
        values = ()
        if isinstance(item, h5py.Dataset):
            held = item[()]
            values = (item.dtype, held.shape, held.tolist() if item.dtype.kind == "O" else held.tobytes())
        found[name] = (values, attributes(item))

    with h5py.File(path, "r") as file:
        found[""] = attributes(file)
        file.visititems(visit)
    return found
