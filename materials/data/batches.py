"""Crystals as padded tensors on the training device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from materials.crystal import Crystals
from materials.lattice import to_vector
from materials.properties import values


def exists(counts: Int64[Tensor, " n"], most: int) -> Bool[Tensor, "n most"]:
    """Which of ``most`` places each crystal's atoms fill."""
    return torch.arange(most, device=counts.device) < counts[:, None]


def padded(crystals: Crystals, most: int) -> dict[str, Tensor]:
    """``lattice`` (n, 6) of `to_vector`, ``frac_coords`` (n, most, 3), ``atom_types`` (n, most), ``counts`` (n,).

    Atom types are classes, atomic numbers less one; padding is 0 everywhere.

    Raises:
        WorkbenchError: a crystal has more than ``most`` atoms.
    """
    if len(crystals) and int(crystals.counts.max()) > most:
        raise WorkbenchError(
            f"crystals: got one of {int(crystals.counts.max())} atoms; expected at most {most}, the task's max_atoms: "
            "raise it, or leave larger crystals out."
        )
    counts = torch.as_tensor(crystals.counts)
    mask = exists(counts, most)
    types = torch.zeros(len(crystals), most, dtype=torch.int64)
    coords = torch.zeros(len(crystals), most, 3)
    types[mask] = torch.as_tensor(crystals.atom_types - 1)
    coords[mask] = torch.as_tensor(crystals.frac_coords, dtype=torch.float32)
    lattice = to_vector(torch.as_tensor(crystals.lattices)).float()
    return {"lattice": lattice, "frac_coords": coords, "atom_types": types, "counts": counts}


class Batches:
    """All crystals on the device, and batches of them; satisfies `diffusion_core.train.Dataset`.

    Args:
        crystals: what is learned from.
        most: places for atoms.
        labels: properties that a model is told.
        device: where the tensors live.

    Raises:
        WorkbenchError: there are no crystals, one is too large, or a property is unknown.
    """

    def __init__(
        self, crystals: Crystals, most: int, labels: Sequence[str] = (), device: torch.device | str = "cpu"
    ) -> None:
        if not len(crystals):
            raise WorkbenchError("crystals: got none to learn from; expected at least one: choose other data.")
        tensors = padded(crystals, most)
        columns = [values(crystals, name) for name in labels]
        told = np.stack(columns, 1) if columns else np.zeros((len(crystals), 0))
        tensors["labels"] = torch.as_tensor(told, dtype=torch.float32)
        self.tensors = {name: tensor.to(device) for name, tensor in tensors.items()}

    def __len__(self) -> int:
        return len(self.tensors["counts"])

    def batch(self, rows: Int64[Tensor, " batch"]) -> dict[str, Tensor]:
        """Tensors as `padded` gives them, and ``labels`` (batch, properties) in their own units, nan where unknown."""
        rows = rows.to(self.tensors["counts"].device)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}

    @property
    def label_scale(self) -> tuple[Float[Tensor, " properties"], Float[Tensor, " properties"]]:
        """Mean and standard deviation of each property, over the crystals that have it."""
        labels = self.tensors["labels"].double()
        known = torch.isfinite(labels)
        n = known.sum(0).clamp(min=1)
        mean = torch.where(known, labels, 0.0).sum(0) / n
        variance = torch.where(known, (labels - mean) ** 2, 0.0).sum(0) / n
        return mean.float(), variance.sqrt().clamp(min=1e-6).float()
