"""Synthetic ionic crystals that every machine can make: AFLOW's prototypes, decorated.

A prototype of pymatgen's library (structures of real minerals) gets new elements on its sites: ions whose charges make
it neutral, cations less electronegative than anions. It is then scaled until the nearest cation and anion touch, by
Shannon's radii. Nothing is relaxed and no energy is that of quantum mechanics: these are crystals to learn, to test and
to measure on, not predictions. Their properties are exact: formulas give them.

Source: prototypes: Mehl et al. 2017 (AFLOW, doi 10.1016/j.commatsci.2017.01.017), as pymatgen ships them; radii:
Shannon 1976 (doi 10.1107/S0567739476001551), as pymatgen has them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64
from tqdm import tqdm

from diffusion_core import download
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import make_folder
from materials import elements
from materials.adapters import from_pymatgen
from materials.crystal import Crystal, Crystals
from materials.data import tables

log = logging.getLogger("workbench.materials")

RECIPE = 1
"""Counts changes of what is generated, so that no cache outlives them."""
LIKE_CHARGES_APART = 1.6
"""Å; a decoration with nearer ions of one sign is thrown away."""
MOST_SITES = 20
TRIES = 200


@dataclass(frozen=True)
class Ion:
    """An element with a charge.

    Args:
        radius: Å.
        electronegativity: Pauling's.
    """

    atom_type: int
    charge: int
    radius: float
    electronegativity: float


@dataclass(frozen=True, eq=False)
class Prototype:
    """A structure whose sites are waiting for ions.

    Args:
        name: AFLOW's.
        crystal: Niggli-reduced.
        species: (sites,) which of its species is on each site.
        space_group: number.
        distances: (species, species) the shortest between sites of two species, Å; of one's own, with its images.
    """

    name: str
    crystal: Crystal
    species: Int64[np.ndarray, " sites"]
    space_group: int
    distances: Float64[np.ndarray, "k k"]

    @property
    def counts(self) -> list[int]:
        """Sites of each species."""
        return np.bincount(self.species).tolist()


@lru_cache(maxsize=1)
def ions() -> dict[int, list[Ion]]:
    """Common ions by charge: oxidation states that pymatgen calls common and has a radius for."""
    from pymatgen.core import Element

    found: dict[int, list[Ion]] = {}
    for z in range(1, 84):
        element = Element.from_Z(z)
        if element.is_noble_gas or not math.isfinite(element.X) or z in (1, 43, 61):
            continue
        for charge in element.common_oxidation_states:
            radius = element.ionic_radii.get(charge)
            if charge and radius and radius > 0.1:
                found.setdefault(int(charge), []).append(Ion(z, int(charge), float(radius), float(element.X)))
    return found


@lru_cache(maxsize=1)
def prototypes() -> list[Prototype]:
    """AFLOW's prototypes of two to four species and at most `MOST_SITES` sites, as pymatgen ships them."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    found = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure
        if not structure.is_ordered or len(structure) > MOST_SITES or not 2 <= len(structure.composition) <= 4:
            continue
        reduced = structure.get_primitive_structure().get_reduced_structure("niggli")
        crystal = from_pymatgen(reduced)
        _, species = np.unique(crystal.atom_types, return_inverse=True)
        number = SpacegroupAnalyzer(reduced, symprec=0.01).get_space_group_number()
        name = str(entry["tags"]["aflow"])
        found.append(Prototype(name, crystal, species, number, _shortest(crystal, species)))
    return found


def _shortest(crystal: Crystal, species: Int64[np.ndarray, " sites"]) -> Float64[np.ndarray, "k k"]:
    images = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), -1).reshape(27, 3)
    d = crystal.frac_coords[:, None] - crystal.frac_coords[None]
    d = d - np.round(d)
    lengths = np.linalg.norm((d[:, :, None] + images) @ crystal.lattice, axis=-1)
    lengths[lengths < 1e-6] = np.inf
    shortest = lengths.min(-1)
    k = int(species.max()) + 1
    return np.array([[shortest[np.ix_(species == a, species == b)].min() for b in range(k)] for a in range(k)])


@cache
def charges(counts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Charges of the species that make a cell neutral, with ions of both signs."""
    known = sorted(ions())
    return [q for q in product(known, repeat=len(counts)) if sum(n * c for n, c in zip(counts, q, strict=True)) == 0]


def decorate(prototype: Prototype, rng: np.random.Generator) -> Crystal | None:
    """One decoration, or None if this draw is no crystal: ions that are too near, or of the wrong electronegativity."""
    neutral = charges(tuple(prototype.counts))
    if not neutral:
        return None
    chosen = neutral[rng.integers(len(neutral))]
    placed = [ions()[q][rng.integers(len(ions()[q]))] for q in chosen]
    if len({ion.atom_type for ion in placed}) < len(placed):
        return None
    cations = [ion for ion in placed if ion.charge > 0]
    anions = [ion for ion in placed if ion.charge < 0]
    if max(c.electronegativity for c in cations) >= min(a.electronegativity for a in anions):
        return None
    signs = np.sign([ion.charge for ion in placed])
    radii = np.array([ion.radius for ion in placed])
    opposite = signs[:, None] != signs[None]
    # every cation and anion are at least as far apart as they touch, and one pair does
    scale = float(((radii[:, None] + radii[None]) / prototype.distances)[opposite].max())
    if float((prototype.distances * scale)[~opposite].min()) < LIKE_CHARGES_APART:
        return None
    lattice = prototype.crystal.lattice * scale
    volume = abs(np.linalg.det(lattice))
    sites = prototype.species
    madelung = _ewald(prototype.name, chosen) / scale / len(sites)
    return Crystal(
        np.array([ion.atom_type for ion in placed])[sites],
        prototype.crystal.frac_coords,
        lattice,
        {
            "prototype": prototype.name,
            "space_group": prototype.space_group,
            "madelung_energy_per_atom": madelung,
            "packing_fraction": float((4.0 / 3.0 * math.pi * radii[sites] ** 3).sum() / volume),
        },
    )


@cache
def _ewald(name: str, chosen: tuple[int, ...]) -> float:
    """eV of the prototype's own cell with these charges; a cell that is twice as long has half of it."""
    from pymatgen.analysis.ewald import EwaldSummation

    from materials.adapters import to_pymatgen

    prototype = next(p for p in prototypes() if p.name == name)
    structure = to_pymatgen(prototype.crystal)
    structure.add_oxidation_state_by_site([chosen[s] for s in prototype.species])
    return float(EwaldSummation(structure, compute_forces=False).total_energy)


def generate(n: int, seed: int = 0) -> Iterator[Crystal]:
    """``n`` different crystals; the same for the same seed.

    Every prototype that can be neutral is drawn alike.

    Raises:
        WorkbenchError: there are not so many.
    """
    rng = np.random.default_rng(seed)
    able = [p for p in prototypes() if charges(tuple(p.counts))]
    seen: set[tuple[str, str]] = set()
    misses = 0
    while len(seen) < n:
        crystal = decorate(able[rng.integers(len(able))], rng)
        name = None if crystal is None else (str(crystal.properties["prototype"]), crystal.formula)
        if crystal is None or name is None or name in seen:
            misses += 1
            if misses > TRIES * (n + 100):
                raise WorkbenchError(f"data.n: got {n}; found {len(seen)} different crystals: ask for fewer.")
            continue
        seen.add(name)
        yield crystal.named(id=f"proto-{len(seen)}")


def load(n: int, seed: int) -> Crystals:
    """What `generate` makes, from the user's cache if it was made before."""
    said = f"synthetic: {n} decorated AFLOW prototypes, seed {seed}, recipe {RECIPE}"
    path = make_folder(download.cache("materials")) / f"prototypes-{n}-seed{seed}-recipe{RECIPE}.parquet"
    if path.exists():
        try:
            found = tables.read_parquet(path)
        except WorkbenchError as error:
            log.warning("%s; it is made anew", error)
        else:
            if len(found) == n:
                return _named(found, said)
    log.info("making %s, kept in %s", said, path)
    bar = tqdm(generate(n, seed), desc="crystals", total=n, disable=None, dynamic_ncols=True)
    made = Crystals.of(list(bar))
    tables.write_parquet(path, made)
    # as it will be read the next time
    return _named(tables.read_parquet(path), said)


def split(crystals: Crystals, which: Literal["train", "val", "test"]) -> Crystals:
    """A fixed twentieth each for "val" and "test", the rest for "train"; no formula is in two of them."""
    formulas = np.array([elements.formula(c.composition, reduced=True) for c in crystals])
    names, owner = np.unique(formulas, return_inverse=True)
    part = np.random.default_rng(0).random(len(names))[owner]
    rows = {"val": part < 0.05, "test": (part >= 0.05) & (part < 0.1), "train": part >= 0.1}[which]
    found = crystals.take(np.flatnonzero(rows))
    return _named(found, f"{crystals.provenance}; {which}, {len(found)} crystals")


def _named(crystals: Crystals, provenance: str) -> Crystals:
    return Crystals(
        crystals.atom_types,
        crystals.frac_coords,
        crystals.lattices,
        crystals.counts,
        crystals.properties,
        provenance,
    )
