"""The typed configuration of the planning domain; it is Hydra's schema and what a checkpoint carries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from diffusion_core.configure import Leaf
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.train import TrainConfig

ENVS = ("maze2d", "pointmaze")
SELECT = ("first", "critic", "shortest", "quickest")
REFINE = ("none", "timed", "cut")


@dataclass
class TaskConfig:
    """Where one plans.

    Args:
        name: of the task, kept in checkpoints.
        maze: of `envs.maze2d.MAPS` or `envs.pointmaze.MAPS`.
        multi: every episode has a goal of its own (Multi2D).
        env: "maze2d", D4RL's, or "pointmaze", OGBench's.
    """

    name: str = MISSING
    maze: str = MISSING
    multi: bool = False
    env: str = "maze2d"

    def __post_init__(self) -> None:
        if self.env not in ENVS:
            raise WorkbenchError(f"task.env: got {self.env!r}; expected one of {', '.join(ENVS)}: choose one.")


@dataclass
class DataConfig:
    """Which transitions are learned from.

    Args:
        source: "generate", or a file of D4RL, Minari or OGBench.
        steps: of what is generated.
        seed: of what is generated.
        recipe: of a point maze: "stitch" or "navigate".
        region: x0, y0, x1, y1 in m: only what happens in there is learned from; empty: everything is.
    """

    source: str = "generate"
    steps: int = 1_000_000
    seed: int = 0
    recipe: str = ""
    region: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_at_least(1, {"data.steps": self.steps})
        require_at_least(0, {"data.seed": self.seed})
        box = self.region
        if box and not (len(box) == 4 and box[0] < box[2] and box[1] < box[3]):
            raise WorkbenchError(
                f"data.region: got {box}; expected x0 < x1 and y0 < y1 as x0, y0, x1, y1 in m, or nothing: correct it."
            )


@dataclass
class PlannerConfig:
    """How plans are drawn from a prior and what it is multiplied with.

    Args:
        candidates: trajectories drawn for one problem, over all ``durations``; 1: no selection.
        durations: of a trajectory (with ``segments`` of each of them), in steps of the environment; drawn side by side.
        segments: trajectories of the prior's length that are stitched to one, see `planning.stitch`; 1: none are. The
            start and the goal are known at the ends of the whole.
        overlap: nodes that two segments share.
        plans: how many may be made for one problem of a point maze: see `planning.follow.follow`.
        langevin: steps of a corrector after each step of the sampler: stitched segments agree through them.
        tree: rounds of a search with samples of the prior as its moves, see `planning.tree`; 0: none. It is all that
            plans then: there are no candidates of the whole way, no energies and no selection. Point mazes only.
        delay: rows of the sampler by which each node is denoised later than the one before it; 0: all together.
        particles: the candidates of each duration are weighted and resampled on the way (`diffusion_core.particles`),
            so that they are drawn from the product itself; steps are ancestral then, whatever the sampler.
        walls: strength of the energy that keeps a trajectory out of walls and obstacles; 0: it is never asked.
        margin: distance to what is solid below which that energy begins, m.
        space: "x0_hat" or "x_t": what energies are a function of.
        through: "denoiser" or "estimate": how their gradient reaches the sample.
        select: which candidate is taken. Without a map: "first"; "critic", the one whose least likely stride is the
            likeliest. With the map, of those that miss all that is solid: "shortest"; "quickest", and among these the
            shortest.
        refine: what is done to it before it is carried out: "none", "timed", "cut"; see `planning.refine`. All but
            "none" see the map and know the ball's limits.
        kp, kd: gains of the controller that tracks it, unit actions per m and per m/s.
    """

    candidates: int = 64
    durations: list[int] = field(default_factory=lambda: [96, 192, 288, 384])
    segments: int = 1
    overlap: int = 8
    plans: int = 1
    langevin: int = 0
    tree: int = 0
    delay: int = 0
    particles: bool = False
    walls: float = 1.0
    margin: float = 0.15
    space: str = "x0_hat"
    through: str = "estimate"
    select: str = "shortest"
    refine: str = "cut"
    kp: float = 40.0
    kd: float = 2.5

    def __post_init__(self) -> None:
        require_at_least(
            1, {"planner.candidates": self.candidates, "planner.durations": min(self.durations, default=0)}
        )
        counts = {"planner.segments": self.segments, "planner.overlap": self.overlap, "planner.plans": self.plans}
        require_at_least(1, counts)
        require_at_least(0, {"planner.langevin": self.langevin, "planner.tree": self.tree, "planner.delay": self.delay})
        if self.particles and self.candidates % len(self.durations):
            raise WorkbenchError(
                f"planner.particles: got {self.candidates} candidates for {len(self.durations)} durations; expected a "
                "multiple, as each has particles of its own: change either."
            )
        for name, got, known in (("select", self.select, SELECT), ("refine", self.refine, REFINE)):
            if got not in known:
                raise WorkbenchError(f"planner.{name}: got {got!r}; expected one of {', '.join(known)}: choose one.")
        require_at_least(0, {"planner.kp": self.kp, "planner.kd": self.kd})
        if not (self.walls >= 0.0 and self.margin >= 0.0):
            raise WorkbenchError(
                f"planner: got walls={self.walls}, margin={self.margin}; expected numbers of at least 0."
            )


@dataclass
class EvaluationConfig:
    """How a planner is judged.

    Args:
        n: problems: the starts (and goals) of seeds ``seed``, ``seed + 1``, ...
        seed: of the first problem, and of its plan's noise.
        multi: a goal of its own for every problem (Multi2D); None: as the task.
        problems: a file of problems, all of which are taken instead; see `planning.problems.of_file`.
        peers: what gets the same problems; some of `planning.evaluate.PEERS`.
        film: how many episodes are filmed.
    """

    n: int = 100
    seed: int = 100_000
    multi: bool | None = None
    problems: str = ""
    peers: list[str] = field(default_factory=lambda: ["waypoint", "bfs"])
    film: int = 4

    def __post_init__(self) -> None:
        require_at_least(1, {"evaluation.n": self.n})
        require_at_least(0, {"evaluation.seed": self.seed, "evaluation.film": self.film})


@dataclass
class PlanningConfig:
    """A trajectory prior and its training.

    Args:
        horizon: nodes of a trajectory.
        strides: steps of the environment between nodes, one drawn for each training window; the network is told.
        forcing: share of training windows whose nodes have noise levels of their own (diffusion forcing), for
            ``planner.delay``; it needs a network that takes a time of every node (``network=mlp_forcing``).
        ends_clean: chance with which each end of a trajectory is shown clean in training.
        critic: whether a critic of strides is trained beside the prior, for ``planner.select=critic``.
        critic_anywhere: see `planning.critic.StrideCritic`.
        network, schedule, sampler, grid, loss: constructors.
        prediction: what the network predicts: x0, eps, v, velocity, score or F.
        clip: bound of the normalised x0 estimate.
        steps: denoising steps of the sampler.
        runs: folder that holds all runs.
        resume: a run to go on with.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    horizon: int = 32
    strides: list[int] = field(default_factory=lambda: [3, 6, 9, 12, 16])
    forcing: float = 0.0
    ends_clean: float = 0.7
    critic: bool = True
    critic_anywhere: float = 0.0
    network: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    prediction: str = "x0"
    clip: float | None = None
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    steps: int = 20
    loss: Leaf = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runs: str = "runs"
    resume: str = ""

    def __post_init__(self) -> None:
        require_at_least(2, {"horizon": self.horizon})
        require_at_least(1, {"steps": self.steps, "strides": min(self.strides, default=0)})
        for name, chance in (("ends_clean", self.ends_clean), ("forcing", self.forcing)):
            if not 0.0 <= chance <= 1.0:
                raise WorkbenchError(f"{name}: got {chance}; expected a chance in [0, 1].")
        told = bool(self.network.get("token_times", False))
        if self.network and (self.forcing > 0.0) != told:
            raise WorkbenchError(
                f"forcing: got {self.forcing} and network.token_times={str(told).lower()}; expected both or neither: "
                "choose network=mlp_forcing, or set forcing=0."
            )
        if self.planner.delay and not self.forcing:
            raise WorkbenchError(
                f"planner.delay: got {self.planner.delay} with forcing=0; expected a prior that learned from nodes "
                "with noise levels of their own: train with forcing=0.5, or set delay=0."
            )


@dataclass
class Asked:
    """What to plan with, besides the prior: as trained where not given.

    Args:
        checkpoint: a run or a checkpoint folder.
        expect_task: refuse a checkpoint of any other task; empty: whatever it was trained for.
        sampler, grid, steps: of the sampler.
        candidates, durations, tree, delay, plans, particles, walls, through, select, refine: see `PlannerConfig`.
        out: where results go.
    """

    checkpoint: str = ""
    expect_task: str = ""
    sampler: Leaf | None = None
    grid: Leaf | None = None
    steps: int = 0
    candidates: int | None = None
    durations: list[int] | None = None
    tree: int | None = None
    delay: int | None = None
    plans: int | None = None
    particles: bool | None = None
    walls: float | None = None
    through: str | None = None
    select: str | None = None
    refine: str | None = None
    out: str = ""

    @property
    def changed(self) -> dict[str, Any]:
        """What of `PlannerConfig` is given."""
        names = (
            "candidates",
            "durations",
            "tree",
            "delay",
            "plans",
            "particles",
            "walls",
            "through",
            "select",
            "refine",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def of(self, config: PlanningConfig) -> PlanningConfig:
        """The configuration that was trained, with what is given."""
        return replace(
            config,
            sampler=self.sampler or config.sampler,
            grid=self.grid or config.grid,
            steps=self.steps or config.steps,
            planner=replace(config.planner, **self.changed),
        )


@dataclass
class EvaluateConfig(Asked, EvaluationConfig):
    """``python -m planning.evaluate``."""

    def __post_init__(self) -> None:
        EvaluationConfig.__post_init__(self)
        require_at_least(0, {"steps": self.steps})


@dataclass
class SampleConfig(Asked):
    """``python -m planning.sample``.

    Args:
        start: x, y or x, y, vx, vy, m and m/s.
        goal: x, y, m.
        obstacles: x, y and radius of round ones, m.
        seed: of the plan's noise.
    """

    start: list[float] = field(default_factory=list)
    goal: list[float] = field(default_factory=list)
    # a list of lists would take no whole numbers
    obstacles: list[Any] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = [isinstance(o, list) and len(o) == 3 and {*map(type, o)} <= {int, float} for o in self.obstacles]
        if len(self.start) not in (2, 4) or len(self.goal) != 2 or not all(numbers):
            raise WorkbenchError(
                f"sample: got start={self.start}, goal={self.goal}, obstacles={self.obstacles}; expected x, y (and "
                "velocities) for the start, x, y for the goal, x, y and radius for each obstacle: correct them."
            )


for _name, _node in (("", PlanningConfig), ("evaluate_", EvaluateConfig), ("sample_", SampleConfig)):
    ConfigStore.instance().store(name=f"planning_{_name}schema", node=_node)
