"""From a configuration to a system, and from a checkpoint back to both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from diffusion_core import checkpoint
from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import bind, build, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.predict import PREDICTIONS
from images.config import ImagesConfig
from images.systems import Component, Parts, Sampling, Student

PRETRAINED = Path(__file__).parent / "pretrained"
"""Shared checkpoints that ship: see `images.zoo`."""


def assemble(config: ImagesConfig, n_classes: int) -> Component:
    """The system that ``config`` describes, with new weights; those of its parent are not loaded yet.

    Args:
        n_classes: of the data.
    """
    if config.prediction not in PREDICTIONS:
        raise WorkbenchError(f"prediction: got {config.prediction!r}; expected one of {', '.join(PREDICTIONS)}.")
    task = config.task
    parent = assemble(typed(ImagesConfig, config.parent_config), n_classes) if config.parent_config else None
    parts = Parts(
        shape=(task.channels, task.size, task.size),
        n_classes=n_classes,
        build_network=partial(build, config.network),
        schedule=build(config.schedule),
        prediction=config.prediction,
        clip=config.clip,
        weighting=bind(config.loss),
        times=bind(config.times),
        parent=parent,
    )
    component = build(config.system, parts)
    if not isinstance(component, Component):
        raise WorkbenchError(
            f"system: got _target_={config.system.get('_target_')!r}, which is none; expected one of images.systems."
        )
    return component


def sampling(config: ImagesConfig) -> Sampling:
    """How ``config`` draws images."""
    return Sampling(bind(config.sampler), config.steps, bind(config.grid), config.guidance_scale)


def find(name: str) -> Checkpoint:
    """A checkpoint by the folder of its run, its own folder, or its name among those that ship.

    Raises:
        WorkbenchError: there is none, it is another domain's, or it is no system.
    """
    if not name:
        raise WorkbenchError("checkpoint: got none; expected a run, a checkpoint folder or pretrained/<name>.")
    saved = checkpoint.find(name, PRETRAINED).require("images")
    if not {"system", "classes"} <= saved.meta.keys():
        raise WorkbenchError(
            f"checkpoint {saved.path}: got a network that judges images; expected a system, which "
            "python -m images.train makes: name another checkpoint."
        )
    return saved


def with_parent(config: ImagesConfig) -> ImagesConfig:
    """``config`` with the configuration of the parent that it names, if it names one.

    Raises:
        WorkbenchError: the parent was trained for other images.
    """
    if config.parent and not config.parent_config:
        saved = find(config.parent)
        theirs, ours = typed(ImagesConfig, saved.config).task, config.task
        for key in ("name", "size", "channels"):
            if getattr(theirs, key) != getattr(ours, key):
                raise WorkbenchError(
                    f"parent {config.parent}: got one of task.{key}={getattr(theirs, key)}; expected "
                    f"{getattr(ours, key)}, as this training's: train the parent on the same task."
                )
        config.parent_config = saved.config
    return config


def adopt(component: Component, config: ImagesConfig) -> Component:
    """Fill in the weights of the parent that ``config`` names.

    Raises:
        WorkbenchError: the system is built on none, or the parent knows other classes.
    """
    if config.parent:
        saved = find(config.parent)
        parent = getattr(component, "parent", None)
        if not isinstance(parent, Component):
            raise WorkbenchError(
                f"parent: got {config.parent}; expected none, since {type(component).__name__} is built on no other "
                "system: leave parent out."
            )
        if len(saved.meta["classes"]) != component.n_classes:
            raise WorkbenchError(
                f"parent {config.parent}: got one of {len(saved.meta['classes'])} classes; expected "
                f"{component.n_classes}, as this training's: train the parent on the same images."
            )
        fill(parent, saved.tensors("model"), saved.path)
    if isinstance(component, Student):
        component.begin()
    return component


def restore(saved: Checkpoint, expect_system: str = "") -> tuple[Component, ImagesConfig]:
    """The system in a checkpoint, in evaluation mode, and its configuration.

    Args:
        expect_system: the last part of its ``system._target_``, such as "Diffusion"; empty: any.

    Raises:
        WorkbenchError: the checkpoint is of another domain or system, or is damaged.
    """
    saved.require("images")
    config = typed(ImagesConfig, saved.config)
    found = str(config.system.get("_target_", "")).rpartition(".")[2]
    if expect_system and found != expect_system:
        raise WorkbenchError(
            f"checkpoint {saved.path}: got a {found}; expected a {expect_system}: name another checkpoint, or leave "
            "out expect_system."
        )
    component = assemble(config, len(saved.meta["classes"]))
    fill(component, saved.tensors("model"), saved.path)
    return component.requires_grad_(False).eval(), config
