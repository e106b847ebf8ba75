"""The typed configuration of the materials domain; it is Hydra's schema and what a checkpoint carries."""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from diffusion_core.configure import Leaf
from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.train import TrainConfig

COORDS_SOLVERS = ("ancestral", "flow")


@dataclass
class TaskConfig:
    """Which crystals.

    Args:
        name: of the task, kept in checkpoints: prototypes, perov_5, carbon_24, mp_20, mpts_52 or folder.
        max_atoms: in a cell.
    """

    name: str = MISSING
    max_atoms: int = 20

    def __post_init__(self) -> None:
        require_at_least(1, {"task.max_atoms": self.max_atoms})


@dataclass
class DataConfig:
    """Where the crystals come from.

    Args:
        folder: with train, val and test tables (.csv as CDVAE has them, or .parquet); empty: what ``WORKBENCH_DATA``
            names; for prototypes, what is generated.
        n: crystals that are generated.
        seed: of what is generated.
    """

    folder: str = ""
    n: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, {"data.n": self.n})
        require_at_least(0, {"data.seed": self.seed})


@dataclass
class EvaluationConfig:
    """How a model is judged.

    Args:
        n: crystals generated de novo; 0: none.
        csp: compositions of the test set whose structure is predicted; 0: none.
        k: predictions for each of them.
        seed: of the first sample.
        coverage: crystals whose fingerprints are compared (about 0.3 s each on one core); 0: none.
        workers: processes of the evaluators.
    """

    n: int = 1_000
    csp: int = 500
    k: int = 1
    seed: int = 100_000
    coverage: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        names = ("n", "csp", "seed", "coverage")
        require_at_least(0, {f"evaluation.{name}": getattr(self, name) for name in names})
        require_at_least(1, {"evaluation.k": self.k, "evaluation.workers": self.workers})


@dataclass
class MaterialsConfig:
    """A model of crystals and its training.

    Args:
        labels: properties that the network may be told: see `materials.properties`, and the data's own.
        network, schedule, sampler, grid: constructors; the schedule is the lattice's.
        sigma_min, sigma_max: noise of fractional coordinates at t = 0 and t = 1.
        weight_lattice, weight_types: of the losses; that of the coordinates is 1.
        types_clean: chance with which a crystal's atom types are shown clean in training.
        unlabeled: chance with which each property is withheld in training.
        coords: solver of the coordinates, "ancestral" or "flow".
        steps: evaluations of the network in sampling.
        runs: folder that holds all runs.
        resume: a run to go on with.
    """

    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    labels: list[str] = field(default_factory=list)
    network: Leaf = field(default_factory=dict)
    schedule: Leaf = field(default_factory=dict)
    sigma_min: float = 0.002
    sigma_max: float = 0.5
    weight_lattice: float = 1.0
    weight_types: float = 0.3
    types_clean: float = 0.5
    unlabeled: float = 0.2
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    coords: str = "ancestral"
    steps: int = 100
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runs: str = "runs"
    resume: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, {"steps": self.steps})
        for name in ("types_clean", "unlabeled"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise WorkbenchError(f"{name}: got {getattr(self, name)}; expected a chance in [0, 1].")
        require_at_least(0, {"weight_lattice": self.weight_lattice, "weight_types": self.weight_types})
        if self.coords not in COORDS_SOLVERS:
            raise WorkbenchError(
                f"coords: got {self.coords!r}; expected one of {', '.join(COORDS_SOLVERS)}: choose one."
            )


for _name, _node in (("", MaterialsConfig),):
    ConfigStore.instance().store(name=f"materials_{_name}schema", node=_node)
