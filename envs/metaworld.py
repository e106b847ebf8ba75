"""Meta-World's tasks: a Sawyer arm that opens, closes, presses, pushes and puts down, each with a scripted expert.

    hand' = hand + 0.01 a[:3] m, a[3] closes (1) or opens (-1) the gripper;  a in [-1, 1]^4, 80 steps a second

Meta-World draws where things begin and where they shall go from a list of fifty tasks made beforehand; here both are
drawn anew from the seed, from the same ranges, and nothing else decides on an episode. It also hides the goal; here
the goal is seen, because without it half of the tasks cannot be solved by looking at numbers.

Source: Yu et al. 2019, "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning" (arXiv
1910.10897); version 3 of its package, whose rewards, measures of success and experts these are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import gymnasium
import mujoco
import numpy as np
from jaxtyping import Float

from envs.cameras import require_known, require_sizes
from envs.metaworld_tasks import INSTRUCTIONS

CAMERAS = ("corner2", "corner", "corner3", "topview", "behindGripper", "gripperPOV")
UPSIDE_DOWN = ("corner", "corner2", "corner3")
"""Cameras that Meta-World hung the wrong way up; their pictures are turned by half a turn."""
STEPS = 200
OBJECTS = 14
"""Position, m, and quaternion of two objects."""
INSTRUCTION = 128
"""Characters of an instruction, at most."""


class MetaWorld(gymnasium.Env[Any, np.ndarray]):
    """One task of Meta-World.

    An observation has ``hand`` (3,), m; ``gripper`` (1,), 0 closed to 1 open; ``objects`` (14,), x, y, z (m) and
    quaternion of the object and of the second one, zeros where there is none or it has no orientation; ``goal`` (3,),
    m, where the hand or the object shall go, the same throughout an episode; and ``<camera>_image`` of each camera
    asked for. The goal is a green ball in the pictures of the tasks that have one.

    Success is what Meta-World says it is and ends the episode; one may step on after it, to see it kept.

    Args:
        task: of Meta-World, like "drawer-open-v3".
        cameras: any of `CAMERAS`.
        size: height and width of their pictures, px.
        max_steps: of an episode, 1/80 s each.
        render_mode: "rgb_array" or None.

    Raises:
        ValueError: an unknown task or camera, or Meta-World is not installed.
    """

    CAMERAS = CAMERAS
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012

    def __init__(
        self,
        task: str = "reach-v3",
        cameras: Sequence[str] = (),
        size: int = 84,
        max_steps: int = STEPS,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if task not in INSTRUCTIONS:
            raise ValueError(f"task: got {task!r}; expected one of {', '.join(INSTRUCTIONS)}: choose one.")
        require_known(cameras, CAMERAS)
        require_sizes(size, max_steps)
        self.task, self.instruction = task, INSTRUCTIONS[task]
        self.cameras, self.size, self.max_steps, self.render_mode = tuple(cameras), size, max_steps, render_mode
        self._inner = _simulator(task)
        self._steps, self._goal = 0, np.zeros(3)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(_spaces(self.cameras, size))

    @property
    def state(self) -> Float[np.ndarray, " n"]:
        """Places and velocities of all joints and the place that pulls the hand; its length is the task's."""
        data = self._inner.data
        return np.concatenate([data.qpos, data.qvel, data.mocap_pos.ravel()])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode that depends on the seed alone."""
        super().reset(seed=seed)
        self._inner.seed(int(self.np_random.integers(2**31)) if seed is None else seed)
        raw, _ = self._inner.reset()
        self._steps, self._goal = 0, raw[-3:].copy()
        return self._observed(raw), self._info(False)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Act for 1/80 s.

        Raises:
            ValueError: the action is not four finite numbers.
        """
        wanted = np.asarray(action, dtype=np.float32)
        if wanted.shape != (4,) or not np.isfinite(wanted).all():
            raise ValueError(f"action: got {action!r}; expected 4 finite numbers in [-1, 1]: correct what acts.")
        # Meta-World counts its own steps and refuses to go beyond 500; this class does the counting
        self._inner.curr_path_length = 0
        raw, reward, _, _, found = self._inner.step(np.clip(wanted, -1.0, 1.0))
        self._steps += 1
        success = bool(found["success"])
        return self._observed(raw), float(reward), success, self._steps >= self.max_steps, self._info(success)

    def render(self) -> np.ndarray | None:
        """What the camera "corner2" sees, (240, 240, 3) uint8, or None without a render mode."""
        return None if self.render_mode is None else self._picture("corner2", 240)

    def _observed(self, raw: np.ndarray) -> dict[str, np.ndarray]:
        numbers = {"hand": raw[:3], "gripper": raw[3:4], "objects": raw[4 : 4 + OBJECTS], "goal": self._goal}
        seen = {key: np.asarray(values, dtype=np.float32) for key, values in numbers.items()}
        return seen | {f"{camera}_image": self._picture(camera, self.size) for camera in self.cameras}

    def _info(self, success: bool) -> dict[str, Any]:
        return {"is_success": success, "state": self.state, "instruction": self.instruction}

    def _picture(self, camera: str, size: int) -> np.ndarray:
        renderer = _renderer(self.task, size)
        renderer.update_scene(self._inner.data, camera=camera)
        # shadows and mirrors cost ten times the picture where there is no graphics card
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        picture = renderer.render()
        return np.ascontiguousarray(picture[::-1, ::-1] if camera in UPSIDE_DOWN else picture)


class MetaWorldMulti(gymnasium.Env[Any, np.ndarray]):
    """Several tasks of Meta-World; the seed modulo their number decides which one an episode is of.

    Observations are those of `MetaWorld` and ``instruction``, what to do in plain English, which ``info`` has too,
    with the place of the task among ``tasks`` as ``task_index``.

    Args:
        tasks: of Meta-World.
        cameras, size, max_steps, render_mode: see `MetaWorld`.

    Raises:
        ValueError: no tasks, or see `MetaWorld`.
    """

    CAMERAS = CAMERAS
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012

    def __init__(
        self,
        tasks: Sequence[str],
        cameras: Sequence[str] = (),
        size: int = 84,
        max_steps: int = STEPS,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if not tasks:
            raise ValueError("tasks: got none; expected at least one: name some.")
        self.tasks, self.render_mode = tuple(tasks), render_mode
        self._envs = [MetaWorld(task, cameras, size, max_steps, render_mode) for task in tasks]
        self.instructions = tuple(env.instruction for env in self._envs)
        self.task_index = 0
        self.action_space = self._envs[0].action_space
        texts = gymnasium.spaces.Text(INSTRUCTION, charset=frozenset("".join(INSTRUCTIONS.values())))
        self.observation_space = gymnasium.spaces.Dict({**_spaces(cameras, size), "instruction": texts})

    @property
    def instruction(self) -> str:
        """Of the episode under way."""
        return self.instructions[self.task_index]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode that depends on the seed alone, task ``seed % len(tasks)``."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        self.task_index = drawn % len(self.tasks)
        seen, info = self._envs[self.task_index].reset(seed=drawn)
        return self._told(seen), info | {"task_index": self.task_index}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act for 1/80 s."""
        seen, reward, terminated, truncated, info = self._envs[self.task_index].step(action)
        return self._told(seen), reward, terminated, truncated, info | {"task_index": self.task_index}

    def render(self) -> np.ndarray | None:
        """See `MetaWorld`."""
        return self._envs[self.task_index].render()

    def _told(self, seen: dict[str, np.ndarray]) -> dict[str, Any]:
        return {**seen, "instruction": self.instruction}


class Expert:
    """Meta-World's scripted policies, one for each task; they see what `MetaWorld` or `MetaWorldMulti` shows.

    Args:
        tasks: that it shall know; which one it is asked to do it learns from the instruction.

    Raises:
        ValueError: no tasks, an unknown one, or Meta-World is not installed.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        if not tasks or (unknown := sorted(set(tasks) - set(INSTRUCTIONS))):
            got = unknown if tasks else "none"
            raise ValueError(f"tasks: got {got}; expected some of {', '.join(INSTRUCTIONS)}: choose among them.")
        self._policies = {INSTRUCTIONS[task]: _package("policies").ENV_POLICY_MAP[task]() for task in tasks}
        self._only = INSTRUCTIONS[tasks[0]] if len(tasks) == 1 else None

    def reset(self, seed: int) -> None:
        """Begin an episode; these experts remember and draw nothing."""

    def act(self, observation: Mapping[str, Any]) -> Float[np.ndarray, "4"]:
        """The action that it wants, in [-1, 1].

        Raises:
            ValueError: an instruction that it does not know.
        """
        asked = self._only or observation.get("instruction")
        if asked not in self._policies:
            raise ValueError(f"instruction: got {asked!r}; expected one of {list(self._policies)}: add its task.")
        hand, gripper, objects, goal = (observation[key] for key in ("hand", "gripper", "objects", "goal"))
        now = np.concatenate([hand, gripper, objects]).astype(np.float64)
        with warnings.catch_warnings():
            # the experts ask for more than 1 and warn that it is cut, as it is
            warnings.simplefilter("ignore", UserWarning)
            wanted = self._policies[asked].get_action(np.concatenate([now, now, goal]))
        return np.clip(wanted, -1.0, 1.0).astype(np.float32)


def expert(task: str = "", tasks: Sequence[str] = ()) -> Expert:
    """The expert of one task, or of several.

    Raises:
        ValueError: both or neither, or see `Expert`.
    """
    if bool(task) == bool(tasks):
        raise ValueError(f"expert: got task={task!r} and tasks={list(tasks)}; expected one of the two.")
    return Expert([task] if task else list(tasks))


def _spaces(cameras: Sequence[str], size: int) -> dict[str, gymnasium.Space[Any]]:
    box = gymnasium.spaces.Box
    spaces: dict[str, gymnasium.Space[Any]] = {
        "hand": box(-2.0, 2.0, (3,), np.float32),
        "gripper": box(0.0, 1.0, (1,), np.float32),
        "objects": box(-10.0, 10.0, (OBJECTS,), np.float32),
        "goal": box(-2.0, 2.0, (3,), np.float32),
    }
    return spaces | {f"{camera}_image": box(0, 255, (size, size, 3), np.uint8) for camera in cameras}


def _package(module: str) -> ModuleType:
    try:
        from metaworld import env_dict, policies
    except ImportError as error:
        raise ValueError(
            f"metaworld: got no package of this name ({error}); expected it for its tasks: "
            "pip install 'diffusion-workbench[manipulation]'."
        ) from error
    return {"env_dict": env_dict, "policies": policies}[module]


@cache
def _kind(task: str) -> type[Any]:
    """Meta-World's class of a task, made to work with any MuJoCo."""
    known = _package("env_dict").ALL_V3_ENVIRONMENTS[task]

    def reset_mocap_welds(self: Any) -> None:
        # as Meta-World does, but MuJoCo 4 has a twelfth number, which stays as the model has it
        for weld in np.flatnonzero(self.model.eq_type == mujoco.mjtEq.mjEQ_WELD):
            self.model.eq_data[weld, :11] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]

    return type(known.__name__, (known,), {"reset_mocap_welds": reset_mocap_welds})


def _simulator(task: str) -> Any:
    inner = _kind(task)()
    inner._partially_observable = False
    # cached with the goal hidden
    inner.__dict__.pop("sawyer_observation_space", None)
    # starts are drawn from the generator that seed() sets, not from a list of tasks
    inner._freeze_rand_vec, inner.seeded_rand_vec, inner._set_task_called = False, True, True
    return inner


@cache
def _renderer(task: str, size: int) -> Any:
    """One for all environments of a task: episodes move bodies, whose places are in the data, and nothing else."""
    model = _simulator(task).model
    # smooth edges cost three times the picture where there is no graphics card
    model.vis.quality.offsamples = 0
    return mujoco.Renderer(model, size, size)
