"""What crystals are drawn from: models, each asked for what it was trained to be told, energies and hard limits.

    p(x) prod_k (p_k(x | y_k) / p_k(x))^guidance exp(-strength sum_j cost_j(x)) 1[only allowed elements]

The p_k are networks that were trained apart, each on its own property, and p is the first of them without one. That
needs the same process and the same scale of lattices, which the same task and data give.

Source: product of experts: Hinton 2002 (doi 10.1162/089976602760128018); as a sum of scores: Liu et al. 2022 (arXiv
2206.01714), Du et al. 2023 (arXiv 2302.11552); guidance: Ho & Salimans 2022 (arXiv 2207.12598).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts.factors import Energy
from materials import elements
from materials.data.batches import exists
from materials.generate import Factor
from materials.models import AtomModel, CrystalModel
from materials.models.base import Types

Range = tuple[float, float]
MARGIN = 0.02
"""Share of a range's limits by which its energy begins inside of them, so that samples end within."""
ON_TYPES = 20.0
"""How much an energy weighs on the logits of atom types."""


def product(
    models: Sequence[CrystalModel],
    targets: Mapping[str, Float64[np.ndarray, " n"]],
    guidance: float = 1.0,
    between: Mapping[str, Range] | None = None,
    strength: float = 1.0,
    allowed: Bool[Tensor, " classes"] | None = None,
    types: Types | None = None,
) -> Factor:
    """What `generate.draw` draws from.

    Args:
        models: the first is what is drawn from without any wish.
        targets: property -> a value for each crystal, in its own units; the first model that knows it is told.
        guidance: exponent of each model's quotient; 1 is what it was trained for.
        between: density in g/cm³ or volume_per_atom in Å³ -> the range it is to be in, by an energy.
        strength: of these energies; 1 moves each estimate of the lattice all the way to the range.
        allowed: by class, elements that may occur.
        types: of each crystal, all its atoms.

    Raises:
        WorkbenchError: no model was trained to be told a property, or the models do not fit together.
    """
    between = between or {}
    first = models[0]
    for other in models[1:]:
        same = torch.allclose(other.scale.mean, first.scale.mean) and torch.allclose(other.scale.std, first.scale.std)
        if other.denoiser.process != first.denoiser.process or not same:
            raise WorkbenchError(
                "experts: got models whose noise or whose scale of lattices differ; expected models of the same task, "
                "data and schedule: train them alike."
            )
    owner = {}
    for name in targets:
        able = [model for model in models if name in model.labels]
        if not able:
            known = sorted({label for model in models for label in model.labels})
            raise WorkbenchError(
                f"property: got {name}; expected some of {', '.join(known) or 'none'}, which these models were trained "
                f"with: train one with labels=[{name}]."
            )
        owner[name] = able[0]
    tilts = [_energy(first, name, limits, strength) for name, limits in between.items()]

    def expert(rows: Int64[np.ndarray, " rows"], counts: Int64[Tensor, " rows"]) -> Denoiser:
        own = None if types is None else [types[i] for i in rows]
        free = {id(model): model.at(counts, types=own) for model in models}
        found: Denoiser = free[id(first)]
        for model in models:
            told = {name: torch.as_tensor(targets[name][rows]) for name in targets if owner[name] is model}
            if told:
                # without the parentheses of a quotient, so that equal factors meet and cancel
                found = found * model.at(counts, told, own) ** guidance / free[id(model)] ** guidance
        for tilt in tilts:
            found = found * tilt(counts)
        return found if allowed is None else first.within(found, allowed)

    return expert


def _energy(model: CrystalModel, name: str, limits: Range, strength: float) -> Callable[[Int64[Tensor, " n"]], Energy]:
    """The energy of being outside of ``limits``, half the squared distance in the logarithm, once for each field.

    For the lattice it is divided by the squared gradient of the logarithm: a gradient step is Newton's, which ends at
    the limit and cannot overshoot; for atom types it is multiplied with `ON_TYPES`.
    """
    if not isinstance(model, AtomModel) or name not in ("density", "volume_per_atom"):
        raise WorkbenchError(
            f"between: got {name} with a {type(model).__name__}; expected density or volume_per_atom, with "
            "network=periodic, or a property that a model was trained with."
        )
    if not 0.0 < limits[0] < limits[1]:
        raise WorkbenchError(f"between.{name}: got {limits}; expected two numbers above 0, the smaller first.")
    low, high = math.log(limits[0] * (1.0 + MARGIN)), math.log(limits[1] * (1.0 - MARGIN))
    if low > high:
        low = high = 0.5 * (low + high)
    masses = torch.as_tensor(elements.MASSES[1 : elements.CLASSES + 1] * elements.U_PER_A3)

    def of(counts: Int64[Tensor, " n"]) -> Energy:
        squares = float((model.scale.std[:3].double() ** 2).sum())

        def mass(types: Tensor) -> Float[Tensor, " n"]:
            there = exists(counts, types.shape[1])
            return ((types * masses.to(counts.device)).sum(-1) * there).sum(1).log()

        def outside(value: Tensor) -> Float[Tensor, " n"]:
            return torch.relu(low - value) + torch.relu(value - high)

        def cost(x0: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
            # half the logarithm of L L^T has the logarithm of the volume as its trace
            volume = model.scale.unnormalize(x0["lattice"].double(), counts)[:, :3].sum(1)
            if name == "volume_per_atom":
                return 0.5 * strength * outside(volume - counts.log()) ** 2 / squares
            types = mass(x0["atom_types"])
            of_lattice = outside(types.detach() - volume) ** 2 / squares
            return 0.5 * strength * (of_lattice + ON_TYPES * outside(types - volume.detach()) ** 2)

        return Energy(cost, through="estimate")

    return of
