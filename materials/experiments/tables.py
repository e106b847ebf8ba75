"""All numbers of a model that stand in a task's tables, in one file.

    python -m materials.experiments.tables --checkpoint RUN --n 1000 --coverage 1000 \\
        --predict 1:3785:1 20:300:1 --out benchmarks/results/materials/perov_5.json

Structures are predicted as often as ``--predict`` has entries: predictions of each composition, compositions, the
exponent of the density, and evaluations of the network (where not given: ``--steps``).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from materials import evaluate
from materials.config import EvaluationConfig
from materials.data import sources
from materials.experiments import lab


def asked_for(word: str) -> tuple[int, int, float, int]:
    """``k:n:power`` or ``k:n:power:evaluations``."""
    k, n, power, *steps = word.split(":")
    return int(k), int(n), float(power), int(steps[0]) if steps else 0


def experiment(asked: argparse.Namespace) -> dict[str, Any]:
    """De novo generation and structure prediction of one model."""
    trained = lab.Trained.of(asked.checkpoint)
    config = replace(trained.config, steps=asked.steps or trained.config.steps)
    if asked.start:
        config = replace(config, grid={**config.grid, "start": asked.start})
    model = trained.model
    train, test = (sources.load(config.task, config.data, split) for split in ("train", "test"))
    evaluation = EvaluationConfig(
        n=asked.n,
        coverage=asked.coverage,
        stability=asked.stability,
        compositions="train" if asked.compositions else "",
        workers=asked.workers,
        seed=lab.SEED,
    )
    found: dict[str, Any] = {
        "model": trained.described(),
        "data": train.provenance,
        "test": test.provenance,
        "sampler": {"lattice": config.sampler, "coords": config.coords, "grid": config.grid, "steps": config.steps},
        "seed": lab.SEED,
    }
    if asked.n:
        found["compositions"] = evaluation.compositions
        found["de_novo"], _, _ = evaluate.de_novo(model, config, evaluation, train, test)
        found["test_set"] = evaluate.of_test_set(test, evaluation, config.task.name)
    found["predictions"] = []
    for k, n, power, steps in asked.predict:
        wish = replace(evaluation, csp=n, k=k)
        how = replace(config, power=power, steps=steps or config.steps)
        part, _ = evaluate.prediction(model, how, wish, test)
        lab.logger.info("k = %d, n = %d, power %g: %s", k, n, power, part["metrics"]["match_rate"])
        found["predictions"].append({**part, "power": power, "evaluations": how.steps})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", required=True, help="a run of materials.train")
    parser.add_argument("--n", type=int, default=1000, help="crystals from nothing")
    parser.add_argument("--coverage", type=int, default=0, help="crystals whose fingerprints are compared")
    parser.add_argument("--stability", type=int, default=0, help="crystals that are relaxed")
    parser.add_argument("--compositions", action="store_true", help="draw crystals of the training data's compositions")
    parser.add_argument("--predict", type=asked_for, nargs="*", default=[], help="k:n:power[:evaluations], a row each")
    parser.add_argument("--steps", type=int, default=0, help="evaluations; 0: as trained")
    parser.add_argument("--start", type=float, default=0.0, help="time at which sampling starts; 0: as trained")
    parser.add_argument("--workers", type=int, default=EvaluationConfig().workers)
    lab.run(experiment, parser, "tables")


if __name__ == "__main__":
    main()
