"""The typed configuration of the image domain; it is Hydra's schema and what a checkpoint carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from diffusion_core.configure import Leaf, composed
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.train import TrainConfig


@dataclass
class TaskConfig:
    """Which images.

    Args:
        name: of the task, kept in checkpoints.
        source: "digits", "mnist", "cifar10", "scenes" or "folder".
        size: side of the square images, pixels.
        channels: 1 (grey) or 3 (red, green, blue).
        patch: pixels on a side that networks merge into one at their inlet; keeps them small on larger images.
        path: of a folder.
        labels: of a folder: "folders" (its sub-folders name the classes) or "none".
        train, test: scenes to draw; test: also how many of a folder's images are held out (0: a tenth).
        tier: of scenes: 1 one object, 2 two objects and a relation, 3 three.
        seed: of what is drawn or split.
        skip_damaged: leave out files that cannot be read, each named in the log.
    """

    name: str = MISSING
    source: str = MISSING
    size: int = 8
    channels: int = 1
    patch: int = 1
    path: str = ""
    labels: str = "folders"
    train: int = 0
    test: int = 0
    tier: int = 1
    seed: int = 0
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, {"task.size": self.size, "task.patch": self.patch, "task.tier": self.tier})
        require_at_least(0, {"task.train": self.train, "task.test": self.test, "task.seed": self.seed})
        if self.channels not in (1, 3):
            raise WorkbenchError(f"task.channels: got {self.channels}; expected 1 (grey) or 3 (colour).")


@dataclass
class EvaluationConfig:
    """How samples are judged.

    Args:
        n: samples.
        batch: drawn at once; changes speed only.
        seed: of their noise.
    """

    n: int = 2_000
    batch: int = 250
    seed: int = 100_000

    def __post_init__(self) -> None:
        require_at_least(1, {"n": self.n, "batch": self.batch})
        require_at_least(0, {"seed": self.seed})


@dataclass
class ImagesConfig:
    """A system and its training.

    Args:
        system: constructor of the system (``images.systems``) with its own keywords.
        parent: run, checkpoint folder or pretrained/<name> of the trained system that this one builds on: the
            autoencoder of a latent diffusion, the teacher of a student.
        parent_config: that system's configuration; filled in, so that a checkpoint stands alone.
        network, schedule, times, loss, sampler, grid: constructors.
        prediction: what the network predicts: x0, eps, v, velocity, score or F.
        clip: bound of the x0 estimate when sampling; null: none.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance when sampling; 1: none.
        runs: folder that holds all runs.
        resume: a run to go on with.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    system: Leaf = field(default_factory=dict)
    parent: str = ""
    parent_config: Leaf = field(default_factory=dict)
    network: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    times: Leaf = field(default_factory=dict)
    loss: Leaf = field(default_factory=dict)
    prediction: str = "eps"
    clip: float | None = None
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    steps: int = 50
    guidance_scale: float = 1.0
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runs: str = "runs"
    resume: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, {"steps": self.steps})
        if self.clip is not None and not self.clip > 0.0:
            raise WorkbenchError(f"clip: got {self.clip}; expected a bound > 0, or null for none.")
        if not math.isfinite(self.guidance_scale):
            raise WorkbenchError(f"guidance_scale: got {self.guidance_scale}; expected a finite number, 1 for none.")


@dataclass
class SampleConfig:
    """``python -m images.sample``.

    Args:
        checkpoint: a run, a checkpoint folder or pretrained/<name>.
        expect_system: refuse a checkpoint of any other system; empty: whatever it is.
        sampler, grid, steps, guidance_scale: as trained where not given.
        n: images to draw.
        label: class by name or number; empty: all classes in turn.
        seed: of the first image; each has its own, so that a sample does not depend on its batch.
        out: where files go; default: a new folder of ``runs``.
    """

    checkpoint: str = ""
    expect_system: str = ""
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    steps: int = 0
    guidance_scale: float | None = None
    n: int = 64
    label: str = ""
    seed: int = 0
    out: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, {"n": self.n})
        require_at_least(0, {"seed": self.seed, "steps": self.steps})


@dataclass
class EvaluateConfig:
    """``python -m images.evaluate``.

    Args:
        checkpoint, expect_system, sampler, grid, steps, guidance_scale: see `SampleConfig`.
        n, batch, seed: see `EvaluationConfig`; 0 (n, batch) or null (seed): as trained.
        out: where results go; default: beside the evaluation that the training left, named by what differs.
    """

    checkpoint: str = ""
    expect_system: str = ""
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    steps: int = 0
    guidance_scale: float | None = None
    n: int = 0
    batch: int = 0
    seed: int | None = None
    out: str = ""


ConfigStore.instance().store(name="images_schema", node=ImagesConfig)
ConfigStore.instance().store(name="images_sample_schema", node=SampleConfig)
ConfigStore.instance().store(name="images_evaluate_schema", node=EvaluateConfig)


def configuration(overrides: Sequence[str]) -> ImagesConfig:
    """What ``python -m images.train <overrides>`` is configured with."""
    return composed(ImagesConfig, "images.conf", "train", overrides)
