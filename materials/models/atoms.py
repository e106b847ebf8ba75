"""Crystals as a lattice and a list of atoms: one process for each of lattice, coordinates and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffusion_core.configure import build
from diffusion_core.denoise import Denoiser
from diffusion_core.denoise.joint import joint_loss
from diffusion_core.denoise.restricted import Restricted
from diffusion_core.draws import Draws
from diffusion_core.experts.factors import Known
from diffusion_core.experts.product import start
from diffusion_core.noise import Noise, On
from diffusion_core.plan import Together
from diffusion_core.process.categorical import Categorical
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.process.torus import Torus
from diffusion_core.solvers import categorical, torus
from materials.config import MaterialsConfig
from materials.data.batches import exists
from materials.models.base import CrystalModel, Types


class AtomModel(CrystalModel):
    """``p(lattice, coordinates, atom types | number of atoms, properties)``.

    In training all atom types of a crystal are shown clean with the chance ``types_clean``, so one network predicts
    structures of a given composition and invents compositions.

    Args:
        types_clean: see above.
        pieces: by size, that a batch is worked on in.
        others: of `CrystalModel`.

    Source: one process per field: Jiao et al. 2023 (DiffCSP, arXiv 2309.04475); Zeni et al. 2025 (MatterGen, doi
    10.1038/s41586-025-08628-5); the chance of clean types is ours.
    """

    def __init__(self, *args: Any, types_clean: float = 0.5, pieces: int = 1, **others: Any) -> None:
        super().__init__(*args, **others)
        self.types_clean, self.pieces = types_clean, pieces

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
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
        whole = draws.uniform((len(counts), 1)).to(counts.device) < self.types_clean
        known = {"atom_types": whole.expand(mask.shape)}
        masks = {"frac_coords": mask, "atom_types": mask}
        cond = {"counts": counts, **self.told(batch["labels"], draws)}
        return joint_loss(self.denoiser, self.state(batch), cond, draws, weights=self.weights, masks=masks, known=known)

    def plan(self, config: MaterialsConfig, grid: Tensor | None = None) -> Together:
        times = build(config.grid, n=config.steps) if grid is None else grid
        process = self.denoiser.process
        assert isinstance(process, Joint)
        lattice, coords, types = (process.fields[name] for name in ("lattice", "frac_coords", "atom_types"))
        assert isinstance(lattice, Gaussian) and isinstance(coords, Torus) and isinstance(types, Categorical)
        # a type that is drawn at the start stays, so nothing may be known of it there
        from_mask = torch.where(times == times[0], 1.0, times) if grid is None else times
        moves = torus.flow(coords, times) if config.coords == "flow" else torus.ancestral(coords, times)
        return Together(
            {
                "lattice": build(config.sampler, lattice.schedule, times),
                "frac_coords": moves,
                "atom_types": categorical.ancestral(types, from_mask),
            }
        )

    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "lattice": self.scale.normalize(tensors["lattice"], tensors["counts"]),
            "frac_coords": tensors["frac_coords"],
            "atom_types": tensors["atom_types"],
        }

    def begin(self, denoiser: Denoiser, plan: Together, counts: Int64[Tensor, " n"], noise: Noise) -> dict[str, Tensor]:
        n, most, device = len(counts), int(counts.max()), counts.device
        like = {
            "lattice": torch.zeros(n, 6, device=device),
            "frac_coords": torch.zeros(n, most, 3, device=device),
            "atom_types": torch.zeros(n, most, dtype=torch.int64, device=device),
        }
        assert isinstance(denoiser.process, Joint)
        base = denoiser.process.noise(like, On(noise, device))
        first = {name: float(times[0]) for name, times in plan.times.items()}
        x = start(denoiser, base, first["lattice"])
        types = denoiser.process.fields["atom_types"]
        assert isinstance(types, Categorical)
        # combined estimates are of the noised product, which ends where each process ends
        x["atom_types"] = types.prior(base["atom_types"], first["atom_types"])
        return x

    def size(self, counts: Int64[Tensor, " n"], types: Types | None) -> dict[str, Tensor]:
        return {"counts": counts}

    def pinned(self, denoiser: Denoiser, types: Types) -> Denoiser:
        values = torch.zeros(len(types), max(map(len, types)), dtype=torch.int64)
        for i, of_crystal in enumerate(types):
            values[i, : len(of_crystal)] = torch.as_tensor(of_crystal) - 1
        values = values.to(self.scale.mean.device)
        mask = torch.ones_like(values, dtype=torch.bool)
        return denoiser * Known({"atom_types": mask}, {"atom_types": values}, mode="clean")

    def within(self, denoiser: Denoiser, allowed: Bool[Tensor, " classes"]) -> Denoiser:
        return Restricted(denoiser, {"atom_types": allowed})

    def kept(self, denoiser: Denoiser, x0: Mapping[str, Tensor], sites: Bool[Tensor, " sites"]) -> Denoiser:
        n, places = x0["atom_types"].shape
        mask = {
            "lattice": torch.ones(n, 6, dtype=torch.bool, device=sites.device),
            "frac_coords": sites[None, :, None].expand(n, places, 3),
            "atom_types": sites[None].expand(n, places),
        }
        return denoiser * Known(mask, dict(x0))

    def atoms(
        self, x: Mapping[str, Tensor], counts: Int64[Tensor, " n"], types: Types | None
    ) -> list[tuple[Tensor, Tensor]]:
        n = counts.tolist()
        return [(x["atom_types"][i, :k] + 1, x["frac_coords"][i, :k]) for i, k in enumerate(n)]
