"""CIF files of one structure written out in P1, read fast; anything else goes to pymatgen.

The data sets of the field are CSV files of such CIFs. A P1 file is a cell and a list of sites, which a few regular
expressions read in 0.1 to 1 ms where a full parser takes 6 to 50. A file is handed to pymatgen unless it states P1 or
no symmetry at all, and every occupancy is 1.
"""

from __future__ import annotations

import re
import shlex
import warnings

import numpy as np

from diffusion_core.errors import WorkbenchError
from materials import elements
from materials.crystal import Crystal
from materials.lattice import matrix, parameters

_CELL = tuple(f"_cell_length_{x}" for x in "abc") + tuple(f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma"))
_COORDS = tuple(f"_atom_site_fract_{x}" for x in "xyz")
_IDENTITY = re.compile(r"^\s*(?:\d+\s+)?['\"]?\s*\+?x\s*,\s*\+?y\s*,\s*\+?z\s*['\"]?\s*$", re.IGNORECASE)


def parse(text: str) -> Crystal:
    """The structure of a CIF.

    Raises:
        WorkbenchError: it is damaged, has sites that are occupied in part, or unknown elements.
    """
    found = _fast(text)
    return _slow(text) if found is None else found


def fast(text: str) -> Crystal | None:
    """`parse` where the fast reader is able to, None where it is not."""
    return _fast(text)


def _number(word: str) -> float:
    # 4.05(3): the digits in brackets are the uncertainty
    return float(word.partition("(")[0])


def _fast(text: str) -> Crystal | None:
    lines = [line.strip() for line in text.splitlines()]
    if sum(line.lower().startswith("data_") for line in lines) != 1:
        return None
    values: dict[str, str] = {}
    loops: list[tuple[list[str], list[str]]] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith(";"):
            return None
        if line.lower() == "loop_":
            i += 1
            header, body = [], []
            while i < len(lines) and lines[i].startswith("_"):
                header.append(lines[i].split()[0].lower())
                i += 1
            while i < len(lines) and lines[i] and not lines[i].startswith(("_", "#", "loop_", "data_", ";")):
                body.append(lines[i])
                i += 1
            loops.append((header, body))
            continue
        if line.startswith("_"):
            name, _, value = line.partition(" ")
            values[name.lower()] = value.strip()
        i += 1
    if any(name not in values for name in _CELL):
        return None
    group = values.get("_symmetry_int_tables_number", values.get("_space_group_it_number", "1"))
    if group.strip("'\" ") != "1":
        return None
    sites = None
    for header, body in loops:
        if any("symop" in name or "symmetry_equiv" in name for name in header):
            column = next(k for k, name in enumerate(header) if name.endswith(("xyz", "operation_xyz")))
            if len(body) != 1 or not _IDENTITY.match(body[0] if len(header) <= 2 else body[0].split()[column]):
                return None
        if all(name in header for name in _COORDS):
            sites = header, body
    if sites is None:
        return None
    header, body = sites
    symbol = next((k for n in ("_atom_site_type_symbol", "_atom_site_label") for k in _index(header, n)), None)
    columns = [header.index(name) for name in _COORDS]
    occupancy = next(iter(_index(header, "_atom_site_occupancy")), None)
    if symbol is None:
        return None
    types, coords = [], []
    try:
        for line in body:
            words = line.split() if "'" not in line and '"' not in line else shlex.split(line)
            if len(words) != len(header):
                return None
            if occupancy is not None and abs(_number(words[occupancy]) - 1.0) > 1e-6:
                raise WorkbenchError(_partial(words[symbol], words[occupancy]))
            name = words[symbol]
            if header[symbol].endswith("label"):
                name = re.match(r"[A-Za-z]+", name).group(0)  # type: ignore[union-attr]
            types.append(elements.number(name))
            coords.append([_number(words[k]) for k in columns])
        cell = np.array([_number(values[name]) for name in _CELL])
    except (ValueError, AttributeError):
        return None
    if not types:
        return None
    return Crystal(np.array(types), np.array(coords), matrix(cell))


def _index(header: list[str], name: str) -> list[int]:
    return [header.index(name)] if name in header else []


def _partial(site: str, occupancy: str) -> str:
    return (
        f"CIF: got the site {site} with an occupancy of {occupancy}; expected 1 for every site: order the structure "
        "first (pymatgen's OrderDisorderedStructureTransformation), or leave it out."
    )


def _slow(text: str) -> Crystal:
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            structures = CifParser.from_str(text).parse_structures(primitive=False, symmetrized=False)
        except Exception as error:  # its parser raises whatever the text makes it stumble over
            raise WorkbenchError(
                f"CIF: cannot be read ({' '.join(str(error).split())[:160] or type(error).__name__}); expected a cell "
                "and the fractional coordinates of known elements: correct the file."
            ) from None
    structure = structures[0]
    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        raise WorkbenchError(_partial(site.species_string, f"{site.species.num_atoms:g}"))
    return Crystal(
        np.array([site.specie.Z for site in structure]), structure.frac_coords, np.asarray(structure.lattice.matrix)
    )


def render(crystal: Crystal, name: str = "") -> str:
    """A CIF in P1, which every program reads: no symmetry is claimed, six decimals of coordinates."""
    a, b, c, alpha, beta, gamma = parameters(crystal.lattice)
    order = np.argsort(crystal.atom_types, kind="stable")
    seen: dict[int, int] = {}
    lines = [
        f"data_{name or crystal.formula}",
        "_symmetry_space_group_name_H-M   'P 1'",
        "_symmetry_Int_Tables_number   1",
        *(f"_cell_length_{x}   {v:.8f}" for x, v in zip("abc", (a, b, c), strict=True)),
        *(f"_cell_angle_{x}   {v:.8f}" for x, v in zip(("alpha", "beta", "gamma"), (alpha, beta, gamma), strict=True)),
        f"_chemical_formula_sum   '{_formula_sum(crystal)}'",
        f"_cell_volume   {crystal.volume:.8f}",
        "loop_",
        " _symmetry_equiv_pos_site_id",
        " _symmetry_equiv_pos_as_xyz",
        "  1  'x, y, z'",
        "loop_",
        " _atom_site_type_symbol",
        " _atom_site_label",
        " _atom_site_symmetry_multiplicity",
        *(f" {name}" for name in _COORDS),
        " _atom_site_occupancy",
    ]
    for k in order.tolist():
        z = int(crystal.atom_types[k])
        seen[z] = seen.get(z, 0) + 1
        # 0.99999999 would be printed as 1
        x, y, w = (v % 1.0 for v in np.round(crystal.frac_coords[k], 8))
        symbol = elements.SYMBOLS[z]
        lines.append(f"  {symbol}  {symbol}{seen[z]}  1  {x:.8f}  {y:.8f}  {w:.8f}  1")
    return "\n".join(lines) + "\n"


def _formula_sum(crystal: Crystal) -> str:
    return " ".join(f"{elements.SYMBOLS[z]}{n}" for z, n in crystal.composition.items())
