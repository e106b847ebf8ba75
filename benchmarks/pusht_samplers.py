"""How few denoising steps the shipped Push-T policy needs, and with which solver.

``python -m benchmarks.pusht_samplers`` writes ``benchmarks/results/pusht_samplers.json``: success, score and time to
replan for every solver and number of steps, all on the same starts with the same noise.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

from benchmarks.tables import RESULTS
from diffusion_core import checkpoint, results
from diffusion_core.run import Run
from policy import evaluate
from policy.model import restore

SOLVERS = {
    "ddim": [1, 2, 3, 5, 10, 20],
    "dpm_solver_pp_2m": [2, 3, 5, 10],
    "heun": [1, 2, 5],
    "euler": [5, 10],
    "ddpm": [5, 10, 50],
}
# the evaluations that a step costs
COST = {"heun": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="episodes per row, from seed 100000 on")
    n = parser.parse_args().n
    saved = checkpoint.find("pretrained/pusht", evaluate.PRETRAINED)
    _, config = restore(saved)
    rows = []
    for solver, counts in SOLVERS.items():
        for steps in counts:
            changed = replace(config, sampler={"_target_": f"diffusion_core.solvers.{solver}"}, steps=steps)
            judged = replace(config.evaluation, n=n, batch=n)
            found, _, _ = evaluate.evaluate(saved, changed, judged, Run(RESULTS, main=False), film=False)
            names = ("mean_max_score", "success_rate", "steps_to_success", "replan_p50")
            kept = {name: asdict(found["metrics"][name]) for name in names}
            evaluations = steps * COST.get(solver, 1) - (solver == "heun")
            rows.append({"solver": solver, "steps": steps, "evaluations": evaluations, **kept})
            print(solver, steps, {name: round(kept[name]["value"], 3) for name in names})
    about = {
        "what": "the shipped Push-T policy with other solvers and step counts, same starts and noise",
        "command": f"python -m benchmarks.pusht_samplers --n {n}",
        "seeds": [100_000, 100_000 + n - 1],
        "commit": results.commit(),
        "hardware": results.hardware(),
    }
    results.write_json(RESULTS / "pusht_samplers.json", about | {"rows": rows})


if __name__ == "__main__":
    main()
