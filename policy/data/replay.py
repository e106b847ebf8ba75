"""Replay buffers: demonstrations in memory, all episodes of a quantity end to end in one array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from diffusion_core.errors import WorkbenchError
from policy.data import forms
from policy.data.forms import Wish
from policy.data.reader import MEND

_ROWS = 8192


@dataclass(frozen=True, eq=False)
class ReplayBuffer:
    """Episodes of demonstrations.

    Args:
        arrays: each (n_steps, ...); row i of every array is step i of the whole data set.
        episode_ends: exclusive cumulative ends: episode i is rows `episode_ends[i - 1]` to `episode_ends[i]`.
        source: where it came from, for messages.
        attributes: what the store says of itself (JSON values), for example how it was generated.
    """

    arrays: dict[str, np.ndarray]
    episode_ends: Int64[np.ndarray, " episodes"]
    source: str = "memory"
    attributes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        path: str | Path,
        keys: Sequence[str] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        as_uint8: Sequence[str] = (),
        fill_absent: bool = False,
        filter_key: str | None = None,
    ) -> ReplayBuffer:
        """Read diffusion_policy's zarr (v2 or v3, directory or zip), .npz, robomimic's .hdf5 or a LeRobot folder.

        Args:
            path: of the store.
            keys: arrays to read; all when None. An array that is not read is not judged either.
            shapes: what one step of an array must look like, for example {"action": (2,)}.
            as_uint8: arrays to keep as bytes whatever their dtype on disk; see `reader.read`.
            fill_absent: accept absent chunks as zarr does; see `reader.read`.
            filter_key: of robomimic's `mask/`, such as train: take these demos only.

        Raises:
            WorkbenchError: the store cannot be read whole (see `forms.read`), or `validate` refuses it.
        """
        found = forms.read(Path(path), keys, as_uint8, fill_absent, filter_key)
        buffer = cls(found.arrays, found.episode_ends, str(path), found.attributes)
        buffer.validate(shapes)
        return buffer

    @classmethod
    def from_episodes(
        cls, episodes: Iterable[Mapping[str, np.ndarray]], attributes: Mapping[str, Any] | None = None
    ) -> ReplayBuffer:
        """Put whole episodes end to end.

        Args:
            episodes: of each, the arrays by name, (episode steps, ...).
            attributes: to store with them.

        Raises:
            WorkbenchError: no episodes, or episodes that do not fit one another.
        """
        listed = list(episodes)
        if not listed:
            raise WorkbenchError("episodes: got none; expected at least one.")
        single = [cls(dict(e), np.array([len(next(iter(e.values())))], np.int64)) for e in listed]
        joined = concatenate(single)
        return cls(joined.arrays, joined.episode_ends, "memory", dict(attributes or {}))

    def save(self, path: str | Path, zarr_format: int = 2, overwrite: bool = False) -> None:
        """Write a validated store (.zarr directory, .zarr.zip, .npz or .hdf5 by its name); see `forms.write`.

        Raises:
            WorkbenchError: `validate` refuses the buffer, the path is taken, or the disk refuses.
        """
        self.save_as(path, Wish(zarr_format=zarr_format, overwrite=overwrite))

    def save_as(self, path: str | Path, wish: Wish) -> None:
        """Write a validated buffer as `wish` says; a LeRobot folder, for example.

        Raises:
            WorkbenchError: as `save`.
        """
        self.validate()
        forms.write(Path(path), self.arrays, self.episode_ends, self.attributes, wish)

    def validate(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Refuse what cannot be learned from.

        Args:
            shapes: what one step of an array must look like; arrays not named may look as they like.

        Raises:
            WorkbenchError: episode ends that do not rise strictly from above 0, arrays that do not all end where the
                last episode ends, a step of another shape than asked for, or a value that is not finite.
        """
        ends = self.episode_ends
        if len(ends) == 0:
            raise WorkbenchError(f"{self.source}: got no episodes; expected at least one: {MEND}.")
        lengths = np.diff(ends, prepend=0)
        if (lengths <= 0).any():
            i = int((lengths <= 0).argmax())
            before = int(ends[i - 1]) if i else 0
            raise WorkbenchError(
                f"{self.source}: got episode_ends[{i}] = {ends[i]} after {before}; expected strictly rising ends: "
                f"{MEND}."
            )
        for key, values in self.arrays.items():
            if values.ndim < 1 or len(values) != ends[-1]:
                steps = len(values) if values.ndim else 0
                raise WorkbenchError(
                    f"{self.source}: got {steps} steps of {key}, but the last of {len(ends)} episodes ends at "
                    f"{ends[-1]}; expected the same number: {MEND}."
                )
        for key, shape in (shapes or {}).items():
            if key in self.arrays and self.arrays[key].shape[1:] != shape:
                raise WorkbenchError(
                    f"{self.source}: got {key} of shape {self.arrays[key].shape[1:]} per step; expected {shape}: use a "
                    "store of this task."
                )
        for key, values in self.arrays.items():
            self._check_finite(key, values)

    def _check_finite(self, key: str, values: np.ndarray) -> None:
        if values.dtype.kind != "f":
            return
        for first in range(0, len(values), _ROWS):
            finite = np.isfinite(values[first : first + _ROWS])
            if not finite.all():
                row, *rest = (int(i) for i in np.argwhere(~finite)[0])
                step = first + row
                at = ", ".join(map(str, [step, *rest]))
                episode = int(np.searchsorted(self.episode_ends, step, side="right"))
                begin = int(self.episode_ends[episode - 1]) if episode else 0
                raise WorkbenchError(
                    f"{self.source}: got {key}[{at}] = {values[(step, *rest)]} (episode "
                    f"{episode}, its step {step - begin}); expected finite numbers: drop this episode or {MEND}."
                )

    @property
    def n_steps(self) -> int:
        """Steps of all episodes together."""
        return int(self.episode_ends[-1])

    @property
    def n_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode_ends)

    @property
    def episode_lengths(self) -> Int64[np.ndarray, " episodes"]:
        """Steps of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    def episode(self, i: int) -> dict[str, np.ndarray]:
        """Return views of the arrays of episode `i`, counted from 0, or from the end when negative.

        Raises:
            WorkbenchError: there is no such episode.
        """
        if not -self.n_episodes <= i < self.n_episodes:
            raise WorkbenchError(f"{self.source}: got episode {i}; expected 0 to {self.n_episodes - 1}.")
        i %= self.n_episodes
        begin = self.episode_ends[i - 1] if i else 0
        return {key: values[begin : self.episode_ends[i]] for key, values in self.arrays.items()}

    def subset(self, episodes: Iterable[int]) -> ReplayBuffer:
        """Copy some episodes, in the order given.

        Raises:
            WorkbenchError: no episodes given, or one that does not exist.
        """
        chosen = ReplayBuffer.from_episodes([self.episode(int(i)) for i in episodes])
        return ReplayBuffer(chosen.arrays, chosen.episode_ends, self.source, dict(self.attributes))


def concatenate(buffers: Sequence[ReplayBuffer]) -> ReplayBuffer:
    """Put buffers end to end; the attributes of each are kept in a list, ``parts``.

    Raises:
        WorkbenchError: no buffers, or arrays that differ in name, dtype or shape per step.
    """
    if not buffers:
        raise WorkbenchError("concatenate: got no buffers; expected at least one.")
    kinds = [{k: (v.dtype.name, v.shape[1:]) for k, v in sorted(b.arrays.items())} for b in buffers]
    for i, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise WorkbenchError(
                f"concatenate: got arrays {kind} in part {i} ({buffers[i].source}) and {kinds[0]} in part 0; expected "
                "the same names, types and shapes: convert one of them."
            )
    offsets = np.cumsum([0] + [b.n_steps for b in buffers[:-1]])
    return ReplayBuffer(
        {key: np.concatenate([b.arrays[key] for b in buffers]) for key in buffers[0].arrays},
        np.concatenate([b.episode_ends + o for b, o in zip(buffers, offsets, strict=True)]).astype(np.int64),
        " + ".join(dict.fromkeys(b.source for b in buffers)),
        {"parts": [b.attributes for b in buffers]},
    )
