"""The generative model of crystals: one network over lattice, coordinates and atom types, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import build, typed
from diffusion_core.denoise.joint import JointDenoiser, Logits, Regression, Tangent, joint_loss
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.factors import Given, given
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.torus import Torus
from diffusion_core.schedule import GeometricVarianceExploding, RectifiedFlow
from materials import elements
from materials.config import MaterialsConfig
from materials.data.batches import exists
from materials.networks.periodic import LatticeScale


class CrystalModel(nn.Module):
    """``p(lattice, coordinates, atom types | number of atoms, properties)``.

    In training all atom types of a crystal are shown clean with the chance ``types_clean``, so one network predicts
    structures of a given composition and invents compositions; each property is withheld with the chance ``unlabeled``,
    so one network is conditional and not.

    Args:
        denoiser: over the three fields; its network has a `LatticeScale`.
        labels: names of properties that the network may be told.
        most: the largest number of atoms that it learned from.
        types_clean, unlabeled: see above.
        weights: of the fields' losses.
        pieces: by size, that a batch is worked on in.

    Source: one process per field: Jiao et al. 2023 (DiffCSP, arXiv 2309.04475); Zeni et al. 2025 (MatterGen, doi
    10.1038/s41586-025-08628-5); the chance of clean types is ours.
    """

    def __init__(
        self,
        denoiser: JointDenoiser,
        labels: Sequence[str],
        most: int,
        types_clean: float = 0.5,
        unlabeled: float = 0.2,
        weights: Mapping[str, float] | None = None,
        pieces: int = 1,
    ) -> None:
        super().__init__()
        self.denoiser, self.labels, self.most = denoiser, tuple(labels), most
        self.pieces = pieces
        self.types_clean, self.unlabeled, self.weights = types_clean, unlabeled, dict(weights or {})
        self.register_buffer("label_mean", torch.full((len(labels),), torch.nan))
        self.register_buffer("label_std", torch.full((len(labels),), torch.nan))
        self.register_buffer("sizes", torch.full((most + 1,), torch.nan))

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

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        """The training loss of each crystal of `Batches.batch`."""
        order = batch["counts"].argsort(stable=True)
        losses = []
        # small crystals together: what is between padded atoms would be most of the work
        alike = int(batch["counts"][order[0]]) == int(batch["counts"][order[-1]])
        for rows in order.chunk(1 if alike else self.pieces):
            most = int(batch["counts"][rows[-1]])
            piece = {name: tensor[rows] for name, tensor in batch.items()}
            piece |= {name: piece[name][:, :most] for name in ("frac_coords", "atom_types")}
            losses.append(self._losses(piece, draws))
        return torch.cat(losses)[order.argsort()]

    def _losses(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        counts = batch["counts"]
        mask = exists(counts, batch["atom_types"].shape[1])
        x0 = {
            "lattice": self.scale.normalize(batch["lattice"], counts),
            "frac_coords": batch["frac_coords"],
            "atom_types": batch["atom_types"],
        }
        whole = draws.uniform((len(counts), 1)).to(counts.device) < self.types_clean
        known = {"atom_types": whole.expand(mask.shape)}
        masks = {"frac_coords": mask, "atom_types": mask}
        cond = {"counts": counts, **self._told(batch["labels"], draws)}
        return joint_loss(self.denoiser, x0, cond, draws, weights=self.weights, masks=masks, known=known)

    def _told(self, labels: Float[Tensor, "batch properties"], draws: Draws) -> dict[str, Tensor]:
        if not self.labels:
            return {}
        told = torch.isfinite(labels) & (draws.uniform(labels.shape).to(labels.device) >= self.unlabeled)
        return {"labels": self._standard(labels), "told": told.to(labels.dtype)}

    def _standard(self, labels: Tensor) -> Tensor:
        return torch.nan_to_num((labels - self.label_mean) / self.label_std)

    def at(self, counts: Int64[Tensor, " n"], wanted: Mapping[str, float] | None = None) -> Given:
        """The expert for crystals of these numbers of atoms with the properties ``wanted``, in their own units.

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
        cond = {"counts": counts}
        if self.labels:
            values = torch.tensor([wanted.get(name, torch.nan) for name in self.labels], device=counts.device)
            row = values.expand(len(counts), -1)
            cond |= {"labels": self._standard(row), "told": torch.isfinite(row).float()}
        return given(self.denoiser, cond)


def assemble(config: MaterialsConfig) -> CrystalModel:
    """The model that ``config`` describes, with new weights and without scales."""
    network = build(config.network, labels=len(config.labels))
    torus = Torus(GeometricVarianceExploding(config.sigma_min, config.sigma_max))
    heads = {
        "lattice": Regression(Gaussian(build(config.schedule)), "v"),
        "frac_coords": Tangent(torus),
        "atom_types": Logits(Absorbing(RectifiedFlow(), elements.CLASSES)),
    }
    weights = {"lattice": config.weight_lattice, "frac_coords": 1.0, "atom_types": config.weight_types}
    return CrystalModel(
        JointDenoiser(network, heads),
        config.labels,
        config.task.max_atoms,
        config.types_clean,
        config.unlabeled,
        weights,
        config.pieces,
    )


def restore(saved: Checkpoint) -> tuple[CrystalModel, MaterialsConfig]:
    """The model in a checkpoint, in evaluation mode, and its configuration.

    Raises:
        WorkbenchError: the checkpoint is not of crystals, or is damaged.
    """
    saved.require("materials")
    config = typed(MaterialsConfig, saved.config)
    model = assemble(config)
    fill(model, saved.tensors("model"), saved.path)
    return model.requires_grad_(False).eval(), config
