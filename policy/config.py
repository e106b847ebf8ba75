"""The typed configuration of the policy domain; it is Hydra's schema and what a checkpoint carries.

YAML holds values only; leaves with a ``_target_`` list one constructor's keywords.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from diffusion_core.configure import Leaf
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.train import TrainConfig


@dataclass
class TaskConfig:
    """What is to be done.

    Args:
        name: of the task, kept in checkpoints.
        obs: what the policy sees: keys of the environment's observation, and of each "low_dim", "image" or "language".
        env: constructor of the environment.
        expert: constructor of its scripted expert, if it has one; what ``policy.data generate`` records.
        reads: arrays of a store of demonstrations that the observations are made of; empty: those that ``obs`` names.
        stored: function from these arrays to the observations; null: they are the observations.
        reference: for each action dimension the low-dimensional feature it is measured from; empty: absolute actions.
        mirror: function that mirrors a demonstration, if the task has a mirror symmetry.
        rotations: actions are poses, of 7 numbers per arm, whose rotation vector is learned as two rows of its matrix.
    """

    name: str = MISSING
    obs: dict[str, str] = field(default_factory=dict)
    env: Leaf = field(default_factory=dict)
    expert: Leaf | None = None
    reads: list[str] = field(default_factory=list)
    stored: Leaf | None = None
    reference: list[int] = field(default_factory=list)
    mirror: Leaf | None = None
    rotations: bool = False

    def __post_init__(self) -> None:
        if self.rotations and self.reference:
            raise WorkbenchError(
                f"task: got rotations and reference={list(self.reference)}; expected one of them: a rotation is not "
                "measured from a feature by a difference."
            )


@dataclass
class DataConfig:
    """Which demonstrations are learned from.

    Args:
        source: "expert", "human" or the path of a replay buffer.
        filter: of robomimic's .hdf5, the filter key whose demonstrations are used, such as "train"; empty: all.
        max_episodes: use only this many, drawn at random; 0 uses all.
        validation_fraction: share of episodes held out for the validation loss.
        mirror: add the mirror image of every episode, where the task has a mirror symmetry.
        seed: of the split.
    """

    source: str = "expert"
    filter: str = ""
    max_episodes: int = 0
    validation_fraction: float = 0.02
    mirror: bool = True
    seed: int = 42

    def __post_init__(self) -> None:
        require_at_least(0, {"data.max_episodes": self.max_episodes, "data.seed": self.seed})


@dataclass
class EvaluationConfig:
    """How a policy is judged.

    Args:
        first_seed: the published protocol's test seeds begin at 100000.
        n: episodes, one per seed.
        batch: episodes side by side; changes speed only.
        film: how many of the episodes are filmed, the first ones.
        failures: how many of those that were not solved are played once more and filmed, if any are filmed.
        jobs: processes; changes speed only.
        threads: that step environments whose steps are MuJoCo's own (push3d), if jobs is 1; changes speed only.
        precision: "float64" makes results independent of the batch; "float32" is faster.
    """

    first_seed: int = 100_000
    n: int = 50
    batch: int = 50
    film: int = 6
    failures: int = 3
    jobs: int = 1
    threads: int = 1
    precision: str = "float64"

    def __post_init__(self) -> None:
        require_at_least(1, {"n": self.n, "batch": self.batch, "jobs": self.jobs, "threads": self.threads})
        require_at_least(0, {"film": self.film, "failures": self.failures, "first_seed": self.first_seed})
        if self.precision not in ("float32", "float64"):
            raise WorkbenchError(f"precision: got {self.precision!r}; expected float32 or float64.")


@dataclass
class PolicyConfig:
    """A policy and its training.

    Args:
        horizon, n_obs_steps, n_action_steps: of a chunk, in control steps.
        head: the distribution over chunks.
        encoder: of every camera, if the task has any.
        network, schedule, sampler, grid, loss: constructors, for heads that denoise.
        prediction: what the network predicts: x0, eps, v, velocity, score or F.
        clip: bound of the normalised x0 estimate.
        n_train: discrete training steps; 0 trains on continuous times.
        steps: denoising steps of the sampler.
        validate_every: validation loss and a few rollouts, in optimizer steps; 0: only at the end.
        runs: folder that holds all runs.
        units: a run whose scale of observations and actions this one takes, so that both can be multiplied.
        teacher: a run of head=diffusion that head=consistency learns from; empty: it learns from the data alone.
        resume: a run to go on with.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    head: Leaf = field(default_factory=dict)
    encoder: Leaf = field(default_factory=dict)
    network: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    prediction: str = "x0"
    clip: float | None = 1.0
    n_train: int = 0
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    steps: int = 10
    loss: Leaf = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    validate_every: int = 0
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    units: str = ""
    teacher: str = ""
    runs: str = "runs"
    resume: str = ""

    def __post_init__(self) -> None:
        ones = ("horizon", "n_obs_steps", "n_action_steps", "steps")
        require_at_least(1, {name: getattr(self, name) for name in ones})
        require_at_least(0, {"n_train": self.n_train, "validate_every": self.validate_every})
        if self.clip is not None and not self.clip > 0.0:
            raise WorkbenchError(f"clip: got {self.clip}; expected a bound > 0, or null for none.")
        if self.n_obs_steps - 1 + self.n_action_steps > self.horizon:
            raise WorkbenchError(
                f"n_action_steps: got {self.n_action_steps} after {self.n_obs_steps - 1} past steps of a chunk of "
                f"{self.horizon}; expected n_obs_steps - 1 + n_action_steps <= horizon: change one of the three."
            )


@dataclass
class EvaluateConfig(EvaluationConfig):
    """``python -m policy.evaluate``: what to judge, besides how.

    Args:
        checkpoint: a run, a checkpoint folder, or pretrained/<task>.
        expect_task: refuse a checkpoint of any other task; empty: whatever it was trained for.
        sampler, grid, steps: of the sampler; as trained where not given.
        last: evaluate so many of the run's newest checkpoints and report maximum and mean, as the paper does.
        out: where results go; default: ``evaluation`` in the run, with what was asked for in its name if that is not
            how the run itself was judged.
    """

    checkpoint: str = ""
    expect_task: str = ""
    sampler: Leaf | None = None
    grid: Leaf | None = None
    steps: int = 0
    last: int = 1
    out: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, {"last": self.last})
        require_at_least(0, {"steps": self.steps})


@dataclass
class SampleConfig:
    """``python -m policy.sample``.

    Args:
        checkpoint, sampler, grid, steps: see `EvaluateConfig`.
        n: chunks to draw.
        seed: of the start they are drawn for.
        out: where files go.
    """

    checkpoint: str = ""
    sampler: Leaf | None = None
    grid: Leaf | None = None
    steps: int = 0
    n: int = 64
    seed: int = 100_000
    out: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, {"n": self.n})
        require_at_least(0, {"seed": self.seed, "steps": self.steps})


ConfigStore.instance().store(name="policy_schema", node=PolicyConfig)
ConfigStore.instance().store(name="policy_evaluate_schema", node=EvaluateConfig)
ConfigStore.instance().store(name="policy_sample_schema", node=SampleConfig)
