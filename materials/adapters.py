"""Crystals of pymatgen and ASE, there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_core.errors import WorkbenchError
from materials import elements
from materials.crystal import Crystal

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


def to_pymatgen(crystal: Crystal) -> Structure:
    """A pymatgen structure, sites in the same order."""
    from pymatgen.core import Lattice, Structure

    symbols = [elements.SYMBOLS[z] for z in crystal.atom_types]
    return Structure(Lattice(crystal.lattice), symbols, crystal.frac_coords)


def from_pymatgen(structure: Structure, **properties: Any) -> Crystal:
    """The crystal of a pymatgen structure; oxidation states and site properties are dropped.

    Raises:
        WorkbenchError: a site is occupied in part.
    """
    for site in structure:
        if not site.is_ordered:
            raise WorkbenchError(
                f"structure {structure.composition.reduced_formula}: got the site {site.species_string}, occupied in "
                "part; expected one element on every site: order it first, or leave it out."
            )
    types = np.array([site.specie.Z for site in structure], dtype=np.int64)
    return Crystal(types, structure.frac_coords, np.array(structure.lattice.matrix), properties)


def to_ase(crystal: Crystal) -> Atoms:
    """ASE's atoms, periodic in all directions; properties that are numbers or words go to ``info``."""
    from ase import Atoms

    atoms = Atoms(numbers=crystal.atom_types, scaled_positions=crystal.frac_coords, cell=crystal.lattice, pbc=True)
    atoms.info.update({name: v for name, v in crystal.properties.items() if isinstance(v, int | float | str)})
    return atoms


def from_ase(atoms: Atoms, **properties: Any) -> Crystal:
    """The crystal of ASE's atoms; what ``info`` has of numbers and words becomes its properties.

    Raises:
        WorkbenchError: the atoms are not periodic in all three directions.
    """
    if not all(atoms.pbc):
        raise WorkbenchError(
            f"atoms {atoms.get_chemical_formula()}: got pbc={atoms.pbc.tolist()}; expected a crystal, periodic in all "
            "three directions: set atoms.pbc = True and a cell."
        )
    info = {name: v for name, v in atoms.info.items() if isinstance(v, int | float | str)}
    return Crystal(
        np.array(atoms.numbers), atoms.get_scaled_positions(wrap=False), np.array(atoms.cell), {**info, **properties}
    )
