"""How many evaluations does a structure need, and what do they cost?

    python -m materials.experiments.steps --checkpoint RUN --out benchmarks/results/materials/steps_perov_5.json

Structures of test compositions are predicted with few and with many evaluations, by every solver of the coordinates.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np

from diffusion_core import results
from materials import generate, published
from materials.config import COORDS_SOLVERS, EvaluationConfig
from materials.data import sources
from materials.experiments import lab
from materials.metrics import matching
from materials.metrics.validity import structural


def experiment(asked: argparse.Namespace) -> dict[str, Any]:
    """Match rate, validity and time for each number of steps and solver."""
    trained = lab.Trained.of(asked.checkpoint)
    config, model = trained.config, trained.model
    test = sources.load(config.task, config.data, "test")
    references = list(test.take(np.sort(np.random.default_rng(0).permutation(len(test))[: asked.n])))
    types = [reference.atom_types.tolist() for reference in references]
    counts, n = np.array([len(t) for t in types]), len(references)
    rows = []
    for solver in asked.coords:
        for steps in asked.steps:
            plan = model.plan(replace(config, coords=solver, steps=steps))
            began = time.perf_counter()
            drawn = generate.draw(model, plan, counts, range(lab.SEED, lab.SEED + n), types=types, power=asked.power)
            seconds = time.perf_counter() - began
            guesses = [[drawn[i] if ok else None] for i, ok in enumerate(drawn.sound)]
            valid = [[g is not None and structural(g)] for (g,) in guesses]
            best = matching.matches(guesses, references, valid, asked.workers).best()
            found = {
                "coords": solver,
                "evaluations": steps,
                "match_rate": results.rate(int((~np.isnan(best)).sum()), n),
                "rmse": results.mean(best[~np.isnan(best)].tolist()),
                "structure_valid": results.rate(sum(v for (v,) in valid), n),
                "seconds_per_1000": 1e3 * seconds / n,
                "structures_per_second_per_evaluation": n * steps / seconds,
            }
            rows.append(found)
            lab.logger.info("%s, %d evaluations: %s", solver, steps, found["match_rate"])
    return {
        "model": trained.described(),
        "test": test.provenance,
        "n": n,
        "seed": lab.SEED,
        "power": asked.power,
        "mean_atoms": float(counts.mean()),
        "rows": rows,
        "reported": [vars(line) for line in published.SPEED],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", required=True, help="a run of materials.train")
    parser.add_argument("--n", type=int, default=500, help="compositions of the test set")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 100])
    parser.add_argument("--coords", nargs="+", default=list(COORDS_SOLVERS), choices=COORDS_SOLVERS)
    parser.add_argument("--power", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=EvaluationConfig().workers)
    lab.run(experiment, parser, "steps")


if __name__ == "__main__":
    main()
