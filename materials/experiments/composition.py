"""Two networks that were trained apart, each told one property, and multiplied: does a crystal have both?

    python -m materials.experiments.composition --density RUN --electronegativity RUN --joint RUN --out ...

Both properties have formulas, so a judge is exact. Every sample's targets are drawn evenly from the ranges. The cost of
a sample is its evaluations of a network; "selection" throws away what misses, from as many unconditional samples as the
product's evaluations pay for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_core import results
from diffusion_core.correct import Sweep
from materials import generate
from materials.config import EvaluationConfig
from materials.crystal import Crystals
from materials.data import sources
from materials.evaluate import described
from materials.experiments import lab
from materials.experts import Range, product
from materials.generate import Factor
from materials.properties import values

NAMES = ("density", "electronegativity_difference")
RANGES: tuple[dict[str, Range], ...] = (
    {"density": (4.0, 5.0), "electronegativity_difference": (1.4, 1.8)},
    {"density": (8.0, 10.0), "electronegativity_difference": (2.4, 3.2)},
    {"density": (3.0, 4.5), "electronegativity_difference": (1.0, 1.5)},
)
"""g/cm³ and Pauling units: 2.9, 1.5 and 0.7 % of perov_5."""


def within(crystals: Crystals, ranges: Mapping[str, Range]) -> dict[str, np.ndarray]:
    """Which crystals are in each range."""
    found = {name: values(crystals, name) for name in ranges}
    return {name: (found[name] >= low) & (found[name] <= high) for name, (low, high) in ranges.items()}


def measured(crystals: Crystals, ranges: Mapping[str, Range], workers: int) -> dict[str, Any]:
    """Rates of hits, of one range and of both, and of valid crystals."""
    sound, n = crystals.take(np.flatnonzero(crystals.sound)), len(crystals)
    hits = within(sound, ranges)
    both = np.logical_and.reduce(list(hits.values()))
    rows = described(list(sound), workers)
    valid = np.array([row["structure_valid"] and row["composition_valid"] for row in rows])
    formulas = {row["formula"] for row, hit in zip(rows, both, strict=True) if hit}
    return {
        **{name: results.rate(int(hit.sum()), n) for name, hit in hits.items()},
        "both": results.rate(int(both.sum()), n),
        "both_and_valid": results.rate(int((both & valid).sum()), n),
        "valid": results.rate(int(valid.sum()), n),
        "formulas_among_hits": len(formulas),
        "n": n,
    }


def experiment(asked: argparse.Namespace) -> dict[str, Any]:
    """Draw from each alone, their product, the joint model and the unconditional one."""
    trained = {name: lab.Trained.of(getattr(asked, name)) for name in ("density", "electronegativity", "joint")}
    a, b, joint = (one.model for one in trained.values())
    plan, n = a.plan(trained["density"].config), asked.n
    counts = generate.sizes(a, 3 * n, lab.SEED)
    data = sources.load(trained["joint"].config.task, trained["joint"].config.data, "train")
    steps = trained["density"].config.steps

    def drawn(expert: Factor | None, m: int, sweeps: int = 0) -> tuple[Crystals, float]:
        began = time.perf_counter()
        corrector = Sweep(sweeps, asked.sweep_step) if sweeps else None
        made = generate.draw(a, plan, counts[:m], range(lab.SEED, lab.SEED + m), expert, corrector=corrector)
        return made, time.perf_counter() - began

    free, free_seconds = drawn(None, 3 * n)
    found = []
    for ranges in RANGES:
        rng = np.random.default_rng(0)
        targets = {name: rng.uniform(*ranges[name], n) for name in NAMES}
        first, second = ({name: targets[name]} for name in NAMES)
        methods: dict[str, tuple[Factor, int, float]] = {
            "density's network": (product([a], first), 0, 1.0),
            "electronegativity's network": (product([b], second), 0, 1.0),
            "joint network": (product([joint], targets), 0, 1.0),
            "product": (product([a, b], targets), 0, 3.0),
            "product, corrected": (product([a, b], targets), 1, 9.0),
            "electronegativity's network and an energy of density": (
                product([b], second, between={"density": ranges["density"]}),
                0,
                1.0,
            ),
        }
        hits = within(data, ranges)
        part: dict[str, Any] = {
            "ranges": {name: list(limits) for name, limits in ranges.items()},
            "data": results.rate(int(np.logical_and.reduce(list(hits.values())).sum()), len(data)),
            "methods": {
                "unconditional": {
                    **measured(free.take(np.arange(n)), ranges, asked.workers),
                    "evaluations": steps,
                    "seconds": free_seconds / 3.0,
                },
            },
        }
        both = np.logical_and.reduce(list(within(free.take(np.flatnonzero(free.sound)), ranges).values()))
        # as many as fill the same number of places
        part["methods"]["selection, cost of the product"] = {
            "both": results.rate(min(int(both.sum()), n), n),
            "evaluations": 3 * steps,
            "seconds": free_seconds,
            "n": n,
        }
        for name, (expert, sweeps, cost) in methods.items():
            made, seconds = drawn(expert, n, sweeps)
            part["methods"][name] = {
                **measured(made, ranges, asked.workers),
                "evaluations": int(cost * steps),
                "seconds": seconds,
            }
            lab.logger.info("%s, %s: %s", part["ranges"], name, part["methods"][name]["both"])
        found.append(part)
    return {
        "models": {name: one.described() for name, one in trained.items()},
        "data": data.provenance,
        "n": n,
        "seed": lab.SEED,
        "sweep_step": asked.sweep_step,
        "parts": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name in ("density", "electronegativity", "joint"):
        parser.add_argument(f"--{name}", required=True, help="a run of materials.train")
    parser.add_argument("--n", type=int, default=500, help="crystals of each kind")
    parser.add_argument("--sweep-step", type=float, default=0.05)
    parser.add_argument("--workers", type=int, default=EvaluationConfig().workers)
    lab.run(experiment, parser, "composition")


if __name__ == "__main__":
    main()
