"""Doctor: what is installed, and what would make learning from a set of demonstrations fail or poor."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy.data import robomimic
from policy.data.replay import ReplayBuffer

NEEDED = {"torch": "torch", "numpy": "numpy", "zarr": "zarr", "h5py": "h5py", "pyarrow": "pyarrow", "av": "av"}
NEEDED |= {"gymnasium": "gymnasium", "gym-pusht": "gym_pusht", "pymunk": "pymunk", "mujoco": "mujoco"}
OPTIONAL = {
    "robomimic": "robomimic.utils.dataset",
    "robosuite": "robosuite",
    "metaworld": "metaworld",
    "lerobot": "lerobot.datasets.lerobot_dataset",
    "gymnasium-robotics": "gymnasium_robotics",
    "onnxruntime": "onnxruntime",
}
"""Distributions and the module whose import tells whether what we use of them works."""

HORIZON = 16
"""Episodes of fewer steps give few windows or none at the published horizon."""
SATURATED, IDLE, SPREAD, SCALE = 0.05, 0.10, 20.0, 1e4
"""Findings above: share of values at their dimension's extreme, share of steps in which nothing moves, range over the
range of the middle 98 %, largest over smallest range of the arrays."""
_LEVELS = 3  # a gripper is open, shut, or neither
_STILL = 1e-4  # of the range of the middle of a dimension's values
_FEW = 20  # steps at an extreme say nothing


@dataclass(frozen=True)
class Line:
    """One line of a report; `bad` if something should be done about it."""

    text: str
    bad: bool = True

    def __str__(self) -> str:
        return f"{'!' if self.bad else ' '} {self.text}"


def installation() -> Iterator[Line]:
    """Import what this domain can use; what is needed and absent, or there and broken, is a finding."""
    for name, module in (NEEDED | OPTIONAL).items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Line(f"{name:<20}not installed{'' if name in NEEDED else ' (optional)'}", name in NEEDED)
            continue
        try:
            importlib.import_module(module)
        except Exception as error:  # a package may raise anything while it is imported
            reason = (str(error).strip().splitlines() or [""])[0]
            yield Line(f"{name:<20}{version}, but import {module} fails: {type(error).__name__}: {reason}")
        else:
            yield Line(f"{name:<20}{version}", bad=False)


def examine(buffer: ReplayBuffer) -> Iterator[Line]:
    """Look for what would harm a policy that learns from these demonstrations; nothing of it stops a conversion.

    Raises:
        WorkbenchError: episode ends that do not fit the arrays, without which there is nothing to look at.
    """
    empty = {key: np.empty((len(values), 0)) for key, values in buffer.arrays.items()}
    ReplayBuffer(empty, buffer.episode_ends, buffer.source).validate()
    lengths = buffer.episode_lengths
    yield Line(f"{buffer.n_episodes} episodes, {buffer.n_steps} steps of {', '.join(buffer.arrays)}", bad=False)
    checks: list[Callable[[ReplayBuffer], Iterator[Line]]]
    checks = [_finite, _constant, _actions, _ranges, _idle, _copies, _times, _filters, _black]
    if "action" not in buffer.arrays:
        yield Line("action: not there; expected the array that a policy learns")
    if short := np.flatnonzero(lengths < HORIZON).tolist():
        yield Line(
            f"{len(short)} episodes of fewer than {HORIZON} steps (first: {short[0]}, {lengths[short[0]]} steps)"
        )
    for check in checks:
        yield from check(buffer)


def _finite(buffer: ReplayBuffer) -> Iterator[Line]:
    for key, values in buffer.arrays.items():
        if values.dtype.kind == "f" and not (good := np.isfinite(values)).all():
            step = int(np.argwhere(~good)[0][0])
            episode = int(np.searchsorted(buffer.episode_ends, step, side="right"))
            yield Line(
                f"{key}: {int((~good).sum())} values are NaN or infinite (first: step {step}, episode {episode})"
            )


def _constant(buffer: ReplayBuffer) -> Iterator[Line]:
    for key, values in _vectors(buffer).items():
        if still := np.flatnonzero(values.max(0) == values.min(0)).tolist():
            what = "every dimension" if len(still) == values.shape[1] else f"dimensions {_some(still)}"
            yield Line(
                f"{key}: {what} constant: nothing can be learned of it, and a scale by its deviation divides by 0"
            )


def _actions(buffer: ReplayBuffer) -> Iterator[Line]:
    action = _vectors(buffer).get("action")
    if action is None:
        return
    for i, column in enumerate(action.T):
        low, high = column.min(), column.max()
        share = max(np.mean(column == low), np.mean(column == high))
        if share > max(SATURATED, _FEW / len(column)) and low < high and len(np.unique(column)) > _LEVELS:
            at = low if np.mean(column == low) == share else high
            yield Line(
                f"action: dimension {i} is {at:g}, its extreme, in {share:.0%} of the steps: clipped or saturated"
            )
    args = robomimic.env_args(buffer.attributes)
    if args is not None and not _is_absolute(args.get("env_kwargs", {})) and np.abs(action).max() > 1.0 + 1e-6:
        share = np.mean(np.abs(action).max(1) > 1.0 + 1e-6)
        yield Line(
            f"action: outside [-1, 1] in {share:.0%} of the steps (largest: {np.abs(action).max():g}); robosuite's "
            "controllers clip there, and env_args tells of no absolute control"
        )


def _is_absolute(kwargs: Any) -> bool:
    """Whether controller settings, at any depth, name absolute goals: robosuite before 1.5, and since."""
    if isinstance(kwargs, dict):
        named = kwargs.get("control_delta") is False or kwargs.get("input_type") == "absolute"
        return named or any(_is_absolute(value) for value in kwargs.values())
    return isinstance(kwargs, list) and any(_is_absolute(value) for value in kwargs)


def _ranges(buffer: ReplayBuffer) -> Iterator[Line]:
    widths = {}
    for key, values in _vectors(buffer).items():
        if key in ("reward", "done", "success", "timestamp", "task_index", "sim_state"):
            continue
        width = np.ptp(values, axis=0)
        middle = np.ptp(np.quantile(values, [0.01, 0.99], axis=0), axis=0)
        levels = np.array([len(np.unique(column)) for column in values.T])
        far = np.flatnonzero((width > SPREAD * middle) & (middle > 0) & (levels > _LEVELS)).tolist()
        if far:
            ratio = (width[far] / middle[far]).max()
            yield Line(
                f"{key}: outliers: the range of dimensions {_some(far)} is up to {ratio:.0f} times that of the middle "
                "98 % of their values, which a normaliser by range squeezes"
            )
        if (moving := width[width > 0]).size:
            widths[key] = (float(moving.min()), float(moving.max()))
    if widths:
        small, large = min(widths, key=lambda k: widths[k][0]), max(widths, key=lambda k: widths[k][1])
        if widths[large][1] > SCALE * widths[small][0]:
            yield Line(
                f"scales: {large} ranges over {widths[large][1]:.3g} and a dimension of {small} over "
                f"{widths[small][0]:.3g}: normalise them (the default), and look whether the small one is noise"
            )


def _idle(buffer: ReplayBuffer) -> Iterator[Line]:
    moved = np.zeros(max(buffer.n_steps - 1, 0), bool)
    vectors = {k: v for k, v in _vectors(buffer).items() if k not in ("reward", "done", "timestamp", "task_index")}
    for values in vectors.values():
        # of the middle: one outlier would make all the rest look still
        middle = np.ptp(np.quantile(values, [0.01, 0.99], axis=0), axis=0)
        moved |= (np.abs(np.diff(values, axis=0)) > _STILL * middle).any(1)
    for images in (v for v in buffer.arrays.values() if v.ndim == 4):
        moved |= [not np.array_equal(images[i], images[i + 1]) for i in range(len(moved))]
    inside = np.ones(len(moved), bool)
    inside[buffer.episode_ends[:-1] - 1] = False
    if vectors and inside.any() and (share := float(np.mean(~moved[inside]))) > IDLE:
        yield Line(f"idle: neither action nor observation changes in {share:.0%} of the steps: a policy learns to wait")


def _copies(buffer: ReplayBuffer) -> Iterator[Line]:
    seen: dict[tuple[bytes, ...], int] = {}
    copies = []
    keys = [k for k, v in buffer.arrays.items() if v.ndim < 4 and k not in ("timestamp", "task_index")]
    for i in range(buffer.n_episodes):
        episode = buffer.episode(i)
        first = seen.setdefault(tuple(episode[key].tobytes() for key in keys), i)
        if first != i:
            copies.append((first, i))
    if copies:
        yield Line(
            f"{len(copies)} episodes are copies of others (first: {copies[0][1]} of {copies[0][0]}): a validation "
            "split may hold what was trained on"
        )


def _times(buffer: ReplayBuffer) -> Iterator[Line]:
    if "timestamp" not in buffer.arrays:
        return
    steps = np.diff(buffer.arrays["timestamp"].reshape(-1).astype(np.float64))
    steps[buffer.episode_ends[:-1] - 1] = np.nan
    if back := np.flatnonzero(steps <= 0).tolist():
        yield Line(f"timestamp: does not rise after {len(back)} steps (first: step {back[0]})")
    usual = np.nanmedian(steps) if np.isfinite(steps).any() else 0.0
    if gaps := np.flatnonzero(np.abs(steps - usual) > 0.5 * usual).tolist() if usual > 0 else []:
        yield Line(
            f"timestamp: {len(gaps)} steps are not {usual:.4g} s long (first: step {gaps[0]}): frames were dropped"
        )


def _filters(buffer: ReplayBuffer) -> Iterator[Line]:
    masks = buffer.attributes.get("robomimic", {}).get("mask", {})
    both = set(masks.get("train", {}).get("demos", [])) & set(masks.get("valid", {}).get("demos", []))
    if both:
        yield Line(f"filter keys train and valid share {len(both)} demos (first: {sorted(both)[0]})")


def _black(buffer: ReplayBuffer) -> Iterator[Line]:
    for key, values in buffer.arrays.items():
        if values.ndim == 4 and values.dtype == np.uint8:
            flat = [i for i, image in enumerate(values) if image.min() == image.max()]
            if flat:
                yield Line(f"{key}: {len(flat)} images are of one colour (first: step {flat[0]}): a camera failed")


def _vectors(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """Arrays but images, one row a step; those that are not finite are reported already and left out."""
    found = {}
    for key, values in buffer.arrays.items():
        if values.ndim < 4 and values.size and values.dtype.kind in "biuf" and np.isfinite(values).all():
            found[key] = values.reshape(len(values), -1).astype(np.float64)
    return found


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (" ..." if len(numbers) > 6 else "")
