"""Do our evaluators say what others' say? Published samples, the test sets, energies and hulls with known answers.

WORKBENCH_DATA=... python -m materials.experiments.trust --out benchmarks/results/materials/trust.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from materials.config import DataConfig, EvaluationConfig, TaskConfig
from materials.crystal import Crystal, Crystals
from materials.data import sources, tables
from materials.evaluate import described
from materials.experiments import lab
from materials.metrics import coverage, distributions, matching, stability
from materials.metrics.describe import space_group
from materials.metrics.validity import compositional, structural

PUBLISHED = "peer_samples_diffcsp_mp20"
SETS = {"perov_5": 5, "carbon_24": 24, "mp_20": 20}


def validity(crystals: Crystals, workers: int) -> dict[str, Any]:
    """The two rates of the papers."""
    rows = described(list(crystals), workers)
    return {
        "structure_valid": results.rate(sum(row["structure_valid"] for row in rows), len(rows)),
        "composition_valid": results.rate(sum(row["composition_valid"] for row in rows), len(rows)),
        "n": len(rows),
        "provenance": crystals.provenance,
    }


def energies(test: Crystals, n: int, workers: int) -> dict[str, Any]:
    """CHGNet's formation energy of entries of the Materials Project, as they are, against its own."""
    rows = np.sort(np.random.default_rng(0).permutation(len(test))[:n])
    picked = list(test.take(rows))
    errors = []
    for crystal, energy in zip(picked, stability.energies(picked, workers), strict=True):
        value = None if energy is None else stability.formation_energy(energy, crystal.composition)
        if value is not None:
            errors.append(value - float(crystal.properties["formation_energy_per_atom"]))
    return {
        "mae": results.mean(np.abs(errors).tolist(), "eV/atom"),
        "bias": results.mean(errors, "eV/atom"),
        "left_out": n - len(errors),
    }


def hull(train: Crystals, test: Crystals, n: int) -> dict[str, Any]:
    """The partial hull of the training entries against the Materials Project's own, at its formation energies."""
    made = stability.PartialHull.of(train)
    rows = np.sort(np.random.default_rng(1).permutation(len(test))[:n])
    errors = []
    for crystal in test.take(rows):
        if set(crystal.composition) <= made.elements:
            ours = max(made.above(crystal.composition, float(crystal.properties["formation_energy_per_atom"])), 0.0)
            errors.append(ours - float(crystal.properties["e_above_hull"]))
    d = np.array(errors)
    return {
        "hull": made.provenance,
        "mae": results.mean(np.abs(d).tolist(), "eV/atom"),
        "within_5_mev": results.rate(int((np.abs(d) <= 0.005).sum()), len(d)),
        "too_high": results.rate(int((d > 0.005).sum()), len(d)),
        "left_out": n - len(d),
    }


def throughput(test: Crystals, train: Crystals) -> dict[str, Any]:
    """Seconds of one core for one crystal, nothing from the cache."""
    picked = list(test.take(np.sort(np.random.default_rng(2).permutation(len(test))[:200])))
    made = stability.PartialHull.of(train)
    stability.require()

    def timed(work: Callable[[Crystal], Any], crystals: Sequence[Crystal]) -> results.Estimate:
        work(crystals[0])
        seconds = []
        for crystal in crystals:
            began = time.perf_counter()
            work(crystal)
            seconds.append(time.perf_counter() - began)
        return results.mean(seconds, "s")

    def above(crystal: Crystal) -> float:
        return made.above(crystal.composition, -1.0)

    return {
        "structural validity": timed(structural, picked),
        "compositional validity": timed(lambda c: compositional(c.composition), picked),
        "space group": timed(space_group, picked),
        "match of two structures": timed(lambda c: matching.rms((c, c)), picked),
        "fingerprints (COV)": timed(coverage.structure_fingerprint, picked[:10]),
        "CHGNet energy": timed(stability.energy, picked[:50]),
        "CHGNet relaxation": timed(stability.relax, picked[:5]),
        "partial hull": timed(above, picked),
    }


def experiment(asked: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    folder = sources.shared()
    if folder is None:
        raise WorkbenchError("trust: WORKBENCH_DATA names no folder with materials/; expected one that has it.")
    published = tables.read(folder / f"{PUBLISHED}.parquet")
    data = DataConfig()
    tests = {name: sources.load(TaskConfig(name, most), data, "test") for name, most in SETS.items()}
    train = sources.load(TaskConfig("mp_20", 20), data, "train")
    found: dict[str, Any] = {
        "published_samples": {
            "source": f"{PUBLISHED}: 10,000 crystals of DiffCSP trained on MP-20",
            **validity(published, asked.workers),
            **distributions.compare(published, tests["mp_20"]),
            "reported": {"structure_valid": 1.0, "composition_valid": 0.8325, "w_density": 0.350, "w_elements": 0.339},
        },
        "test_sets": {name: validity(test, asked.workers) for name, test in tests.items()},
        "formation_energy": energies(tests["mp_20"], asked.energies, asked.workers),
        "partial_hull": hull(train, tests["mp_20"], asked.hull),
        "throughput": throughput(tests["mp_20"], train),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--energies", type=int, default=128, help="test entries whose energy is computed")
    parser.add_argument("--hull", type=int, default=1000, help="test entries that are placed against the hull")
    parser.add_argument("--workers", type=int, default=EvaluationConfig().workers)
    lab.run(experiment, parser, "trust")


if __name__ == "__main__":
    main()
