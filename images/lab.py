"""Where experiments are made: the same data, networks, budget and judge for every system of the literature."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_core.checkpoint import Checkpoint
from diffusion_core.results import Estimate
from images import evaluate, zoo
from images.config import ImagesConfig, configuration
from images.data.pictures import Pictures
from images.data.sources import load
from images.model import restore, sampling
from images.systems import Component, Sampling, System

logger = logging.getLogger("workbench.images")


@dataclass(frozen=True)
class Tier:
    """How large experiments are.

    Args:
        name: of the tier.
        words: overrides that every training gets: the task, the budget, the network.
        n: samples of one measurement.
        scale: of training budgets that an experiment sets itself, relative to the quick tier's.
    """

    name: str
    words: tuple[str, ...]
    n: int
    scale: int = 1

    @property
    def task(self) -> str:
        """The task's name."""
        return next(word for word in self.words if word.startswith("task=")).removeprefix("task=")


TIERS = {
    "quick": Tier("quick", zoo.QUICK, 1_000),
    "full": Tier("full", zoo.FULL, 2_000, scale=3),
    "scenes": Tier("scenes", zoo.SCENES, 1_000, scale=3),
    # seconds; for tests: everything runs, nothing is learned
    "smoke": Tier("smoke", ("task=digits", "preset=smoke", "network=unet2d_small"), 100),
}


@dataclass(frozen=True)
class Trained:
    """A trained system, its configuration, and the command that trains it."""

    component: Component
    config: ImagesConfig
    saved: Checkpoint
    command: str


@dataclass
class Variant:
    """One row of an experiment's table.

    Args:
        name: what is varied, in a few words.
        metrics: what was measured.
        commands: that train what was measured.
    """

    name: str
    metrics: dict[str, Estimate]
    commands: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What an experiment found.

    Args:
        title: of the system.
        source: paper.
        idea: the mechanism, in one or two sentences.
        published: what the paper shows, in words and numbers, with what differs here.
        variants: the table; the baseline first.
        criterion: what had to be seen, decided before looking.
        shown: whether it was.
        verdict: what was seen, in one sentence with its numbers.
        samples: (n, c, h, w) images of the system itself.
        figure: the ablation.
        notes: anything that a reader must know, such as what was tried and failed.
    """

    title: str
    source: str
    idea: str
    published: str
    variants: list[Variant]
    criterion: str
    shown: bool
    verdict: str
    samples: Tensor
    figure: Figure
    notes: str = ""


class Lab:
    """Trains, draws and measures for experiments, and trains nothing twice.

    Args:
        tier: how large.
        zoo: folder of trained systems.
    """

    def __init__(self, tier: Tier, zoo: Path = Path("runs/zoo")) -> None:
        self.tier, self.zoo = tier, zoo

    @cached_property
    def config(self) -> ImagesConfig:
        """What the tier's words alone configure."""
        return configuration(self.tier.words)

    @cached_property
    def train_data(self) -> Pictures:
        """The training images."""
        return load(self.config.task, "train")

    @cached_property
    def test_data(self) -> Pictures:
        """The held-out images, which samples are compared with."""
        return load(self.config.task, "test")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.test_data.shape

    @property
    def steps(self) -> int:
        """Optimizer steps of the tier's budget."""
        return self.config.train.steps

    def train(self, *words: str, parent: Trained | None = None) -> Trained:
        """The system that ``python -m images.train <tier's words> <words>`` trains; the later word for a key wins."""
        every = merged((*self.tier.words, *words))
        saved, config = zoo.trained(every, self.zoo, None if parent is None else parent.saved)
        component, _ = restore(saved)
        extra = "" if parent is None else f" parent=<run of: {parent.command}>"
        return Trained(component, config, saved, "python -m images.train " + " ".join(every) + extra)

    def labels(self, n: int = 0) -> Int64[Tensor, " n"]:
        """Every class in turn."""
        return evaluate.in_turn(n or self.tier.n, self.test_data.n_classes)

    def draw(
        self,
        system: Trained | System,
        how: Sampling | None = None,
        labels: Int64[Tensor, " n"] | None = None,
        seed: int = 100_000,
    ) -> Float[Tensor, "n c h w"]:
        """The tier's number of images, every class in turn; image i has the noise of seed ``seed + i``.

        Args:
            how: the sampler; default: the one of the system's configuration.
        """
        if isinstance(system, Trained):
            how = how or sampling(system.config)
            assert isinstance(system.component, System)
            system = system.component
        assert how is not None
        return evaluate.generate(system, self.labels() if labels is None else labels, how, seed)

    def measure(
        self, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None, copies: bool = False
    ) -> dict[str, Estimate]:
        """Distance to the held-out images and the rest of `metrics.measure`; accuracy if ``labels`` were asked for.

        Names are short here ("FD", "recall"); the extractor's id stands in the results file (`judge`).
        """
        null = torch.full((len(images),), self.test_data.n_classes)
        task = self.config.task
        train = self.train_data if copies else None
        found = evaluate.measure(images, null if labels is None else labels, task, self.test_data, train)
        return {name.split("[")[0]: value for name, value in found.items()}

    @property
    def judge(self) -> str:
        """The id of the extractor that images are compared by."""
        return evaluate.judge_of(self.config.task)[0]

    def timed(self, function: Any, *arguments: Any) -> tuple[Any, float]:
        """What ``function(*arguments)`` returns and its seconds of this process (other processes do not count)."""
        start = time.process_time()
        return function(*arguments), time.process_time() - start


def merged(words: Sequence[str]) -> tuple[str, ...]:
    """Overrides, each key once: the last one wins, at the place of the first."""
    values: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        values[name] = value
    return tuple(f"{name}={value}" for name, value in values.items())
