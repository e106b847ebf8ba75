"""Properties of crystals: those that a formula gives, and those that come with the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from diffusion_core.errors import WorkbenchError
from materials import elements
from materials.crystal import Crystals


def _volumes(crystals: Crystals) -> Float64[np.ndarray, " n"]:
    return np.abs(np.linalg.det(crystals.lattices))


def _sums(crystals: Crystals, of_atom: Float64[np.ndarray, " z"]) -> Float64[np.ndarray, " n"]:
    """The sum over each crystal's atoms."""
    totals = np.concatenate([[0.0], np.cumsum(of_atom[crystals.atom_types])])
    ends = np.cumsum(crystals.counts)
    return totals[ends] - totals[ends - crystals.counts]


def density(crystals: Crystals) -> Float64[np.ndarray, " n"]:
    """g/cm³."""
    return _sums(crystals, elements.MASSES) / _volumes(crystals) * elements.U_PER_A3


def volume_per_atom(crystals: Crystals) -> Float64[np.ndarray, " n"]:
    """Å³."""
    return _volumes(crystals) / crystals.counts


def n_elements(crystals: Crystals) -> Float64[np.ndarray, " n"]:
    """How many different elements."""
    ends = np.cumsum(crystals.counts)
    starts = ends - crystals.counts
    return np.array([len(np.unique(crystals.atom_types[a:b])) for a, b in zip(starts, ends, strict=True)], dtype=float)


def electronegativity_difference(crystals: Crystals) -> Float64[np.ndarray, " n"]:
    """The largest less the smallest Pauling electronegativity; nan where an element has none."""
    table = np.array([np.nan] + [elements.electronegativity(z) for z in range(1, elements.LAST + 1)])
    x = np.where(np.isfinite(table), table, np.nan)[crystals.atom_types]
    ends = np.cumsum(crystals.counts)
    return np.array([np.ptp(x[a:b]) for a, b in zip(ends - crystals.counts, ends, strict=True)])


CLOSED_FORM: dict[str, Callable[[Crystals], Float64[np.ndarray, " n"]]] = {
    "density": density,
    "volume_per_atom": volume_per_atom,
    "n_elements": n_elements,
    "electronegativity_difference": electronegativity_difference,
}
"""Name -> what a formula makes of crystals; units stand in the functions."""


def values(crystals: Crystals, name: str) -> Float64[np.ndarray, " n"]:
    """A property of every crystal; nan where it is not known.

    Raises:
        WorkbenchError: neither a formula nor the data has it.
    """
    if name in CLOSED_FORM:
        return CLOSED_FORM[name](crystals)
    if name in crystals.properties and crystals.properties[name].dtype.kind in "fiub":
        return crystals.properties[name].astype(np.float64)
    numeric = sorted(n for n, column in crystals.properties.items() if column.dtype.kind in "fiub")
    raise WorkbenchError(
        f"property: got {name!r}; expected one of {', '.join(CLOSED_FORM)}, or of this data's own: "
        f"{', '.join(numeric) or 'none'}."
    )
