"""Generative models of crystals: as lists of atoms, or as UniMat's tables."""

from __future__ import annotations

from typing import Any

from diffusion_core.checkpoint import Checkpoint, fill
from diffusion_core.configure import build, typed
from diffusion_core.denoise.joint import Head, JointDenoiser, Logits, Regression, Tangent
from diffusion_core.process.categorical import Absorbing
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.torus import Torus
from diffusion_core.schedule import GeometricVarianceExploding, RectifiedFlow
from materials import elements
from materials.config import MaterialsConfig
from materials.models.atoms import AtomModel
from materials.models.base import CrystalModel
from materials.models.table import TableModel
from materials.networks.unet3d import UniMatUNet

__all__ = ["AtomModel", "CrystalModel", "TableModel", "assemble", "restore"]


def assemble(config: MaterialsConfig) -> CrystalModel:
    """The model that ``config`` describes, with new weights and without scales; its network says which kind it is."""
    network = build(config.network, labels=len(config.labels))
    common: dict[str, Any] = {
        "labels": config.labels,
        "most": config.task.max_atoms,
        "unlabeled": config.unlabeled,
        "types_clean": config.types_clean,
    }
    gaussian = Gaussian(build(config.schedule))
    heads: dict[str, Head]
    if isinstance(network, UniMatUNet):
        heads = {"lattice": Regression(gaussian, "v"), "table": Regression(gaussian, "eps")}
        return TableModel(JointDenoiser(network, heads), weights={"lattice": config.weight_lattice}, **common)
    heads = {
        "lattice": Regression(gaussian, "v"),
        "frac_coords": Tangent(Torus(GeometricVarianceExploding(config.sigma_min, config.sigma_max))),
        "atom_types": Logits(Absorbing(RectifiedFlow(), elements.CLASSES)),
    }
    weights = {"lattice": config.weight_lattice, "atom_types": config.weight_types}
    return AtomModel(JointDenoiser(network, heads), weights=weights, pieces=config.pieces, **common)


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
