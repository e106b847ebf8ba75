"""Where a training begins: in a new run, or where an old one stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from yaml import YAMLError

from diffusion_core.checkpoint import listing, load
from diffusion_core.configure import Schema, save, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import Run


@runtime_checkable
class Resumable(Protocol):
    """What the configuration of every domain has."""

    runs: str
    resume: str


def open_run(config: Resumable, name: str, distributed: PartialState) -> Run:
    """The run to resume, or a new one named ``name``; the same folder in every process.

    Raises:
        WorkbenchError: there is no run where ``config.resume`` points.
    """
    if config.resume:
        path = Path(config.resume)
        if (path / "meta.json").exists():
            raise WorkbenchError(
                f"resume: {path} is a checkpoint; expected its run: the folder that holds checkpoints/."
            )
        if not (path / "config.yaml").exists():
            what = "has no config.yaml" if path.exists() else "does not exist"
            raise WorkbenchError(f"resume: {path} {what}; expected the folder of a run (runs/<date>/<name>).")
        return Run(path, distributed.is_main_process)
    paths: list[Any] = [None]
    if distributed.is_main_process:
        new = Run.create(Path(config.runs), name)
        save(config, new.path / "config.yaml")
        paths = [str(new.path)]
    return Run(Path(broadcast_object_list(paths)[0]), distributed.is_main_process)


def require_same_data(run: Run, provenance: str, what: str = "data") -> None:
    """Go on only if the run, where it has a checkpoint, learned from the data at hand.

    Args:
        provenance: of the data at hand.
        what: they are.

    Raises:
        WorkbenchError: it learned from others.
    """
    for path in listing(run.path)[-1:]:
        before = load(path).meta["data"]
        if before != provenance:
            raise WorkbenchError(
                f"resume: these are not the {what} this run began with; got {provenance}, expected {before}: put them "
                "back, or start anew."
            )


def resumable(schema: type[Schema], values: Any) -> Schema:
    """The configuration of this Hydra job; with ``resume``, the one that the run began with.

    Raises:
        WorkbenchError: overrides beside ``resume``.
    """
    config: Any = typed(schema, values)
    if config.resume:
        saved = Path(config.resume) / "config.yaml"
        others = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        if others:
            raise WorkbenchError(
                f"resume: got {others} besides; a resumed run keeps its own configuration: leave them out, "
                "or start anew."
            )
        if saved.exists():
            try:
                config = typed(schema, OmegaConf.load(saved))
            except (WorkbenchError, YAMLError, OSError, UnicodeDecodeError) as error:
                text = " ".join(str(error).split())
                raise WorkbenchError(
                    f"resume: {saved} is damaged or of another domain's run ({text}); expected one that this program "
                    "wrote: correct resume."
                ) from error
            config.resume = str(values.resume)
    return config
