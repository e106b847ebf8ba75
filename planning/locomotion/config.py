"""The typed configuration of planning for locomotion."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hydra.core.config_store import ConfigStore

from diffusion_core.configure import Leaf
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.train import TrainConfig

TASK = "halfcheetah"
SELECT = ("first", "critic")


@dataclass
class MotionDataConfig:
    """What is learned from.

    Args:
        source: "generate": episodes of the linear policies that ship, all stages of a search in equal parts; or an HDF5
            file with D4RL's keys.
        episodes: of what is generated.
        noise: standard deviation that is added to the policies' actions.
        seed: of what is generated.
        lookahead: steps that a return-to-go looks ahead.
        discount: of a step.
    """

    source: str = "generate"
    episodes: int = 160
    noise: float = 0.2
    seed: int = 0
    lookahead: int = 100
    discount: float = 0.98

    def __post_init__(self) -> None:
        require_at_least(1, {"data.episodes": self.episodes, "data.lookahead": self.lookahead})
        require_at_least(0, {"data.noise": self.noise, "data.seed": self.seed})
        if not 0.0 < self.discount <= 1.0:
            raise WorkbenchError(f"data.discount: got {self.discount}; expected a number in (0, 1].")


@dataclass
class MotionPlannerConfig:
    """How a plan is drawn at every step.

    Args:
        candidates: plans drawn at once.
        select: "first", or "critic": the one of the highest value.
        guide: strength of ``exp(guide * value)``, the value that of x0_hat; 0: none.
        target: the return-to-go that is asked for, from 0, the least in the data, to 1, the most; None: none is.
        guidance_scale: of classifier-free guidance by it; 1 is the plain conditional prior.
        every: actions of a plan that are carried out before the next one is made.
        warm: steps of the sampler from a plan's own past: the last one, moved on and noised again; 0: all from noise.
        warm_start: time to which it is noised.
    """

    candidates: int = 16
    select: str = "critic"
    guide: float = 0.0
    target: float | None = None
    guidance_scale: float = 1.0
    every: int = 1
    warm: int = 0
    warm_start: float = 0.5

    def __post_init__(self) -> None:
        require_at_least(1, {"planner.candidates": self.candidates, "planner.every": self.every})
        require_at_least(0, {"planner.guide": self.guide, "planner.warm": self.warm})
        if self.select not in SELECT:
            raise WorkbenchError(
                f"planner.select: got {self.select!r}; expected one of {', '.join(SELECT)}: choose one."
            )
        if not 0.0 < self.warm_start < 1.0:
            raise WorkbenchError(f"planner.warm_start: got {self.warm_start}; expected a time in (0, 1).")


@dataclass
class MotionConfig:
    """A prior of motions and its training.

    Args:
        horizon: nodes of a plan, one a step.
        told: chance with which a training window's return-to-go is told.
        network, schedule, sampler, grid, loss: constructors.
        prediction: what the network predicts.
        clip: bound of the normalised x0 estimate.
        steps: denoising steps of the sampler.
        n, seed, film: of the evaluation: episodes, the first one's seed, whether one is filmed.
        runs: folder that holds all runs.
        resume: a run to go on with.
    """

    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    horizon: int = 8
    told: float = 0.75
    network: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    prediction: str = "x0"
    clip: float | None = None
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    steps: int = 10
    loss: Leaf = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    planner: MotionPlannerConfig = field(default_factory=MotionPlannerConfig)
    n: int = 10
    seed: int = 100_000
    film: bool = True
    runs: str = "runs"
    resume: str = ""

    def __post_init__(self) -> None:
        require_at_least(2, {"horizon": self.horizon})
        require_at_least(1, {"steps": self.steps, "n": self.n})
        if not 0.0 <= self.told <= 1.0:
            raise WorkbenchError(f"told: got {self.told}; expected a chance in [0, 1].")
        if self.planner.every > self.horizon:
            raise WorkbenchError(
                f"planner.every: got {self.planner.every} actions of a plan of {self.horizon}; expected no more."
            )


@dataclass
class MotionEvaluateConfig:
    """``python -m planning.locomotion.evaluate``: what is given replaces what was trained.

    Args:
        checkpoint: a run or a checkpoint folder.
        n, seed, film: see `MotionConfig`.
        steps: of the sampler.
        candidates, select, guide, target, guidance_scale, every, warm, warm_start: see `MotionPlannerConfig`.
        out: where results go.
    """

    checkpoint: str = ""
    n: int = 10
    seed: int = 100_000
    film: bool = True
    steps: int | None = None
    candidates: int | None = None
    select: str | None = None
    guide: float | None = None
    target: float | None = None
    guidance_scale: float | None = None
    every: int | None = None
    warm: int | None = None
    warm_start: float | None = None
    out: str = ""

    def of(self, config: MotionConfig) -> MotionConfig:
        """The configuration that was trained, with what is given."""
        names = ("candidates", "select", "guide", "target", "guidance_scale", "every", "warm", "warm_start")
        changed: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        steps = config.steps if self.steps is None else self.steps
        planner = replace(config.planner, **changed)
        return replace(config, planner=planner, steps=steps, n=self.n, seed=self.seed, film=self.film)


for _name, _node in (("", MotionConfig), ("evaluate_", MotionEvaluateConfig)):
    ConfigStore.instance().store(name=f"locomotion_{_name}schema", node=_node)
