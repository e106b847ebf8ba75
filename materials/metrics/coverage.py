"""Coverage: does every real crystal have a generated one near it, and every generated one a real one?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.spatial.distance import cdist

from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate, rate
from materials import elements
from materials.adapters import to_pymatgen
from materials.crystal import Crystal
from materials.metrics.each import each, key

CUTOFFS = {"mp_20": (0.4, 10.0), "carbon_24": (0.2, 4.0), "perov_5": (0.2, 4.0)}
"""Of structures and of compositions. Source: Xie et al. 2022 (CDVAE, arXiv 2110.06197), appendix and code."""
SCALER = Path(__file__).with_name("magpie_scaler.json")


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What crystals look like to the metric.

    Args:
        structure: (n, 61) mean of the sites' CrystalNN fingerprints; nan where that failed.
        composition: (n, 132) magpie features, standardised as CDVAE does.
    """

    structure: Float64[np.ndarray, "n 61"]
    composition: Float64[np.ndarray, "n 132"]

    @property
    def sound(self) -> np.ndarray:
        """(n,) whether both could be made."""
        return np.isfinite(self.structure).all(1) & np.isfinite(self.composition).all(1)


def fingerprints(crystals: Sequence[Crystal], workers: int = 1, progress: bool = True) -> Fingerprints:
    """Of each crystal: about 33 ms per site on one core, then from disk.

    Raises:
        WorkbenchError: matminer is not installed.
    """
    _require()
    made = each(
        structure_fingerprint, crystals, "crystalnn-ops-1", workers, [key(c) for c in crystals], progress=progress
    )
    formulas = [elements.formula(c.composition, reduced=True) for c in crystals]
    whole = list(dict.fromkeys(formulas))
    magpie = dict(zip(whole, each(_composition, whole, "magpie-1", workers, whole, progress=progress), strict=True))
    scaler = json.loads(SCALER.read_text())
    mean, std = np.array(scaler["mean"]), np.array(scaler["std"])
    structure = np.array([[np.nan] * 61 if f is None else f for f in made], dtype=np.float64).reshape(-1, 61)
    composition = np.array([[np.nan] * 132 if magpie[f] is None else magpie[f] for f in formulas], dtype=np.float64)
    return Fingerprints(structure, (composition.reshape(-1, 132) - mean) / std)


def _require() -> None:
    try:
        import matminer.featurizers.site.fingerprint  # noqa: F401
    except ImportError:
        raise WorkbenchError(
            "coverage: matminer is not installed; expected its CrystalNN fingerprints: pip install "
            "'diffusion-workbench[crystals]', or set evaluation.coverage=0."
        ) from None


@lru_cache(maxsize=1)
def _featurizers() -> tuple[Any, Any]:
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint

    return CrystalNNFingerprint.from_preset("ops"), ElementProperty.from_preset("magpie")


def structure_fingerprint(crystal: Crystal) -> list[float] | None:
    """The mean of its sites' CrystalNN fingerprints; None where there is none."""
    import warnings

    featurizer, structure = _featurizers()[0], to_pymatgen(crystal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.mean([featurizer.featurize(structure, i) for i in range(len(structure))], 0).tolist()
        except Exception:  # whatever a strange structure makes of a Voronoi cell: the metric counts it as a failure
            return None


def _composition(formula: str) -> list[float] | None:
    import warnings

    from pymatgen.core import Composition

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = np.array(_featurizers()[1].featurize(Composition(formula)), dtype=np.float64)
    return values.tolist() if np.isfinite(values).all() else None


def coverage(
    generated: Fingerprints, reference: Fingerprints, cutoffs: tuple[float, float], n: int | None = None
) -> dict[str, Estimate]:
    """COV-R and COV-P, and the mean smallest distances AMSD and AMCD each way.

    A real crystal is covered if the nearest generated structure and the nearest generated composition are within their
    cutoffs; as in the papers these need not be of one crystal.

    Args:
        generated: of valid crystals.
        cutoffs: of structures and of compositions.
        n: how many were generated, valid or not: the denominator of COV-P; None: as many.

    Source: Xie et al. 2022 (CDVAE, arXiv 2110.06197), section 5.2; Ganea et al. 2021 (arXiv 2106.07802).
    """
    ours, theirs = generated.sound, reference.sound
    structure = cdist(reference.structure[theirs], generated.structure[ours])
    composition = cdist(reference.composition[theirs], generated.composition[ours])
    if not structure.size:
        raise WorkbenchError("coverage: got no crystal with a fingerprint; expected at least one on either side.")
    recalled = (structure.min(1) <= cutoffs[0]) & (composition.min(1) <= cutoffs[1])
    precise = (structure.min(0) <= cutoffs[0]) & (composition.min(0) <= cutoffs[1])
    of = len(generated.structure) if n is None else n
    return {
        "cov_r": rate(int(recalled.sum()), len(recalled)),
        "cov_p": rate(int(precise.sum()), of),
        "amsd_r": _mean(structure.min(1)),
        "amcd_r": _mean(composition.min(1)),
        "amsd_p": _mean(structure.min(0)),
        "amcd_p": _mean(composition.min(0)),
    }


def _mean(x: np.ndarray) -> Estimate:
    error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
    return Estimate(float(x.mean()), error, float(x.mean() - 1.96 * error), float(x.mean() + 1.96 * error), len(x))
