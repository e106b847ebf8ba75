"""Is it new, and is it different from the others?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from materials.adapters import to_pymatgen
from materials.crystal import Crystal
from materials.metrics.each import each, key


def same(pair: tuple[Crystal, Crystal]) -> bool:
    """Whether pymatgen's matcher, with its default tolerances, takes two crystals for one.

    Source: Zeni et al. 2025 (MatterGen, doi 10.1038/s41586-025-08628-5): ltol 0.2, stol 0.3, angle_tol 5.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    try:
        return bool(StructureMatcher().fit(to_pymatgen(pair[0]), to_pymatgen(pair[1])))
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        return False


def unique(crystals: Sequence[Crystal], workers: int = 1, progress: bool = True) -> list[bool]:
    """Whether each is unlike all before it. Only crystals of one reduced formula are compared."""
    of_formula: dict[str, list[int]] = {}
    for i, crystal in enumerate(crystals):
        of_formula.setdefault(crystal.formula, []).append(i)
    pairs = [(i, j) for rows in of_formula.values() for b, j in enumerate(rows) for i in rows[:b]]
    alike = _same([(crystals[i], crystals[j]) for i, j in pairs], workers, progress)
    first = [True] * len(crystals)
    for (i, j), found in zip(pairs, alike, strict=True):
        # the earlier one of a pair that counts: a copy of a copy is a copy of the first
        if found and first[i]:
            first[j] = False
    return first


def nearest_known(
    crystals: Sequence[Crystal], known: Sequence[Crystal], workers: int = 1, progress: bool = True
) -> list[str | None]:
    """The name of the first known crystal that each one is; None: it is new to them."""
    of_formula: dict[str, list[Crystal]] = {}
    for crystal in known:
        of_formula.setdefault(crystal.formula, []).append(crystal)
    pairs = [(i, other) for i, crystal in enumerate(crystals) for other in of_formula.get(crystal.formula, [])]
    alike = _same([(crystals[i], other) for i, other in pairs], workers, progress)
    found: list[str | None] = [None] * len(crystals)
    for (i, other), yes in zip(pairs, alike, strict=True):
        if yes and found[i] is None:
            found[i] = other.name
    return found


def _same(pairs: Sequence[tuple[Crystal, Crystal]], workers: int, progress: bool) -> list[bool]:
    names = [key(a) + key(b) for a, b in pairs]
    return each(same, pairs, "same-1", workers, names, progress=progress)
