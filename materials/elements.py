"""Elements: numbers, masses, formulas."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from math import gcd

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from jaxtyping import Int64

from diffusion_core.errors import WorkbenchError

LAST = 118
CLASSES = 100
"""A model's atom types: class k is the element of atomic number k + 1; no data set has a heavier one."""
SYMBOLS: tuple[str, ...] = tuple(chemical_symbols)
MASSES = np.asarray(atomic_masses, dtype=np.float64)
"""u, by atomic number."""
U_PER_A3 = 1.66053906660
"""g/cm³ in one u/Å³."""


def number(symbol: str) -> int:
    """The atomic number of a symbol; an oxidation state behind it ("Fe3+") is ignored.

    Raises:
        WorkbenchError: there is no such element.
    """
    match = re.fullmatch(r"([A-Z][a-z]?)[\d.]*[+-]?", symbol.strip())
    found = atomic_numbers.get(match.group(1), 0) if match else 0
    if not found:
        raise WorkbenchError(f"element: got {symbol!r}; expected a chemical symbol such as Sr, Ti or O.")
    return int(found)


def counts(atom_types: Int64[np.ndarray, " sites"]) -> dict[int, int]:
    """How many there are of each atomic number, in rising order."""
    numbers, times = np.unique(atom_types, return_counts=True)
    return dict(zip(numbers.tolist(), times.tolist(), strict=True))


def parse(text: str) -> dict[int, int]:
    """``"Ca(OH)2"`` to counts by atomic number.

    Raises:
        WorkbenchError: it is no formula of whole numbers of known elements.
    """
    tokens = re.findall(r"[A-Z][a-z]?|\(|\)|\d+|\S", text)
    stack: list[dict[int, int]] = [{}]
    i, sound = 0, bool(tokens)
    while i < len(tokens) and sound:
        token = tokens[i]
        times = int(tokens[i + 1]) if i + 1 < len(tokens) and tokens[i + 1].isdigit() else None
        if token == "(":
            stack.append({})
        elif token == ")" and len(stack) > 1:
            for z, n in stack.pop().items():
                stack[-1][z] = stack[-1].get(z, 0) + n * (1 if times is None else times)
            i += times is not None
        elif token[0].isalpha() and token in atomic_numbers and token != "X" and times != 0:
            z = int(atomic_numbers[token])
            stack[-1][z] = stack[-1].get(z, 0) + (times or 1)
            i += times is not None
        else:
            sound = False
        i += 1
    if not sound or len(stack) > 1 or not stack[0]:
        raise WorkbenchError(
            f"formula: got {text!r}; expected whole numbers of known elements and closed brackets, such as SrTiO3 or "
            "Ca(OH)2: correct it."
        )
    return dict(sorted(stack[0].items()))


def atoms(composition: Mapping[int, int]) -> list[int]:
    """Every atom's number, in rising order."""
    return [z for z, n in sorted(composition.items()) for _ in range(n)]


def reduced(composition: Mapping[int, int]) -> dict[int, int]:
    """Divided by the greatest common divisor."""
    divisor = gcd(*composition.values())
    return {z: n // divisor for z, n in composition.items()}


def formula(composition: Mapping[int, int], reduced: bool = False) -> str:
    """``"SrTiO3"``: by rising electronegativity, the noble gases last."""
    divisor = gcd(*composition.values()) if reduced else 1
    order = sorted(composition, key=lambda z: (electronegativity(z), SYMBOLS[z]))
    return "".join(SYMBOLS[z] + (str(composition[z] // divisor) if composition[z] != divisor else "") for z in order)


@lru_cache(maxsize=LAST + 1)
def electronegativity(z: int) -> float:
    """Pauling's; infinite where there is none, so that it sorts last."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        # it warns of every noble gas
        warnings.simplefilter("ignore")
        value = Element.from_Z(z).X
    return float(value) if value == value else float("inf")
