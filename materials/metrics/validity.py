"""Is a crystal possible? By its distances, and by the charges that its elements can have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np

from diffusion_core.errors import WorkbenchError
from materials import elements
from materials.crystal import SMALLEST_VOLUME, Crystal

SMALLEST_DISTANCE = 0.5
"""Å."""

States = Literal["smact14", "icsd24"]
"""Which oxidation states: those of SMACT before version 3, by which papers count, or of ICSD in 2024, SMACT's today."""


def structural(crystal: Crystal) -> bool:
    """No two sites are nearer than 0.5 Å, and the cell has at least 0.1 Å³.

    A site and its own image are not compared, as in the papers.

    Source: Xie et al. 2022 (CDVAE, arXiv 2110.06197), section 5.2.
    """
    return crystal.volume >= SMALLEST_VOLUME and closest(crystal) >= SMALLEST_DISTANCE


def closest(crystal: Crystal) -> float:
    """Å between the two nearest sites; infinite for one site."""
    if len(crystal) < 2:
        return float("inf")
    distances = crystal.distances()
    return float(distances[np.triu_indices(len(crystal), 1)].min())


def compositional(composition: Mapping[int, int], states: States = "smact14") -> bool:
    """Whether oxidation states exist with which the composition is neutral and anions are the more electronegative.

    An element alone, and metals alone, are always valid.

    Args:
        composition: counts by atomic number.
        states: which oxidation states; published numbers are by "smact14".

    Raises:
        WorkbenchError: SMACT is not installed.

    Source: Davies et al. 2016 (doi 10.1016/j.chempr.2016.09.010), as CDVAE counts it (arXiv 2110.06197, section 5.2).
    """
    whole = elements.reduced(composition)
    return _compositional(tuple(sorted(whole.items())), states)


@lru_cache(maxsize=200_000)
def _compositional(composition: tuple[tuple[int, int], ...], states: States) -> bool:
    if len(composition) == 1:
        return True
    known = [_element(z, states) for z, _ in composition]
    if all(metal for _, _, metal in known):
        return True
    counts = [n for _, n in composition]
    return _neutral(counts, [e[0] for e in known], [e[1] for e in known], (), 0)


def _neutral(
    counts: list[int], states: list[tuple[int, ...]], pauling: list[float | None], chosen: tuple[int, ...], charge: int
) -> bool:
    """Depth first, cut where what is left cannot make up for the charge so far."""
    k = len(chosen)
    if k == len(counts):
        return charge == 0 and _pauling(chosen, pauling)
    rest = range(k, len(counts))
    if any(not states[j] for j in rest):
        return False
    if charge + sum(counts[j] * max(states[j]) for j in rest) < 0:
        return False
    if charge + sum(counts[j] * min(states[j]) for j in rest) > 0:
        return False
    return any(_neutral(counts, states, pauling, (*chosen, s), charge + counts[k] * s) for s in states[k])


def _pauling(charges: tuple[int, ...], pauling: list[float | None]) -> bool:
    """Whether each cation is less electronegative than each anion.

    The first pair of opposite charges with an element of unknown electronegativity ends the test as passed: papers used
    a version of SMACT where it raised an error that was taken so.
    """
    for (a, x), (b, y) in combinations(zip(charges, pauling, strict=True), 2):
        if a * b >= 0:
            continue
        if x is None or y is None:
            return True
        if (x >= y) if a > 0 else (x <= y):
            return False
    return True


@lru_cache(maxsize=2 * elements.LAST)
def _element(z: int, states: States) -> tuple[tuple[int, ...], float | None, bool]:
    """Its oxidation states, its electronegativity, and whether it is a metal."""
    try:
        import smact
    except ImportError:
        raise WorkbenchError(
            "compositional validity: SMACT is not installed; expected its oxidation states: pip install "
            "'diffusion-workbench[crystals]'."
        ) from None
    symbol = elements.SYMBOLS[z]
    try:
        element = smact.Element(symbol)
    except NameError:
        # SMACT stops at lawrencium
        return (), None, False
    found = element.oxidation_states_smact14 if states == "smact14" else element.oxidation_states_icsd24
    return tuple(found or ()), element.pauling_eneg, symbol in smact.metals
