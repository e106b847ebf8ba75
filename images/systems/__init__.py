"""Generative systems of images: what is trained, and how it is sampled. One module for each with an idea of its own.

A system is a short recipe on `diffusion_core`: its training loss is its ``forward``, its sampler its `System.sample`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion_core import experts, sample
from diffusion_core import grid as grids
from diffusion_core.denoise import Denoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Weighting, simple
from diffusion_core.noise import Noise
from diffusion_core.plan import Plan
from diffusion_core.predict import Prediction
from diffusion_core.schedule import Cosine, Schedule
from diffusion_core.solvers import Table, ddim
from diffusion_core.times import TrainingTimes, uniform_times


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Args:
        solver: ``solver(schedule, times) -> Table``, such as ``partial(ddim, eta=0.0)``.
        steps: of the solver.
        grid: ``grid(n=steps)`` or ``grid(schedule=..., n=steps)``, a function of `diffusion_core.grid`.
        guidance_scale: of classifier-free guidance; 1: none.
    """

    solver: Callable[..., Table] = ddim
    steps: int = 50
    grid: Callable[..., Tensor] = grids.uniform
    guidance_scale: float = 1.0

    def table(self, schedule: Schedule) -> Table:
        """The solver's table under ``schedule``.

        Raises:
            WorkbenchError: the grid or the solver refuses its keywords' values.
        """
        takes = "schedule" in inspect.signature(self.grid).parameters
        try:
            times = self.grid(**({"schedule": schedule} if takes else {}), n=self.steps)
            return self.solver(schedule, times)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise WorkbenchError(f"sampler and grid: {' '.join(str(error).split())}; expected other values.") from error


@dataclass(frozen=True)
class Parts:
    """What a system is put together from: one field for each of the configuration's groups.

    Args:
        shape: channels, height and width of an image.
        n_classes: the label ``n_classes`` itself stands for none.
        build_network: ``build_network(channels=..., size=..., ...)``; see `network`.
        prediction: what the network predicts.
        clip: bound of the x0 estimate when sampling.
        parent: the trained system that this one builds on.
    """

    shape: tuple[int, int, int]
    n_classes: int
    build_network: Callable[..., nn.Module]
    schedule: Schedule = field(default_factory=Cosine)
    prediction: Prediction = "v"
    clip: float | None = None
    weighting: Weighting = simple
    times: TrainingTimes = uniform_times
    parent: Component | None = None

    def network(self, **more: Any) -> nn.Module:
        """The configured network for these images and classes; ``more`` keywords win over the configuration's."""
        known = {"channels": self.shape[0], "size": self.shape[1], "n_classes": self.n_classes}
        return self.build_network(**known | more)


class Component(nn.Module, ABC):
    """What is trained on images: a system, or a part that systems share, such as an autoencoder.

    Attributes:
        shape: channels, height and width of an image.
        n_classes: how many labels there are; the label ``n_classes`` itself stands for none.
        conditional: whether it makes a difference which label an image is asked for with.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.shape, self.n_classes = parts.shape, parts.n_classes
        self.conditional = parts.n_classes > 0

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each sample.

        Args:
            batch: "image" (batch, channels, height, width) in [-1, 1], "label" (batch,).
            draws: random numbers of this step.
        """


class System(Component):
    """A generative system of images in [-1, 1]."""

    @abstractmethod
    def sample(
        self, labels: Int64[Tensor, " n"], noise: Noise, how: Sampling
    ) -> Float[Tensor, "n channels height width"]:
        """Draw one image in about [-1, 1] for each label (``n_classes``: for none)."""


class Student(System):
    """A system that begins with its parent's weights."""

    @abstractmethod
    def begin(self) -> None:
        """Take over the weights of the parent, which are there now."""


def draw(
    denoiser: Denoiser, plan: Plan, shape: tuple[int, ...], noise: Noise, device: torch.device, cond: Any = None
) -> Float[Tensor, "n channels height width"]:
    """Samples of ``shape`` (n, channels, height, width), from the prior at the plan's first time to its last."""
    z = noise.normal(shape, torch.float32, device)
    return sample.sample(denoiser, plan, experts.start(denoiser, z, float(plan.times[0])), cond, noise)


def dropped(labels: Int64[Tensor, " batch"], null: int, probability: float, draws: Draws) -> Int64[Tensor, " batch"]:
    """Each label replaced by ``null`` with this probability. Source: Ho & Salimans 2022, algorithm 1."""
    return torch.where(draws.uniform(labels.shape).to(labels.device) < probability, null, labels)


Kind = TypeVar("Kind", bound=Component)


def built_on(parts: Parts, kind: type[Kind], what: str) -> Kind:
    """The parent, frozen: its weights are saved with those of the system that is built on it, and never trained.

    Args:
        kind: what the parent has to be.
        what: that in words, with the command's spelling, for the error.

    Raises:
        WorkbenchError: there is none, or it is something else.
    """
    parent = parts.parent
    if not isinstance(parent, kind):
        got = "none" if parent is None else type(parent).__name__
        raise WorkbenchError(f"parent: got {got}; expected {what}: train it first and name its run, parent=runs/....")
    return parent.requires_grad_(False).eval()
