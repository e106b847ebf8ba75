"""robomimic's HDF5 files as the content of replay buffers, and back.

    data/demo_<i>/obs/<key>   -> <key>             data/demo_<i>/actions -> action     .../rewards -> reward
    data/demo_<i>/<group>/<k> -> <group>.<k>       data/demo_<i>/states  -> sim_state  .../dones   -> done

Everything else that such a file says is kept in ``attributes["robomimic"]``, so that reading and writing give a file
of the same datasets, types, values and attributes (of the root, of `data` and of every demo):

    root, data    their attributes, `env_args` as the text it is; `total` only where it is no plain count
    demos         of each its name and its attributes (`model_file`, ...); absent when there is nothing to tell
    mask          the filter keys, such as train and valid
    datasets      arrays whose place in a demo does not follow from their name
    last_next_obs of each key, the observation after the last action: one per demo, packed

`next_obs` is not kept as arrays where it is `obs` one step later and only its last row is new; where it is anything
else, it becomes ``next_obs.<key>``.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.errors import WorkbenchError
from policy.data.reader import Content, StoredArray

SUFFIX = ".hdf5"
PLACES = {"action": "actions", "reward": "rewards", "done": "dones", "sim_state": "states"}
"""Arrays that are no observations, and the dataset of a demo that holds them."""
_KEYS = {place: key for key, place in PLACES.items()}
_NEXT = "next_obs."
_MEND = "write or download the file again"


def read(path: Path, keys: Sequence[str] | None = None, filter_key: str | None = None) -> Content:
    """Read the demos of a file, demo_9 before demo_10.

    Args:
        path: of the file.
        keys: arrays to read, by their names in the buffer; all when None.
        filter_key: of `mask/`: take these demos only.

    Raises:
        WorkbenchError: no such HDF5 file, one that is cut short, `env_args` that is no JSON, an array or filter key
            that is not there, demos with different arrays, or a demo whose arrays differ in length.
    """
    with _opened(path) as file:
        demos = _demos(path, file, filter_key)
        places = _places(path, file, demos)
        stored = [k for k in places if not k.startswith(_NEXT)]
        chosen = stored if keys is None else list(keys)
        if missing := sorted(set(chosen) - set(places)):
            raise WorkbenchError(
                f"{path}: got arrays {', '.join(places)}; expected also {', '.join(missing)}: choose among those with "
                "keys=..., or write the observations into the file (robomimic's dataset_states_to_obs)."
            )
        ends = np.cumsum([_length(path, file, demo, [places[k] for k in chosen]) for demo in demos], dtype=np.int64)
        arrays = {key: _gather(path, file, demos, places[key], ends) for key in chosen}
        last: dict[str, Any] = {}
        for key in [k for k in places if keys is None and k.startswith(_NEXT)]:
            values = _gather(path, file, demos, places[key], ends)
            if _is_shift(values, arrays.get(key.removeprefix(_NEXT)), ends):
                last[key.removeprefix(_NEXT)] = _pack(values[ends - 1])
            else:
                arrays[key] = values
        odd = {k: p for k, p in places.items() if _place(k, {}) != p and k in arrays}
        own, rest = _describe_file(path, file, demos, ends)
    kept = {k: v for k, v in (own | {"datasets": odd, "last_next_obs": last}).items() if v}
    return Content(arrays, ends, rest | ({"robomimic": kept} if kept else {}))


def describe(path: Path) -> dict[str, StoredArray]:
    """Tell the arrays of a file without reading them; `next_obs` is named as it stands there.

    Raises:
        WorkbenchError: as `read`, as far as names and shapes go.
    """
    found = {}
    with _opened(path) as file:
        demos = _demos(path, file, None)
        for key, place in _places(path, file, demos).items():
            sets = [file[f"data/{demo}/{place}"] for demo in demos]
            shape = (sum(s.shape[0] for s in sets), *sets[0].shape[1:])
            size = sum(s.id.get_storage_size() for s in sets)
            codec = sets[0].compression or "none"
            found[key] = StoredArray(str(sets[0].dtype), shape, sets[0].chunks or sets[0].shape, codec, size)
    return found


def write(path: Path, arrays: Mapping[str, np.ndarray], ends: np.ndarray, attributes: Mapping[str, Any]) -> None:
    """Write a file that robomimic reads, images compressed without loss; nothing is there to be replaced.

    Attributes of a buffer that are not robomimic's go, as JSON, into the attribute `attributes` of `data`.

    Raises:
        WorkbenchError: ``attributes["robomimic"]`` tells of other demos than these.
    """
    import h5py

    own = dict(attributes.get("robomimic", {}))
    rest = {k: v for k, v in attributes.items() if k != "robomimic"}
    demos = own.get("demos") or [{"name": f"demo_{i}"} for i in range(len(ends))]
    if len(demos) != len(ends):
        raise WorkbenchError(
            f"{path.name}: got {len(ends)} episodes with attributes of {len(demos)} demos; expected as many: choose "
            "demos with filter=..., or drop attributes['robomimic']."
        )
    begins = np.concatenate([[0], ends[:-1]])
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        _set(file, own.get("root", {}))
        _set(data, {"total": int(ends[-1])} | own.get("data", {}))
        if rest:
            data.attrs["attributes"] = json.dumps(rest)
        for i, (demo, begin, end) in enumerate(zip(demos, begins, ends, strict=True)):
            group = data.create_group(demo["name"])
            _set(group, {"num_samples": int(end - begin)} | demo.get("attributes", {}))
            for key, values in arrays.items():
                rows = values[begin:end]
                place = _place(key, own.get("datasets", {}))
                compression = "gzip" if rows.ndim == 4 and rows.dtype == np.uint8 else None
                group.create_dataset(place, data=rows, compression=compression)
            for key, packed in own.get("last_next_obs", {}).items():
                if key in arrays:
                    rows = np.concatenate([arrays[key][begin + 1 : end], _unpack(packed)[i : i + 1]])
                    place = _place(key, own.get("datasets", {})).removeprefix("obs/")
                    group.create_dataset(f"next_obs/{place}", data=rows)
        for name, mask in own.get("mask", {}).items():
            dtype = h5py.string_dtype() if mask["dtype"] == "object" else np.dtype(mask["dtype"])
            file.create_dataset(f"mask/{name}", data=np.array([d.encode() for d in mask["demos"]], dtype=dtype))


def join(parts: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> dict[str, Any]:
    """Make one ``attributes["robomimic"]`` of those of files put end to end; the demos are numbered anew.

    Args:
        parts: of each file its ``attributes["robomimic"]``.
        counts: of each file its number of demos.

    Raises:
        WorkbenchError: files of different environments, or arrays in different places.
    """
    for name in ("data", "root", "datasets"):
        if any(part.get(name) != parts[0].get(name) for part in parts):
            raise WorkbenchError(
                f"robomimic: got files that differ in {name} (for example env_args); expected demonstrations of one "
                "environment: convert them one by one."
            )
    if any(set(part.get("last_next_obs", {})) != set(parts[0].get("last_next_obs", {})) for part in parts):
        raise WorkbenchError("robomimic: got files some of which have next_obs; expected all or none: use keys=...")
    joined = {name: parts[0][name] for name in ("root", "data", "datasets") if name in parts[0]}
    demos: list[dict[str, Any]] = []
    mask: dict[str, Any] = {}
    for part, count in zip(parts, counts, strict=True):
        old = part.get("demos") or [{"name": f"demo_{i}"} for i in range(count)]
        fresh = {demo["name"]: f"demo_{len(demos) + i}" for i, demo in enumerate(old)}
        demos += [demo | {"name": fresh[demo["name"]]} for demo in old]
        for name, kept in part.get("mask", {}).items():
            mask.setdefault(name, {"dtype": "object", "demos": []})["demos"] += [fresh[d] for d in kept["demos"]]
    last = {}
    for key in parts[0].get("last_next_obs", {}):
        last[key] = _pack(np.concatenate([_unpack(part["last_next_obs"][key]) for part in parts]))
    return joined | {"demos": demos} | ({"mask": mask} if mask else {}) | ({"last_next_obs": last} if last else {})


def env_args(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """The environment a buffer was recorded in: `env_name`, `env_type`, `env_kwargs`; None where it does not say."""
    text = attributes.get("robomimic", {}).get("data", {}).get("env_args")
    return None if text is None else json.loads(text)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    if not path.exists():
        raise WorkbenchError(f"{path}: got no such file; expected robomimic's HDF5: check the path.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise WorkbenchError(f"{path}: cannot be opened as HDF5 ({reason}); expected a whole file: {_MEND}.") from error
    with file:
        yield file


def _demos(path: Path, file: Any, filter_key: str | None) -> list[str]:
    if "data" not in file or not len(file["data"]):
        raise WorkbenchError(f"{path}: got an HDF5 file without data/demo_0; expected robomimic's layout: check it.")
    names = list(file["data"])
    if filter_key is not None:
        filters = list(file.get("mask", ()))
        if filter_key not in filters:
            known = ", ".join(filters) or "none"
            raise WorkbenchError(
                f"{path}: got no filter key {filter_key!r}; expected one of those in mask/ ({known}): change filter=..."
            )
        chosen = [n.decode() for n in file[f"mask/{filter_key}"][()]]
        if absent := sorted(set(chosen) - set(names)):
            raise WorkbenchError(f"{path}: mask/{filter_key} names {absent[0]}, which data/ does not hold: {_MEND}.")
        names = chosen
    return sorted(names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)])


def _places(path: Path, file: Any, demos: Sequence[str]) -> dict[str, str]:
    import h5py

    def listed(demo: str) -> list[str]:
        names: list[str] = []
        file[f"data/{demo}"].visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
        return sorted(names)

    first = listed(demos[0])
    for demo in demos[1:]:
        if differ := sorted(set(listed(demo)) ^ set(first)):
            lacks = demo if differ[0] in first else demos[0]
            raise WorkbenchError(
                f"{path}: got no {differ[0]} in {lacks}, which other demos have; expected the same arrays in every "
                f"demo: remove the demo or {_MEND}."
            )
    if "actions" not in first:
        raise WorkbenchError(f"{path}: got no actions in {demos[0]}; expected robomimic's layout: check the file.")
    places: dict[str, str] = {}
    for place in first:
        key = (_KEYS.get(place) or place.removeprefix("obs/")).replace("/", ".")
        if key in places:
            raise WorkbenchError(f"{path}: got {places[key]} and {place}, both {key!r} here; expected one: rename one.")
        if file[f"data/{demos[0]}/{place}"].dtype.kind not in "biuf":
            raise WorkbenchError(
                f"{path}: got {place} of type {file[f'data/{demos[0]}/{place}'].dtype}; expected numbers."
            )
        places[key] = place
    return places


def _place(key: str, odd: Mapping[str, str]) -> str:
    if key in odd:
        return odd[key]
    return PLACES.get(key) or (f"next_obs/{key.removeprefix(_NEXT)}" if key.startswith(_NEXT) else f"obs/{key}")


def _length(path: Path, file: Any, demo: str, places: Sequence[str]) -> int:
    group = file[f"data/{demo}"]
    steps = group["actions"].shape[0]
    said = int(group.attrs.get("num_samples", steps))
    counted = {"num_samples": said} | {p: (group[p].shape or (0,))[0] for p in places}
    for name, got in counted.items():
        if got != steps or steps == 0:
            raise WorkbenchError(
                f"{path}: {demo} has {steps} actions but {name} of {got}; expected the same number, above 0: remove "
                f"the demo, leave the array out with keys=..., or {_MEND}."
            )
    return steps


def _gather(path: Path, file: Any, demos: Sequence[str], place: str, ends: np.ndarray) -> np.ndarray:
    first = file[f"data/{demos[0]}/{place}"]
    out = np.empty((int(ends[-1]), *first.shape[1:]), first.dtype)
    begin = 0
    for demo, end in zip(demos, ends, strict=True):
        found = file[f"data/{demo}/{place}"]
        if (found.dtype, found.shape) != (first.dtype, (end - begin, *first.shape[1:])):
            raise WorkbenchError(
                f"{path}: got {place} of {found.dtype} {found.shape} in {demo} and {first.dtype} {first.shape} in "
                f"{demos[0]}, {end - begin} steps; expected one kind: remove the demo or {_MEND}."
            )
        try:
            out[begin:end] = found[()]
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WorkbenchError(f"{path}: {place} of {demo} cannot be read ({reason}): {_MEND}.") from error
        begin = end
    return out


def _is_shift(after: np.ndarray, obs: np.ndarray | None, ends: np.ndarray) -> bool:
    if obs is None or obs.dtype != after.dtype or obs.shape != after.shape:
        return False
    inside = np.ones(len(obs) - 1, bool)
    inside[ends[:-1] - 1] = False
    # np.array_equal of a masked copy would need the memory twice more
    return all(np.array_equal(after[i], obs[i + 1]) for i in np.flatnonzero(inside))


def _describe_file(
    path: Path, file: Any, demos: Sequence[str], ends: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    data, root = _get(file["data"]), _get(file)
    try:
        json.loads(data.get("env_args", "{}"))
        rest = json.loads(data.pop("attributes", "{}"))
    except (ValueError, TypeError) as error:
        text = str(data.get("env_args"))[:60]
        raise WorkbenchError(
            f"{path}: got attribute env_args = {text!r}, which is no JSON ({error}); expected env_name, env_type and "
            f"env_kwargs: {_MEND}."
        ) from error
    if data.get("total") == int(ends[-1]) or len(demos) < len(file["data"]):
        data.pop("total", None)
    told = []
    for demo, length in zip(demos, np.diff(ends, prepend=0), strict=True):
        said = _get(file[f"data/{demo}"])
        if said.get("num_samples") == int(length):
            said.pop("num_samples")
        told.append({"name": demo} | ({"attributes": said} if said else {}))
    if told == [{"name": f"demo_{i}"} for i in range(len(demos))]:
        told = []
    mask = {}
    for name in file.get("mask", ()):
        listed = file[f"mask/{name}"]
        # a filter applied to a file leaves of every other mask the demos that are still there
        kept = [n for n in (n.decode() for n in listed[()]) if n in demos]
        mask[name] = {"dtype": str(listed.dtype), "demos": kept}
    return {"root": root, "data": data, "demos": told, "mask": mask}, rest


def _get(item: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in item.attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (str, np.int64, np.bool_)):
        return value if isinstance(value, str) else value.item()
    values = np.asarray(value)
    if values.dtype.kind == "O":
        return {"strings": values.tolist()}
    if values.dtype.kind == "S":
        return {"dtype": values.dtype.str, "value": np.char.decode(values, "latin-1").tolist()}
    return {"dtype": values.dtype.str, "value": values.tolist()}


def _set(item: Any, attributes: Mapping[str, Any]) -> None:
    import h5py

    for name, value in attributes.items():
        if isinstance(value, dict) and "strings" in value:
            item.attrs.create(name, value["strings"], dtype=h5py.string_dtype())
        elif isinstance(value, dict):
            kind = np.dtype(value["dtype"])
            plain = np.char.encode(value["value"], "latin-1") if kind.kind == "S" else value["value"]
            item.attrs[name] = np.asarray(plain, dtype=kind)[()]
        else:
            item.attrs[name] = np.int64(value) if type(value) is int else value


def _pack(values: np.ndarray) -> dict[str, Any]:
    text = base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes())).decode()
    return {"dtype": values.dtype.str, "shape": list(values.shape), "zlib_base64": text}


def _unpack(packed: Mapping[str, Any]) -> np.ndarray:
    raw = zlib.decompress(base64.b64decode(packed["zlib_base64"]))
    return np.frombuffer(raw, packed["dtype"]).reshape(packed["shape"])
