"""The typed configuration of the materials domain; it is Hydra's schema and what a checkpoint carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
        layers: the most atoms of one element in a cell, for UniMat's tables.
    """

    name: str = MISSING
    max_atoms: int = 20
    layers: int = 20

    def __post_init__(self) -> None:
        require_at_least(1, {"task.max_atoms": self.max_atoms, "task.layers": self.layers})


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
        compositions: "train": those of training crystals, drawn alike, are given to the model; "": it invents them.
        csp: compositions of the test set whose structure is predicted; 0: none.
        k: predictions for each of them.
        seed: of the first sample.
        coverage: crystals whose fingerprints are compared (about 0.3 s each on one core); 0: none.
        stability: crystals that are relaxed with CHGNet and placed against the partial hull (seconds each); 0: none.
        workers: processes of the evaluators.
    """

    n: int = 1_000
    compositions: str = ""
    csp: int = 500
    k: int = 1
    seed: int = 100_000
    coverage: int = 0
    stability: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        names = ("n", "csp", "seed", "coverage", "stability")
        require_at_least(0, {f"evaluation.{name}": getattr(self, name) for name in names})
        require_at_least(1, {"evaluation.k": self.k, "evaluation.workers": self.workers})
        if self.compositions not in ("", "train"):
            raise WorkbenchError(f"evaluation.compositions: got {self.compositions!r}; expected train, or nothing.")


@dataclass
class MaterialsConfig:
    """A model of crystals and its training.

    Args:
        labels: properties that the network may be told: see `materials.properties`, and the data's own.
        network, schedule, sampler, grid: constructors; the schedule is the lattice's.
        sigma_min, sigma_max: noise of fractional coordinates at t = 0 and t = 1.
        weight_lattice, weight_types: of the losses; that of the coordinates is 1.
        pieces: that a training batch is worked on in, by the size of the crystals; 1 on a GPU, or for one size.
        types_clean: chance with which a crystal's atom types are shown clean in training.
        unlabeled: chance with which each property is withheld in training.
        coords: solver of the coordinates, "ancestral" or "flow".
        steps: evaluations of the network in sampling.
        power: exponent of the density that is drawn from; above 1 it prefers what is likely.
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
    pieces: int = 4
    types_clean: float = 0.5
    unlabeled: float = 0.2
    sampler: Leaf = field(default_factory=dict)
    grid: Leaf = field(default_factory=dict)
    coords: str = "ancestral"
    steps: int = 100
    power: float = 1.0
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runs: str = "runs"
    resume: str = ""

    def __post_init__(self) -> None:
        require_at_least(1, {"steps": self.steps, "pieces": self.pieces})
        for name in ("types_clean", "unlabeled"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise WorkbenchError(f"{name}: got {getattr(self, name)}; expected a chance in [0, 1].")
        require_at_least(0, {"weight_lattice": self.weight_lattice, "weight_types": self.weight_types})
        if not self.power > 0.0:
            raise WorkbenchError(f"power: got {self.power}; expected an exponent above 0.")
        if self.coords not in COORDS_SOLVERS:
            raise WorkbenchError(
                f"coords: got {self.coords!r}; expected one of {', '.join(COORDS_SOLVERS)}: choose one."
            )


@dataclass
class Asked:
    """What to draw with, besides the model: as trained where not given.

    Args:
        checkpoint: a run or a checkpoint folder.
        sampler, grid, coords, steps, power: see `MaterialsConfig`.
        out: where results go.
    """

    checkpoint: str = ""
    sampler: Leaf | None = None
    grid: Leaf | None = None
    coords: str = ""
    steps: int = 0
    power: float = 0.0
    out: str = ""

    def of(self, config: MaterialsConfig) -> MaterialsConfig:
        """The configuration that was trained, with what is given."""
        return replace(
            config,
            sampler=self.sampler or config.sampler,
            grid=self.grid or config.grid,
            coords=self.coords or config.coords,
            steps=self.steps or config.steps,
            power=self.power or config.power,
        )


@dataclass
class EvaluateConfig(Asked, EvaluationConfig):
    """``python -m materials.evaluate``: of a checkpoint, or of crystals in files.

    Args:
        structures: a file or a folder of crystals that are judged instead of a model.
        reference: the task whose data they are compared with.
        folder: of that data, as `DataConfig` has it.
    """

    structures: str = ""
    reference: str = "mp_20"
    folder: str = ""

    def __post_init__(self) -> None:
        EvaluationConfig.__post_init__(self)
        if self.structures and self.checkpoint:
            raise WorkbenchError("evaluate: got a checkpoint and structures; expected one of them: leave one out.")
        require_at_least(0, {"steps": self.steps})


def _named(key: str, got: Any, n: int, example: str) -> dict[str, Any]:
    """A property's name -> a number, or ``n`` of them."""
    found: dict[str, Any] = dict(got) if isinstance(got, Mapping) else {}
    numbers = [list(v) if isinstance(v, list | tuple) else [v] for v in found.values()]
    if (got is not None and not isinstance(got, Mapping)) or any(
        len(of) != n or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in of) for of in numbers
    ):
        raise WorkbenchError(f"{key}: got {got}; expected properties and {n} number(s) for each, such as {example}.")
    return {name: [float(x) for x in of] if n > 1 else float(of[0]) for name, of in zip(found, numbers, strict=True)}


@dataclass
class SampleConfig(Asked):
    """``python -m materials.sample``.

    Args:
        n: crystals.
        formula: of the cell, such as Sr4Ti4O12, or a reduced one; empty: whatever the model likes.
        z: formula units in a cell: one number, or the smallest and the largest; they are shared out evenly.
        chemical_system: elements that may occur, such as Li-Fe-O; nothing else ever does.
        atoms: in a cell; 0: as often as the data has them.
        wanted: property and value, such as {density: 5.0}, that the model was trained to be told.
        between: property and the smallest and largest value it may have, such as {density: [4.0, 5.0]}; what the
            models were not trained to be told, density and volume_per_atom, is steered by an energy.
        experts: runs or checkpoints of more models, trained apart on other properties; they are multiplied.
        guidance: how strongly the properties count; 1 is the conditional model.
        sweeps: corrector sweeps after each step, for products; 0: none.
        sweep_step: of their Langevin part.
        like: a file of one crystal whose structure is perturbed and drawn again (SDEdit).
        strength: how much of it is noised, from 0 (nothing) to 1 (all).
        keep: elements of ``like`` whose sites and types stay, with its cell.
        relax: "" or "chgnet".
        format: of the files: cif, poscar, extxyz, json, asedb, parquet.
        seed: of the first crystal.
        picture: how many crystals are drawn.
    """

    n: int = 16
    formula: str = ""
    z: list[int] = field(default_factory=lambda: [1])
    chemical_system: str = ""
    atoms: int = 0
    # dictionaries; Hydra takes keys that it does not know only where there was nothing
    wanted: Any = None
    between: Any = None
    experts: list[str] = field(default_factory=list)
    guidance: float = 1.0
    sweeps: int = 0
    sweep_step: float = 0.05
    like: str = ""
    strength: float = 0.5
    keep: list[str] = field(default_factory=list)
    relax: str = ""
    format: list[str] = field(default_factory=lambda: ["cif", "extxyz"])
    seed: int = 0
    picture: int = 12

    def __post_init__(self) -> None:
        require_at_least(1, {"n": self.n})
        require_at_least(0, {"seed": self.seed, "atoms": self.atoms, "picture": self.picture, "steps": self.steps})
        require_at_least(0, {"sweeps": self.sweeps})
        self.wanted = _named("wanted", self.wanted, 1, "{density: 5.0}")
        self.between = _named("between", self.between, 2, "{density: [4.0, 5.0]}")
        for name, limits in self.between.items():
            if not limits[0] < limits[1]:
                raise WorkbenchError(f"between.{name}: got {limits}; expected two numbers, the smaller first.")
        if both := self.wanted.keys() & self.between.keys():
            raise WorkbenchError(f"wanted, between: got {', '.join(sorted(both))} in both; expected it in one of them.")
        if not (1 <= len(self.z) <= 2 and 1 <= self.z[0] <= self.z[-1]):
            raise WorkbenchError(f"z: got {self.z}; expected one number, or the smallest and the largest: z=[1,4].")
        if self.relax not in ("", "chgnet"):
            raise WorkbenchError(f"relax: got {self.relax!r}; expected chgnet, or nothing.")
        if not 0.0 < self.strength <= 1.0:
            raise WorkbenchError(f"strength: got {self.strength}; expected a number above 0 and at most 1.")
        if sum(map(bool, (self.formula, self.chemical_system, self.like))) > 1:
            raise WorkbenchError(
                f"sample: got formula={self.formula!r}, chemical_system={self.chemical_system!r}, like={self.like!r}; "
                "expected at most one of them: leave the others out."
            )


for _name, _node in (("", MaterialsConfig), ("evaluate_", EvaluateConfig), ("sample_", SampleConfig)):
    ConfigStore.instance().store(name=f"materials_{_name}schema", node=_node)
