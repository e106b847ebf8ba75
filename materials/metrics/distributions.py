"""How far the properties of generated crystals are from those of the data, as distributions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from diffusion_core.results import Estimate
from materials.crystal import Crystals
from materials.metrics.describe import space_group_number
from materials.metrics.each import each, key
from materials.properties import density, n_elements

DRAWN = 1_000
"""How many valid crystals the papers draw. Source: Xie et al. 2022 (CDVAE, arXiv 2110.06197), section 5.2."""


def wasserstein(
    a: Float64[np.ndarray, " n"], b: Float64[np.ndarray, " m"], unit: str = "1", resamples: int = 200
) -> Estimate:
    """Wasserstein's distance between two samples, with an interval by resampling ``a``; it is never below 0.

    A resampled distance is larger than the distance itself by what resampling adds; its spread is taken, not its mean.
    """
    from scipy.stats import wasserstein_distance

    if len(a) == 0 or len(b) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), float("nan"), 0, unit)
    value = float(wasserstein_distance(a, b))
    rng = np.random.default_rng(0)
    again = [wasserstein_distance(a[rng.integers(len(a), size=len(a))], b) for _ in range(resamples)]
    spread = float(np.std(again))
    return Estimate(value, spread, max(value - 1.96 * spread, 0.0), value + 1.96 * spread, len(a), unit)


def compare(generated: Crystals, reference: Crystals, drawn: int = DRAWN, seed: int = 0) -> dict[str, Estimate]:
    """Wasserstein distances of density (g/cm³) and of the number of elements.

    Args:
        generated: valid crystals, of which ``drawn`` are taken.
        reference: the test set, all of it.
    """
    rows = np.random.default_rng(seed).permutation(len(generated))[:drawn]
    taken = generated.take(np.sort(rows))
    return {
        "w_density": wasserstein(density(taken), density(reference), "g/cm3"),
        "w_elements": wasserstein(n_elements(taken), n_elements(reference)),
    }


def crystal_systems(generated: Crystals, reference: Crystals, workers: int = 1, drawn: int = DRAWN) -> Estimate:
    """Total variation between the shares of crystal systems, triclinic to cubic, of at most ``drawn`` of each."""
    edges = np.array([-0.5, 2.5, 15.5, 74.5, 142.5, 167.5, 194.5, 230.5])
    shares, n = [], 0
    for crystals in (generated, reference):
        rows = np.sort(np.random.default_rng(0).permutation(len(crystals))[:drawn])
        taken = list(crystals.take(rows))
        numbers = each(space_group_number, taken, "space-group-1", workers, [key(c) for c in taken])
        shares.append(np.histogram(numbers, edges)[0] / max(len(numbers), 1))
        n = n or len(numbers)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), float("nan"), 0)
    value = float(0.5 * np.abs(shares[0] - shares[1]).sum())
    error = float(0.5 * np.sqrt((shares[0] * (1.0 - shares[0]) / n).sum()))
    return Estimate(value, error, max(value - 1.96 * error, 0.0), value + 1.96 * error, n)
