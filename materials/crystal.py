"""One crystal, and many of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from diffusion_core.errors import WorkbenchError
from materials import elements
from materials.lattice import parameters

SMALLEST_VOLUME = 0.1
"""Å³; below it a cell is none. Source: Xie et al. 2022 (CDVAE, arXiv 2110.06197), their code."""


@dataclass(frozen=True, eq=False)
class Crystal:
    """A periodic structure, every site of it written out (P1).

    ``cart_coords = frac_coords @ lattice``.

    Args:
        atom_types: (sites,) atomic numbers.
        frac_coords: (sites, 3) in [0, 1); others are wrapped.
        lattice: (3, 3) Å, rows a, b, c.
        properties: numbers and words that belong to it; "id" is its name.

    Raises:
        WorkbenchError: shapes that do not fit, no site, an unknown element, a number that is not finite, or a cell
            without volume.
    """

    atom_types: Int64[np.ndarray, " sites"]
    frac_coords: Float64[np.ndarray, "sites 3"]
    lattice: Float64[np.ndarray, "3 3"]
    properties: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        types = np.asarray(self.atom_types, dtype=np.int64).reshape(-1)
        coords = np.asarray(self.frac_coords, dtype=np.float64)
        lattice = np.asarray(self.lattice, dtype=np.float64)
        if len(types) == 0 or coords.shape != (len(types), 3) or lattice.shape != (3, 3):
            raise WorkbenchError(
                f"crystal: got {len(types)} atoms, coordinates of shape {coords.shape}, a lattice of {lattice.shape}; "
                "expected at least one atom, (atoms, 3) and (3, 3)."
            )
        if types.min() < 1 or types.max() > elements.LAST:
            raise WorkbenchError(
                f"crystal: got atomic numbers from {types.min()} to {types.max()}; expected 1 to {elements.LAST}: name "
                "known elements."
            )
        if not (np.isfinite(coords).all() and np.isfinite(lattice).all()):
            raise WorkbenchError("crystal: got a coordinate or a lattice that is not finite; expected numbers.")
        if abs(np.linalg.det(lattice)) < SMALLEST_VOLUME:
            raise WorkbenchError(
                f"crystal: got a cell of {abs(np.linalg.det(lattice)):.3g} Å³; expected at least {SMALLEST_VOLUME}: "
                "its vectors lie in a plane or are too short."
            )
        wrapped = np.remainder(coords, 1.0)
        object.__setattr__(self, "atom_types", types)
        # a remainder of -1e-20 rounds to 1
        object.__setattr__(self, "frac_coords", np.where(wrapped >= 1.0, 0.0, wrapped))
        object.__setattr__(self, "lattice", lattice)

    def __len__(self) -> int:
        return len(self.atom_types)

    @property
    def name(self) -> str:
        """Its "id", or its formula."""
        return str(self.properties.get("id") or self.formula)

    @property
    def formula(self) -> str:
        """Reduced, the least electronegative element first: "SrTiO3"."""
        return elements.formula(self.composition, reduced=True)

    @property
    def composition(self) -> dict[int, int]:
        """How many atoms of each atomic number are in the cell."""
        return elements.counts(self.atom_types)

    @property
    def volume(self) -> float:
        """Å³."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def mass(self) -> float:
        """Of the cell's atoms, u."""
        return float(elements.MASSES[self.atom_types].sum())

    @property
    def density(self) -> float:
        """g/cm³."""
        return self.mass / self.volume * elements.U_PER_A3

    @property
    def cell(self) -> Float64[np.ndarray, "6"]:
        """a, b, c in Å and alpha, beta, gamma in degrees."""
        return parameters(self.lattice)

    @property
    def cart_coords(self) -> Float64[np.ndarray, "sites 3"]:
        """Å."""
        return self.frac_coords @ self.lattice

    def distances(self) -> Float64[np.ndarray, "sites sites"]:
        """Å between every two sites by the nearest of 27 images; a site's own diagonal is 0.

        Exact for a reduced cell. For a very skew one the nearest image may be further than the neighbouring cells.
        """
        d = self.frac_coords[:, None] - self.frac_coords[None]
        d = d - np.round(d)
        images = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), -1).reshape(27, 3)
        return np.sqrt((((d[:, :, None] + images) @ self.lattice) ** 2).sum(-1).min(-1))

    def named(self, **properties: Any) -> Crystal:
        """The same with more properties."""
        return replace(self, properties={**self.properties, **properties})


@dataclass(frozen=True, eq=False)
class Crystals(Sequence[Crystal]):
    """Many crystals in flat arrays, which load and travel fast.

    Args:
        atom_types: (sites,) of all, one after the other.
        frac_coords: (sites, 3).
        lattices: (n, 3, 3) Å.
        counts: (n,) sites of each.
        properties: (n,) each; numbers or words; a missing number is nan.
        provenance: where they come from.
    """

    atom_types: Int64[np.ndarray, " sites"]
    frac_coords: Float64[np.ndarray, "sites 3"]
    lattices: Float64[np.ndarray, "n 3 3"]
    counts: Int64[np.ndarray, " n"]
    properties: Mapping[str, np.ndarray] = field(default_factory=dict)
    provenance: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", np.cumsum(self.counts))

    @classmethod
    def of(cls, crystals: Sequence[Crystal], provenance: str = "") -> Crystals:
        """Flat arrays of ``crystals``; a property that one of them lacks is nan or empty there."""
        names = dict.fromkeys(name for crystal in crystals for name in crystal.properties)
        columns = {}
        for name in names:
            values = [crystal.properties.get(name) for crystal in crystals]
            words = any(isinstance(value, str) for value in values)
            missing = "" if words else np.nan
            columns[name] = np.array([missing if value is None else value for value in values])
        return cls(
            np.concatenate([c.atom_types for c in crystals]) if crystals else np.zeros(0, np.int64),
            np.concatenate([c.frac_coords for c in crystals]) if crystals else np.zeros((0, 3)),
            np.stack([c.lattice for c in crystals]) if crystals else np.zeros((0, 3, 3)),
            np.array([len(c) for c in crystals], dtype=np.int64),
            columns,
            provenance,
        )

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice | np.ndarray | list):
            return self.take(np.arange(len(self))[i])
        k = range(len(self))[int(i)]
        end = int(self._ends[k])  # type: ignore[attr-defined]
        sites = slice(end - int(self.counts[k]), end)
        own = {name: values[k].item() for name, values in self.properties.items()}
        return Crystal(self.atom_types[sites], self.frac_coords[sites], self.lattices[k], own)

    def __iter__(self) -> Iterator[Crystal]:
        return (self[i] for i in range(len(self)))

    def take(self, rows: Int64[np.ndarray, " m"]) -> Crystals:
        """These rows, in this order."""
        rows = np.asarray(rows)
        ends = self._ends  # type: ignore[attr-defined]
        sites = (
            np.concatenate([np.arange(ends[k] - self.counts[k], ends[k]) for k in rows])
            if len(rows)
            else np.zeros(0, np.int64)
        )
        return replace(
            self,
            atom_types=self.atom_types[sites],
            frac_coords=self.frac_coords[sites],
            lattices=self.lattices[rows],
            counts=self.counts[rows],
            properties={name: values[rows] for name, values in self.properties.items()},
        )

    @property
    def sound(self) -> Bool[np.ndarray, " n"]:
        """Which of them are crystals at all: numbers that are finite, a cell with a volume."""
        finite = np.isfinite(self.lattices).all((1, 2))
        volumes = np.abs(np.linalg.det(np.where(finite[:, None, None], self.lattices, 0.0)))
        bad = ~np.isfinite(self.frac_coords).all(1)
        owners = np.repeat(np.arange(len(self)), self.counts)
        lost = np.bincount(owners, weights=bad, minlength=len(self)) > 0
        return finite & (volumes >= SMALLEST_VOLUME) & ~lost & (self.counts > 0)

    def joined(self, *others: Crystals) -> Crystals:
        """These and then the others, with the properties that all have."""
        parts = [self, *others]
        shared = [name for name in self.properties if all(name in part.properties for part in others)]
        return Crystals(
            np.concatenate([part.atom_types for part in parts]),
            np.concatenate([part.frac_coords for part in parts]),
            np.concatenate([part.lattices for part in parts]),
            np.concatenate([part.counts for part in parts]),
            {name: np.concatenate([part.properties[name] for part in parts]) for name in shared},
            " + ".join(dict.fromkeys(part.provenance for part in parts if part.provenance)),
        )
