"""From configuration leaves to objects: ``_target_`` names one of *our* constructors, the rest its keywords.

A checkpoint brings its configuration along, so building from a configuration must never run foreign code:
only targets inside the modules that define building blocks are accepted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_core.durable import write_text
from diffusion_core.errors import WorkbenchError
from diffusion_core.schedule import Schedule
from diffusion_core.solvers import Table

Leaf = dict[str, Any]
Schema = TypeVar("Schema")

BUILDING_BLOCKS = (
    "diffusion_core.schedule",
    "diffusion_core.grid",
    "diffusion_core.solvers",
    "diffusion_core.loss",
    "diffusion_core.nn",
    "diffusion_core.times",
    "envs",
    "images.systems",
    "materials.networks",
    "policy.encoders",
    "policy.heads",
)
"""Modules whose functions and classes compute and write nothing; a configuration reaches no others."""


def _is_block(module: str) -> bool:
    return any(module == block or module.startswith(block + ".") for block in BUILDING_BLOCKS)


def target(leaf: Mapping[str, Any]) -> Any:
    """The constructor or function that ``leaf["_target_"]`` names.

    Raises:
        WorkbenchError: no target, a target outside the project, or a name that does not exist there.
    """
    path = leaf.get("_target_")
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if not _is_block(module):
        raise WorkbenchError(
            f"configuration: got _target_={path!r}; expected a dotted name inside one of {', '.join(BUILDING_BLOCKS)} "
            "(nothing else is ever imported from a configuration)."
        )
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise WorkbenchError(f"configuration: _target_={path!r} cannot be imported: {error}.") from error
    # our modules import foreign names too, and those must not be reachable through us
    home = getattr(found, "__module__", None) or ""
    if not callable(found) or not _is_block(home):
        raise WorkbenchError(
            f"configuration: got _target_={path!r}, which is {'of ' + home if home else 'no function or class'}; "
            f"expected a function or class that one of {', '.join(BUILDING_BLOCKS)} defines."
        )
    return found


def build(leaf: Mapping[str, Any], *arguments: Any, **more: Any) -> Any:
    """Call the leaf's target with ``arguments``, the leaf's own keywords and ``more``.

    Raises:
        WorkbenchError: the keywords do not fit the target's signature, or it refuses their values.
    """
    constructor = target(leaf)
    keywords = {k: v for k, v in leaf.items() if k != "_target_"} | more
    try:
        inspect.signature(constructor).bind(*arguments, **keywords)
    except TypeError as error:
        raise WorkbenchError(
            f"configuration of {leaf['_target_']}: {error}; got {sorted(keywords)}, "
            f"expected {list(inspect.signature(constructor).parameters)}."
        ) from error
    try:
        return constructor(*arguments, **keywords)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise WorkbenchError(f"configuration of {leaf['_target_']}: {' '.join(str(error).split())}") from error


def bind(leaf: Mapping[str, Any]) -> Any:
    """The leaf's target with its keywords bound, to be called with the rest."""
    constructor = target(leaf)
    keywords = {k: v for k, v in leaf.items() if k != "_target_"}
    unknown = set(keywords) - set(inspect.signature(constructor).parameters)
    if unknown:
        raise WorkbenchError(
            f"configuration of {leaf['_target_']}: got unknown {sorted(unknown)}; "
            f"expected some of {list(inspect.signature(constructor).parameters)}."
        )
    return partial(constructor, **keywords)


def table(
    sampler: Mapping[str, Any],
    grid: Mapping[str, Any],
    steps: int,
    schedule: Schedule,
    arrange: Callable[[Any], Any] | None = None,
) -> Table:
    """The solver's table that the leaves ``sampler`` and ``grid`` describe, with ``steps`` steps.

    Args:
        arrange: what is made of the grid before the solver sees it, such as a time for every token.

    Raises:
        WorkbenchError: a leaf does not fit its constructor, or the times do not suit the schedule.
    """
    times = build(grid, **({"schedule": schedule} if _takes(grid, "schedule") else {}), n=steps)
    return build(sampler, schedule, times if arrange is None else arrange(times))


def _takes(leaf: Mapping[str, Any], name: str) -> bool:
    return name in inspect.signature(target(leaf)).parameters


def typed(schema: type[Schema], values: Any) -> Schema:
    """``values`` (a Hydra or saved configuration) as a real ``schema`` object.

    Raises:
        WorkbenchError: a key or a type does not fit.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(values))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise WorkbenchError(f"configuration: {' '.join(str(error).split())}") from error


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain containers, to be saved."""
    return asdict(config)


def save(config: Any, path: Path) -> None:
    """Write a configuration as YAML."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(plain(config))))


def composed(schema: type[Schema], package: str, program: str, overrides: Sequence[str]) -> Schema:
    """What ``python -m <domain>.<program> <overrides>`` is configured with.

    Args:
        package: of the YAML files, such as "policy.conf".

    Raises:
        WorkbenchError: an override does not fit.
    """
    try:
        with initialize_config_module(package, version_base=None):
            return typed(schema, compose(program, list(overrides)))
    except HydraException as error:
        text = " ".join(str(error).partition("Config search path:")[0].split())
        raise WorkbenchError(f"configuration {' '.join(overrides)}: {text}") from error
