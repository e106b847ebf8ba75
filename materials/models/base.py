"""What all models of crystals share: labels, sizes, and what sampling needs to know of their states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from diffusion_core.denoise import Denoiser
from diffusion_core.denoise.joint import JointDenoiser
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.factors import Given, given
from diffusion_core.noise import Noise
from diffusion_core.plan import Together
from materials.config import MaterialsConfig
from materials.crystal import Crystals
from materials.lattice import to_lattice
from materials.networks.periodic import LatticeScale

Types = Sequence[Sequence[int]]
"""Of each crystal, the atomic number of every atom."""


class CrystalModel(nn.Module, ABC):
    """``p(crystal | number of atoms or composition, properties)`` as a diffusion over several fields.

    Each property is withheld in training with the chance ``unlabeled``, so one network is conditional and not.

    Args:
        denoiser: its network has a `LatticeScale`.
        labels: names of properties that the network may be told.
        most: the largest number of atoms that it learned from.
        unlabeled: see above.
        weights: of the fields' losses.
    """

    label_mean: Tensor
    label_std: Tensor
    sizes: Tensor

    def __init__(
        self,
        denoiser: JointDenoiser,
        labels: Sequence[str],
        most: int,
        unlabeled: float = 0.2,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.labels, self.most = denoiser, tuple(labels), most
        self.unlabeled, self.weights = unlabeled, dict(weights or {})
        self.register_buffer("label_mean", torch.full((len(labels),), torch.nan))
        self.register_buffer("label_std", torch.full((len(labels),), torch.nan))
        self.register_buffer("sizes", torch.full((most + 1,), torch.nan))

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each crystal of `Batches.batch`."""

    @abstractmethod
    def plan(self, config: MaterialsConfig, grid: Tensor | None = None) -> Together:
        """The solvers of the fields.

        Args:
            grid: falling times; None: those of ``config``.

        Raises:
            WorkbenchError: they do not evaluate the network at the same rows.
        """

    @abstractmethod
    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Crystals of `padded` as the state at t = 0."""

    @abstractmethod
    def begin(self, denoiser: Denoiser, plan: Together, counts: Int64[Tensor, " n"], noise: Noise) -> dict[str, Tensor]:
        """The state at the plan's first time, for crystals of these numbers of atoms."""

    @abstractmethod
    def size(self, counts: Int64[Tensor, " n"], types: Types | None) -> dict[str, Tensor]:
        """What the network is told of the numbers of atoms and of the composition."""

    @abstractmethod
    def pinned(self, denoiser: Denoiser, types: Types) -> Denoiser:
        """``denoiser`` times the fact that a crystal has these atoms and no others."""

    @abstractmethod
    def within(self, denoiser: Denoiser, allowed: Bool[Tensor, " classes"]) -> Denoiser:
        """``denoiser`` times the fact that only the elements ``allowed`` occur: nothing drawn ever has another.

        Args:
            allowed: by class, the atomic number less one.
        """

    @abstractmethod
    def kept(self, denoiser: Denoiser, x0: Mapping[str, Tensor], sites: Bool[Tensor, " sites"]) -> Denoiser:
        """``denoiser`` times the fact that the cell and these sites are those of ``x0``.

        Args:
            x0: `state` of one crystal, as often as it is drawn.
            sites: atoms of the crystal that stay.

        Raises:
            WorkbenchError: the model has no such thing.
        """

    @abstractmethod
    def atoms(
        self, x: Mapping[str, Tensor], counts: Int64[Tensor, " n"], types: Types | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Atomic numbers and fractional coordinates of the crystals of a state at t = 0."""

    @property
    def scale(self) -> LatticeScale:
        """Of lattices; the network owns it."""
        found = self.denoiser.network.scale
        assert isinstance(found, LatticeScale)
        return found

    def fit_scales(self, tensors: Mapping[str, Tensor], label_scale: tuple[Tensor, Tensor]) -> None:
        """Take the spread of lattices and properties, and how often there are how many atoms, from the data."""
        self.scale.fit(tensors["lattice"], tensors["counts"])
        self.label_mean, self.label_std = (v.to(tensors["lattice"]) for v in label_scale)
        times = torch.bincount(tensors["counts"], minlength=self.most + 1).to(tensors["lattice"])
        self.sizes = times / times.sum()

    def told(self, labels: Float[Tensor, "batch properties"], draws: Draws) -> dict[str, Tensor]:
        """What the network is told of these properties in training: each is withheld at times."""
        if not self.labels:
            return {}
        told = torch.isfinite(labels) & (draws.uniform(labels.shape).to(labels.device) >= self.unlabeled)
        return {"labels": self._standard(labels), "told": told.to(labels.dtype)}

    def _standard(self, labels: Tensor) -> Tensor:
        return torch.nan_to_num((labels - self.label_mean) / self.label_std)

    def at(
        self,
        counts: Int64[Tensor, " n"],
        wanted: Mapping[str, float | Float[Tensor, " n"]] | None = None,
        types: Types | None = None,
    ) -> Given:
        """The expert for crystals of these numbers of atoms.

        Args:
            wanted: property -> its value, for all or for each, in its own units.
            types: atomic numbers of each crystal's atoms, if they are given.

        Raises:
            WorkbenchError: a property that the model was not trained to be told, or a size that it never saw.
        """
        wanted = wanted or {}
        if unknown := [name for name in wanted if name not in self.labels]:
            raise WorkbenchError(
                f"property: got {', '.join(unknown)}; expected some of {', '.join(self.labels) or 'none'}, which this "
                "model was trained with: train one with labels=[...]."
            )
        if int(counts.min()) < 1 or int(counts.max()) > self.most:
            raise WorkbenchError(
                f"atoms: got {int(counts.min())} to {int(counts.max())} in a cell; expected 1 to {self.most}, the "
                "largest that this model was trained with."
            )
        cond = self.size(counts, types)
        if self.labels:
            rows = torch.full((len(counts), len(self.labels)), torch.nan, device=counts.device)
            for name, value in wanted.items():
                rows[:, self.labels.index(name)] = torch.as_tensor(value, dtype=rows.dtype, device=rows.device)
            cond |= {"labels": self._standard(rows), "told": torch.isfinite(rows).float()}
        return given(self.denoiser, cond)

    def decode(self, x: Mapping[str, Tensor], counts: Int64[Tensor, " n"], types: Types | None = None) -> Crystals:
        """The crystals of a state at t = 0.

        Args:
            counts: of atoms, as they were asked for.
            types: of each, if they were asked for.
        """
        found = self.atoms(x, counts, types)
        n = torch.tensor([len(z) for z, _ in found], device=counts.device)
        lattices = to_lattice(self.scale.unnormalize(x["lattice"].double(), n))
        return Crystals(
            torch.cat([z for z, _ in found]).cpu().numpy(),
            torch.cat([f for _, f in found]).double().cpu().numpy(),
            lattices.cpu().numpy(),
            n.cpu().numpy(),
        )
