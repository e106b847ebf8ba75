"""UniMat: crystals as a lattice and a periodic table of coordinates, both Gaussian fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffusion_core.configure import build
from diffusion_core.denoise import Denoiser
from diffusion_core.denoise.joint import joint_loss
from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.factors import Known
from diffusion_core.experts.product import start
from diffusion_core.noise import Noise, On
from diffusion_core.plan import Together
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from materials import unimat
from materials.config import MaterialsConfig
from materials.models.base import CrystalModel, Types
from materials.networks.unet3d import UniMatUNet


class TableModel(CrystalModel):
    """``p(lattice, table | composition or nothing, properties)``; see `materials.unimat`.

    In training the composition of a crystal, which says how many atoms there are, is shown with the chance
    ``types_clean``: then empty places are known to be empty, at training and at sampling, and only the places of atoms
    count in the loss. Without it every place counts the same, as in the paper, and how many atoms there are is what
    the model makes of it: the number that is asked for is not looked at.

    Args:
        types_clean: see above.
        others: of `CrystalModel`.

    Source: Yang et al. 2023 (UniMat, arXiv 2311.09235), sections 3.1 to 3.3.
    """

    def __init__(self, *args: Any, types_clean: float = 0.5, **others: Any) -> None:
        super().__init__(*args, **others)
        self.types_clean = types_clean

    @property
    def _network(self) -> UniMatUNet:
        found = self.denoiser.network
        assert isinstance(found, UniMatUNet)
        return found

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> Float[Tensor, " batch"]:
        counts = batch["counts"]
        composition = unimat.occupancy(self._slots(batch), self._network.layers)
        given = draws.uniform(counts.shape).to(counts.device) < self.types_clean
        cond = {"composition": composition, "given": given, "counts": counts, **self.told(batch["labels"], draws)}
        x0 = self.state(batch)
        counted = (composition > 0) | ~given[:, None, None, None, None]
        return joint_loss(
            self.denoiser, x0, cond, draws, weights=self.weights, masks={"table": counted.expand_as(x0["table"])}
        )

    def _slots(self, tensors: Mapping[str, Tensor]) -> Int64[Tensor, "batch n"]:
        types = tensors["atom_types"]
        order = torch.arange(types.shape[1], device=types.device).expand(types.shape).float()
        return unimat.slots(types, tensors["counts"], self._network.layers, order)

    def plan(self, config: MaterialsConfig, grid: Tensor | None = None) -> Together:
        times = build(config.grid, n=config.steps) if grid is None else grid
        process = self.denoiser.process
        assert isinstance(process, Joint)
        fields = {}
        for name, field in process.fields.items():
            assert isinstance(field, Gaussian)
            fields[name] = build(config.sampler, field.schedule, times)
        return Together(fields)

    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        network = self._network
        return {
            "lattice": self.scale.normalize(tensors["lattice"], tensors["counts"]),
            "table": unimat.encode(tensors["frac_coords"], self._slots(tensors), network.layers, network.coords),
        }

    def begin(self, denoiser: Denoiser, plan: Together, counts: Int64[Tensor, " n"], noise: Noise) -> dict[str, Tensor]:
        n, device, network = len(counts), counts.device, self._network
        places = (unimat.CHANNELS[network.coords], network.layers, unimat.ROWS, unimat.COLUMNS)
        like = {"lattice": torch.zeros(n, 6, device=device), "table": torch.zeros(n, *places, device=device)}
        return start(denoiser, denoiser.process.noise(like, On(noise, device)), float(plan.times["table"][0]))

    def size(self, counts: Int64[Tensor, " n"], types: Types | None) -> dict[str, Tensor]:
        given = torch.full(counts.shape, types is not None, device=counts.device)
        if types is not None:
            return {"composition": self._composition(types), "given": given, "counts": counts}
        empty = torch.zeros(len(counts), 1, self._network.layers, unimat.ROWS, unimat.COLUMNS, device=counts.device)
        return {"composition": empty, "given": given, "counts": counts}

    def _composition(self, types: Types) -> Float[Tensor, "n 1 layers 9 18"]:
        counts = torch.tensor([len(t) for t in types])
        numbers = torch.nn.utils.rnn.pad_sequence(
            [torch.as_tensor(t) for t in types], batch_first=True, padding_value=1
        )
        where = self._slots({"atom_types": numbers - 1, "counts": counts})
        return unimat.occupancy(where, self._network.layers).to(self.scale.mean.device)

    def pinned(self, denoiser: Denoiser, types: Types) -> Denoiser:
        return self._empty(denoiser, self._composition(types) == 0)

    def _empty(self, denoiser: Denoiser, places: Bool[Tensor, "n 1 layers 9 18"]) -> Denoiser:
        mask = places.expand(-1, unimat.CHANNELS[self._network.coords], -1, -1, -1)
        null = torch.full(mask.shape, unimat.NULL[self._network.coords], device=mask.device)
        return denoiser * Known({"table": mask}, {"table": null})

    def within(self, denoiser: Denoiser, allowed: Bool[Tensor, " classes"]) -> Denoiser:
        return self._empty(denoiser, ~unimat.places_of(allowed, self._network.layers).to(self.scale.mean.device)[None])

    def kept(self, denoiser: Denoiser, x0: Mapping[str, Tensor], sites: Bool[Tensor, " sites"]) -> Denoiser:
        raise WorkbenchError(
            "keep: got a model of UniMat's tables, whose atoms have no numbers to keep them by; expected one with "
            "network=periodic: train that, or leave keep out."
        )

    def atoms(
        self, x: Mapping[str, Tensor], counts: Int64[Tensor, " n"], types: Types | None
    ) -> list[tuple[Tensor, Tensor]]:
        coords = self._network.coords
        there = unimat.present(x["table"], coords) if types is None else self._composition(types).flatten(1) > 0
        # a table without any atom is one hydrogen, which nothing calls valid
        there[:, 0] |= ~there.any(1)
        return unimat.decode(x["table"], coords, there)
