"""Limits that must hold exactly, and a structure that is drawn again: sublattices, chemical systems, SDEdit.

python -m materials.experiments.editing --checkpoint RUN --out benchmarks/results/materials/editing_perov_5.json
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import numpy as np
import torch

from diffusion_core import results
from diffusion_core.configure import build
from materials import elements, generate
from materials.config import EvaluationConfig
from materials.crystal import Crystal
from materials.data import sources
from materials.evaluate import described
from materials.experiments import lab
from materials.experts import product
from materials.metrics import matching


def experiment(asked: argparse.Namespace) -> dict[str, Any]:
    """Keep the most frequent element of test crystals; generate in their systems; perturb them."""
    trained = lab.Trained.of(asked.checkpoint)
    config, model = trained.config, trained.model
    test = sources.load(config.task, config.data, "test")
    references: list[Crystal] = list(test.take(np.sort(np.random.default_rng(0).permutation(len(test))[: asked.n])))
    n = len(references)

    def judged(made: list[Crystal | None], of: list[Crystal]) -> dict[str, Any]:
        best = matching.matches([[c] for c in made], of, [[True]] * len(of), asked.workers).best()
        rows = described([c for c in made if c is not None], asked.workers)
        return {
            "match_rate": results.rate(int((~np.isnan(best)).sum()), len(of)),
            "rmse": results.mean(best[~np.isnan(best)].tolist()),
            "valid": results.rate(sum(r["structure_valid"] and r["composition_valid"] for r in rows), len(of)),
            "n": len(of),
        }

    def again(reference: Crystal, i: int, strength: float, keep: tuple[int, ...] = ()) -> Crystal | None:
        grid = build(config.grid, **{"n": config.steps, "start": strength})
        made = generate.redraw(model, model.plan(config, grid), reference, [lab.SEED + i], keep)
        return made[0] if made.sound[0] else None

    anions = [Counter(c.atom_types.tolist()).most_common(1)[0][0] for c in references]
    whole = config.grid.get("start", 0.995)
    made = [again(c, i, whole, (z,)) for i, (c, z) in enumerate(zip(references, anions, strict=True))]
    moved = []
    for crystal, reference, z in zip(made, references, anions, strict=True):
        if crystal is not None:
            kept = reference.atom_types == z
            moved.append(np.abs(crystal.cart_coords[kept] - reference.cart_coords[kept]).max())
    found: dict[str, Any] = {
        "sublattice": {**judged(made, references), "largest_move_of_kept_sites_in_A": float(np.max(moved))},
    }
    violations, drawn = 0, []
    for i, reference in enumerate(references):
        allowed = torch.zeros(elements.CLASSES, dtype=torch.bool)
        allowed[torch.as_tensor(np.unique(reference.atom_types) - 1)] = True
        one = generate.draw(
            model,
            model.plan(config),
            np.array([len(reference)]),
            [lab.SEED + i],
            product([model], {}, allowed=allowed),
        )
        violations += int(not set(one.atom_types.tolist()) <= set(reference.atom_types.tolist()))
        drawn.append(one[0] if one.sound[0] else None)
    found["chemical_system"] = {**judged(drawn, references), "violations": violations}
    found["perturbed"] = [
        {"strength": strength, **judged([again(c, i, strength) for i, c in enumerate(references)], references)}
        for strength in asked.strengths
    ]
    return {
        "model": trained.described(),
        "test": test.provenance,
        "n": n,
        "seed": lab.SEED,
        "evaluations": config.steps,
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", required=True, help="a run of materials.train")
    parser.add_argument("--n", type=int, default=100, help="crystals of the test set")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--workers", type=int, default=EvaluationConfig().workers)
    lab.run(experiment, parser, "editing")


if __name__ == "__main__":
    main()
