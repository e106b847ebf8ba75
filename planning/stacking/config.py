"""The typed configuration of planning with blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from diffusion_core.configure import Leaf
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.train import TrainConfig

TASK = "stacking"


@dataclass
class MovesConfig:
    """Which moves are learned from.

    Args:
        episodes: of `MOVES` moves each, made by the scripted hand.
        seed: of arrangements and moves.
    """

    episodes: int = 700
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, {"data.episodes": self.episodes})
        require_at_least(0, {"data.seed": self.seed})


@dataclass
class BlocksPlannerConfig:
    """How a move is drawn and chosen.

    Args:
        candidates: moves drawn at once; that with the least `planning.stacking.planner.faults` is taken.
        strength: of the energies; 0: they only select.
        again: how often others may be drawn where the best is no good.
    """

    candidates: int = 64
    strength: float = 5.0
    again: int = 2

    def __post_init__(self) -> None:
        require_at_least(1, {"planner.candidates": self.candidates})
        require_at_least(0, {"planner.strength": self.strength, "planner.again": self.again})


@dataclass
class BlocksConfig:
    """A prior of moves and its training.

    Args:
        horizon: nodes of a move.
        network, schedule, sampler, grid, loss: constructors.
        prediction: what the network predicts.
        steps: denoising steps of the sampler.
        n, seed: of the evaluation: episodes of each task, and the first one's seed.
        runs: folder that holds all runs.
        resume: a run to go on with.
    """

    data: MovesConfig = field(default_factory=MovesConfig)
    horizon: int = 48
    network: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    prediction: str = "x0"
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    steps: int = 20
    loss: Leaf = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    planner: BlocksPlannerConfig = field(default_factory=BlocksPlannerConfig)
    n: int = 20
    seed: int = 100_000
    runs: str = "runs"
    resume: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, {"steps": self.steps, "n": self.n})
        if self.horizon < 8:
            raise WorkbenchError(f"horizon: got {self.horizon}; expected at least 8 nodes, a move has that many.")


ConfigStore.instance().store(name="stacking_schema", node=BlocksConfig)
