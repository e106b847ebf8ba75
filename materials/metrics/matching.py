"""Is it the structure that was asked for? Match rates of structure prediction."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_core.errors import WorkbenchError
from materials.adapters import to_pymatgen
from materials.crystal import Crystal
from materials.metrics.each import each, key

STOL, LTOL, ANGLE_TOL = 0.5, 0.3, 10.0
"""Of pymatgen's matcher. Source: Jiao et al. 2023 (DiffCSP, arXiv 2309.04475), section 5.1."""
log = logging.getLogger("workbench.materials")


def rms(pair: tuple[Crystal, Crystal]) -> float | None:
    """Root mean square distance of a pair, in units of (volume / atom)^(1/3); None: no match."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    predicted, reference = pair
    # a degenerate cell makes it raise
    try:
        found = StructureMatcher(stol=STOL, ltol=LTOL, angle_tol=ANGLE_TOL).get_rms_dist(
            to_pymatgen(predicted), to_pymatgen(reference)
        )
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        log.warning("%s: cannot be compared with its reference: %s", predicted.name, error)
        return None
    return None if found is None else float(found[0])


@dataclass(frozen=True)
class Matches:
    """How predictions fit their references.

    Args:
        distances: (references, k), nan where there is no match.
        valid: (references, k) whether both are valid crystals.
    """

    distances: np.ndarray
    valid: np.ndarray

    def best(self, valid_only: bool = False) -> np.ndarray:
        """(references,) the smallest distance among the k predictions; nan where none fits."""
        among = np.where(self.valid, self.distances, np.nan) if valid_only else self.distances
        some = ~np.isnan(among).all(1)
        best = np.full(len(among), np.nan)
        best[some] = np.nanmin(among[some], 1)
        return best

    def rate(self, valid_only: bool = False) -> float:
        """Share of references that a prediction fits. "valid only" counts no pair of which either is not valid."""
        return float((~np.isnan(self.best(valid_only))).mean())

    def rmse(self, valid_only: bool = False) -> float:
        """Mean distance of the best prediction, over the references that are matched."""
        best = self.best(valid_only)
        found = best[~np.isnan(best)]
        return float(found.mean()) if len(found) else math.nan

    def crmse(self) -> float:
        """Mean distance of the best prediction, where none fits the tolerance itself.

        Source: "All that structure matches does not glitter" (arXiv 2509.12178).
        """
        best = self.best()
        return float(np.where(np.isnan(best), STOL, best).mean())


def matches(
    predictions: Sequence[Sequence[Crystal | None]],
    references: Sequence[Crystal],
    valid: Sequence[Sequence[bool]],
    workers: int = 1,
    progress: bool = True,
) -> Matches:
    """Compare k predictions with each reference.

    Args:
        predictions: of each reference; as many of each; None is one that fits nothing.
        references: what should have been predicted.
        valid: whether a prediction and its reference are valid crystals.

    Raises:
        WorkbenchError: the numbers do not fit.
    """
    k = {len(of_one) for of_one in predictions}
    if len(predictions) != len(references) or len(k) != 1:
        raise WorkbenchError(
            f"matching: got predictions for {len(predictions)} of {len(references)} references, {sorted(k)} of each; "
            "expected the same number for every one."
        )
    shape = (len(references), k.pop())
    places, pairs = [], []
    for i, (of_one, reference) in enumerate(zip(predictions, references, strict=True)):
        for j, prediction in enumerate(of_one):
            if prediction is not None:
                places.append((i, j))
                pairs.append((prediction, reference))
    names = [f"{key(p)}{key(r)}" for p, r in pairs]
    distances = np.full(shape, math.nan)
    for place, d in zip(places, each(rms, pairs, "match-1", workers, names, progress=progress), strict=True):
        distances[place] = math.nan if d is None else d
    return Matches(distances, np.array(valid, dtype=bool).reshape(shape))


def everyone(
    generated: Sequence[Crystal], references: Sequence[Crystal], workers: int = 1, progress: bool = True
) -> dict[str, float]:
    """METRe: the share of references that any generated crystal of their composition fits; and its cRMSE.

    Source: "All that structure matches does not glitter" (arXiv 2509.12178).
    """
    of_formula: dict[str, list[Crystal]] = {}
    for crystal in generated:
        of_formula.setdefault(crystal.formula, []).append(crystal)
    pairs, owners = [], []
    for i, reference in enumerate(references):
        for crystal in of_formula.get(reference.formula, []):
            pairs.append((crystal, reference))
            owners.append(i)
    names = [f"{key(p)}{key(r)}" for p, r in pairs]
    best = np.full(len(references), np.nan)
    for i, d in zip(owners, each(rms, pairs, "match-1", workers, names, progress=progress), strict=True):
        if d is not None:
            best[i] = np.nanmin([best[i], d])
    return {
        "metre": float((~np.isnan(best)).mean()),
        "crmse": float(np.where(np.isnan(best), STOL, best).mean()),
    }
