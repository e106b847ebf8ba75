"""Checkpoints: a folder of safetensors, YAML and JSON, complete or absent, that runs no code when loaded.

    step_000500/
        model.safetensors       the averaged weights, normalizers included: all that sampling needs
        training.safetensors    raw weights and optimizer state: what resuming needs besides (may be gone)
        config.yaml             the resolved configuration
        meta.json               domain, task, step, data provenance, versions

A checkpoint is written beside its place and renamed into it, so that a reader sees all of it or nothing.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import yaml
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion_core.durable import flush
from diffusion_core.errors import WorkbenchError

FORMAT = 1
_NAME = re.compile(r"step_(\d+)$")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    path: Path
    config: dict[str, Any]
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.meta["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of ``<name>.safetensors``.

        Raises:
            WorkbenchError: the file is missing or damaged.
        """
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(file)
        except FileNotFoundError:
            raise WorkbenchError(
                f"checkpoint {self.path}: {file.name} is missing; "
                + (
                    "only the newest checkpoints of a run keep what resuming needs: resume from the run's folder."
                    if name == "training"
                    else "expected a complete checkpoint folder: copy it again."
                )
            ) from None
        except SafetensorError as error:
            raise WorkbenchError(
                f"checkpoint {self.path}: {file.name} is damaged ({error}); copy it again or use an older checkpoint."
            ) from None

    def require(self, domain: str, task: str | None = None) -> Checkpoint:
        """Itself, if it was trained for this domain and task.

        Raises:
            WorkbenchError: it was not.
        """
        got = (self.meta["domain"], self.meta["task"])
        if got[0] != domain or (task is not None and got[1] != task):
            raise WorkbenchError(
                f"checkpoint {self.path}: got one of domain={got[0]} task={got[1]}, expected domain={domain}"
                + (f" task={task}" if task else "")
                + f": use python -m {got[0]}.evaluate for it, or name another checkpoint."
            )
        return self


def save(
    parent: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], config: dict[str, Any], meta: dict[str, Any]
) -> Path:
    """Write ``parent/step_<step>`` completely or not at all.

    Args:
        tensors: for each file name (without suffix) its tensors.

    Returns:
        The checkpoint's folder.

    Raises:
        WorkbenchError: the disk is full; what was there before is untouched.
    """
    final = parent / f"step_{step:07d}"
    partial = parent / f"step_{step:07d}{_PARTIAL}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, values in tensors.items():
            save_file({k: v.detach().contiguous().cpu() for k, v in values.items()}, partial / f"{name}.safetensors")
        (partial / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
        (partial / "meta.json").write_text(json.dumps({"format": FORMAT, "step": step, **meta}, indent=1))
        for file in partial.iterdir():
            flush(file)
        flush(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        flush(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        # safetensors wraps the operating system's error in its own and keeps only the text
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or re.search(
            "no space|file too large|quota", str(error), re.IGNORECASE
        ):
            raise WorkbenchError(
                f"checkpoint {final}: the disk is full ({error}); earlier checkpoints are untouched: free some space "
                "(or choose another run folder) and resume."
            ) from None
        raise
    return final


def load(path: Path) -> Checkpoint:
    """The checkpoint in folder ``path``.

    Raises:
        WorkbenchError: it is incomplete, damaged, or of another format.
    """
    try:
        meta = json.loads((path / "meta.json").read_text())
        config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    except FileNotFoundError as error:
        raise WorkbenchError(
            f"checkpoint {path}: {Path(str(error.filename)).name} is missing; expected a folder with "
            "model.safetensors, config.yaml and meta.json: name a run, or one of its checkpoints/step_* folders."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        file = "config.yaml" if isinstance(error, yaml.YAMLError) else "meta.json"
        text = " ".join(str(error).split())
        raise WorkbenchError(f"checkpoint {path}: {file} is damaged ({text}); copy the checkpoint again.") from None
    if not isinstance(meta, dict) or not {"step", "domain", "task"} <= meta.keys() or not isinstance(config, dict):
        raise WorkbenchError(
            f"checkpoint {path}: meta.json and config.yaml do not hold what a checkpoint's do (step, domain, task; a "
            "configuration): copy the checkpoint again."
        )
    if "${" in json.dumps(config):
        # OmegaConf would resolve it here: an environment variable of this machine, say, into a report
        raise WorkbenchError(
            f"checkpoint {path}: config.yaml holds an interpolation (${{...}}); expected plain values."
        )
    if meta.get("format") != FORMAT:
        raise WorkbenchError(
            f"checkpoint {path}: got format {meta.get('format')}, expected {FORMAT}: it was written by another version."
        )
    return Checkpoint(path, {str(k): v for k, v in config.items()}, meta)


def listing(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [(int(m.group(1)), p) for p in (run / "checkpoints").glob("step_*") if (m := _NAME.match(p.name))]
    return [path for _, path in sorted(found)]


def run_of(path: Path) -> Path | None:
    """The run that the checkpoint in ``path`` belongs to; None if it stands alone."""
    return path.parent.parent if path.parent.name == "checkpoints" else None


@runtime_checkable
class Asked(Protocol):
    """What every domain's request for an evaluation has."""

    checkpoint: str
    steps: int

    @property
    def sampler(self) -> Mapping[str, Any] | None: ...

    @property
    def grid(self) -> Mapping[str, Any] | None: ...


def evaluation_folder(saved: Checkpoint, asked: Asked, others: Mapping[str, tuple[Any, Any]]) -> Path:
    """Where an evaluation goes: beside the one that the training left, not over it, unless the same is asked for again.

    Args:
        saved: what is judged.
        others: by name, what is asked for and what the training asked for.
    """
    home = run_of(saved.path)
    words = [saved.path.name] if home and saved.path != listing(home)[-1] else []
    words += [leaf["_target_"].rpartition(".")[2] for leaf in (asked.sampler, asked.grid) if leaf]
    words += [f"{asked.steps}-steps"] if asked.steps else []
    words += [f"{name}-{value}" for name, (value, own) in others.items() if value != own]
    name = "evaluation" if home else "evaluation-" + asked.checkpoint.strip("/").replace("/", "-")
    return (home or Path("runs")) / "-".join([name, *words])


def find(name: str | Path, shipped: Path | None = None) -> Checkpoint:
    """The checkpoint that a user means by ``name``.

    Args:
        name: a checkpoint folder, a run folder (its newest checkpoint is meant), or ``pretrained/<task>``.
        shipped: folder of the checkpoints that ship with the domain.

    Raises:
        WorkbenchError: there is none.
    """
    path = Path(name)
    if (path / "meta.json").exists():
        return load(path)
    if newest := listing(path)[-1:]:
        return load(newest[0])
    if shipped is not None and path.parts[:1] == ("pretrained",):
        if (shipped / path.name / "meta.json").exists():
            return load(shipped / path.name)
        there = sorted(f"pretrained/{p.name}" for p in shipped.glob("*") if p.is_dir())
        raise WorkbenchError(f"checkpoint: got {name}; what ships is {', '.join(there) or 'nothing yet'}.")
    what = "holds no complete checkpoint" if path.exists() else "does not exist"
    raise WorkbenchError(
        f"checkpoint: got {name}, which {what}; expected a run folder (runs/<date>/<name>), one of its checkpoints, "
        "or pretrained/<task>."
    )


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy ``tensors`` into ``module``; every name and shape must fit.

    Raises:
        WorkbenchError: names the first that does not.
    """
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise WorkbenchError(
            f"checkpoint {source}: {len(missing)} tensors are missing {missing[:3]}, {len(unknown)} are unknown "
            f"{unknown[:3]}; expected exactly those of its config.yaml: the two files are not of one checkpoint."
        )
    for key, value in tensors.items():
        if own[key].shape != value.shape:
            raise WorkbenchError(
                f"checkpoint {source}: {key} has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}: "
                "the configuration and the weights are not of one checkpoint."
            )
    module.load_state_dict(dict(tensors))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, ``optimizer.<parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{k}": v for i, entry in state.items() for k, v in entry.items()}


def fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".", 2)
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def prune(run: Path, keep: int, keep_training: int = 2) -> None:
    """Keep the newest ``keep`` checkpoints, and what resuming needs only in the newest ``keep_training``."""
    paths = listing(run)
    for path in paths[: max(len(paths) - keep, 0)]:
        # renamed first: a deletion that is cut short must not leave half a checkpoint under a checkpoint's name
        shutil.rmtree(path.rename(path.with_name(path.name + _PARTIAL)))
    for path in paths[: max(len(paths) - keep_training, 0)]:
        (path / "training.safetensors").unlink(missing_ok=True)
    for leftover in (run / "checkpoints").glob(f"*{_PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)
