"""UniMat: a crystal as a periodic table whose cells hold coordinates.

Atom k of an element stands in layer k, in the element's row and column; a place without an atom holds the null
location. So a crystal is a small film of L frames of 9 by 18 pixels, and elements of one group are neighbours.

Source: Yang et al. 2023 (UniMat, arXiv 2311.09235), section 3.1. What the paper leaves open is answered here:

- Lanthanides and actinides have rows of their own, the eighth and the ninth, in columns 4 to 18.
- ``coords="raw"``: three channels, fractional coordinates in [0, 1), null -1, as in the paper; an atom is there if the
  mean of its channels is above -1/2. Coordinates are written in [-1/4, 3/4), so that 0 and 1/2, where most atoms of
  data sit, are not at the seam.
- ``coords="circle"``: six channels, ``cos, sin(2 pi f)``, null at the origin; an atom is there if the mean squared
  radius of its three points is above 1/4. There is no seam.
- The lattice is a field of its own (six numbers, see `lattice`), with one noise and one answer, and not tiled over the
  table, where its signal would be thousands of times that of one atom. The table's target is the noise, as in the
  paper; the lattice's is v, since six numbers that all atoms depend on must not be wrong at high noise.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from materials import elements
from materials.data.batches import exists

ROWS, COLUMNS = 9, 18
Coords = Literal["raw", "circle"]
CHANNELS: dict[Coords, int] = {"raw": 3, "circle": 6}
NULL: dict[Coords, float] = {"raw": -1.0, "circle": 0.0}
"""Of every channel of a place without an atom."""
_SHIFT = 0.25


def _places() -> Int64[np.ndarray, "z 2"]:
    from pymatgen.core import Element

    found = np.full((elements.LAST + 1, 2), -1, dtype=np.int64)
    for z in range(1, elements.LAST + 1):
        if 57 <= z <= 71:
            found[z] = 7, z - 57 + 3
        elif 89 <= z <= 103:
            found[z] = 8, z - 89 + 3
        else:
            element = Element.from_Z(z)
            found[z] = element.row - 1, element.group - 1
    return found


PLACES = _places()
"""(119, 2) row and column of each atomic number; -1 for 0."""
_FLAT = torch.as_tensor(PLACES[:, 0] * COLUMNS + PLACES[:, 1])
_BACK = torch.zeros(ROWS * COLUMNS, dtype=torch.int64)
_BACK[_FLAT[1:]] = torch.arange(1, elements.LAST + 1)


def slots(
    atom_types: Int64[Tensor, "batch n"], counts: Int64[Tensor, " batch"], layers: int, order: Float[Tensor, "batch n"]
) -> Int64[Tensor, "batch n"]:
    """The flat index ``layer 9 18 + row 18 + column`` of each atom; of padding, one past the last.

    Args:
        atom_types: classes, atomic numbers less one.
        order: any numbers; atoms of one element are stacked by them, so that random ones shuffle the layers.

    Raises:
        WorkbenchError: an element has more atoms than there are layers.
    """
    mask = exists(counts, atom_types.shape[1])
    same = (atom_types[:, :, None] == atom_types[:, None]) & mask[:, :, None] & mask[:, None]
    before = same & (order[:, None] < order[:, :, None])
    layer = before.sum(2)
    if bool((layer[mask] >= layers).any()):
        raise WorkbenchError(
            f"UniMat: got {int(layer[mask].max()) + 1} atoms of one element; expected at most {layers}, the table's "
            "layers: raise network.layers."
        )
    flat = layer * (ROWS * COLUMNS) + _FLAT.to(atom_types.device)[atom_types + 1]
    return torch.where(mask, flat, layers * ROWS * COLUMNS)


def encode(
    frac_coords: Float[Tensor, "batch n 3"], where: Int64[Tensor, "batch n"], layers: int, coords: Coords
) -> Float[Tensor, "batch channels layers 9 18"]:
    """The table of atoms at the flat indices ``where``."""
    if coords == "raw":
        values = torch.remainder(frac_coords + _SHIFT, 1.0) - _SHIFT
    else:
        angles = 2.0 * math.pi * frac_coords
        values = torch.cat([angles.cos(), angles.sin()], -1)
    size = layers * ROWS * COLUMNS
    table = values.new_full((len(values), values.shape[2], size + 1), NULL[coords])
    table.scatter_(2, where[:, None].expand(-1, values.shape[2], -1), values.mT)
    return table[..., :size].unflatten(2, (layers, ROWS, COLUMNS))


def occupancy(where: Int64[Tensor, "batch n"], layers: int) -> Float[Tensor, "batch 1 layers 9 18"]:
    """1 where an atom is, 0 elsewhere: the composition, as a condition."""
    size = layers * ROWS * COLUMNS
    table = torch.zeros(len(where), size + 1, device=where.device)
    table.scatter_(1, where, 1.0)
    return table[:, :size].unflatten(1, (1, layers, ROWS, COLUMNS))


def places_of(allowed: Bool[Tensor, " classes"], layers: int) -> Bool[Tensor, "1 layers 9 18"]:
    """The places of the elements ``allowed``, by class, the atomic number less one."""
    numbers = torch.where(_BACK > 0, _BACK, 1)
    there = (_BACK > 0) & torch.nn.functional.pad(allowed.cpu(), (0, elements.LAST))[numbers - 1]
    return there.reshape(1, 1, ROWS, COLUMNS).expand(1, layers, ROWS, COLUMNS)


def present(table: Float[Tensor, "batch channels layers 9 18"], coords: Coords) -> Bool[Tensor, "batch places"]:
    """Which places hold an atom; places without an element never do."""
    flat = table.flatten(2)
    there = flat.mean(1) > -0.5 if coords == "raw" else (flat**2).mean(1) * 2.0 > 0.25
    real = (_BACK > 0).to(table.device).repeat(table.shape[2])
    return there & real


def decode(
    table: Float[Tensor, "batch channels layers 9 18"], coords: Coords, occupied: Bool[Tensor, "batch places"]
) -> list[tuple[Int64[Tensor, " n"], Float[Tensor, "n 3"]]]:
    """Atomic numbers and fractional coordinates of each crystal's atoms.

    Args:
        occupied: `present`, or the composition that was asked for.
    """
    flat = table.flatten(2)
    numbers = _BACK.to(table.device).repeat(table.shape[2])
    if coords == "raw":
        places = torch.remainder(flat, 1.0)
    else:
        cosine, sine = flat.chunk(2, 1)
        places = torch.remainder(torch.atan2(sine, cosine) / (2.0 * math.pi), 1.0)
    return [(numbers[mask], places[i].mT[mask]) for i, mask in enumerate(occupied)]
