"""One row for one crystal: what a manifest and a table of samples say of it."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

from materials import elements
from materials.crystal import Crystal
from materials.metrics.validity import closest, compositional, structural

SYMPREC = 0.1
"""Å; spglib's tolerance for generated structures."""
COLUMNS = ("formula", "atoms", "elements", "space_group", "symbol", "density", "volume_per_atom", "closest")
FLAGS = ("structure_valid", "composition_valid")


def space_group(crystal: Crystal, symprec: float = SYMPREC) -> tuple[int, str]:
    """Number and symbol; 0 and "" where spglib finds none, as in cells whose atoms overlap."""
    # cells without symmetry are answers here, not something to print about
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    import spglib

    cell: Any = (crystal.lattice, crystal.frac_coords, crystal.atom_types)
    with warnings.catch_warnings():
        # of how errors will be told in a later version: both ways are met
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            found = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return 0, ""
    return (0, "") if found is None else (int(found.number), str(found.international))


def space_group_number(crystal: Crystal) -> int:
    """Of `space_group`."""
    return space_group(crystal)[0]


def describe(crystal: Crystal) -> dict[str, Any]:
    """Formula (of the cell, reduced), atoms, elements, space group, density in g/cm³, volume in Å³ per atom, the
    smallest distance in Å, and validity."""
    number, symbol = space_group(crystal)
    nearest = closest(crystal)
    return {
        "formula": crystal.formula,
        "cell_formula": elements.formula(crystal.composition),
        "atoms": len(crystal),
        "elements": len(crystal.composition),
        "space_group": number,
        "symbol": symbol,
        "density": round(crystal.density, 4),
        "volume_per_atom": round(crystal.volume / len(crystal), 4),
        "closest": round(nearest, 4) if math.isfinite(nearest) else None,
        "structure_valid": structural(crystal),
        "composition_valid": compositional(crystal.composition),
    }
