"""Judge a model of crystals: ``python -m materials.evaluate checkpoint=runs/<date>/materials-perov_5-...``.

Crystals are generated from nothing and judged by validity, novelty and the distributions of their properties; the
structures of test compositions are predicted and matched. The test set itself goes through the same measures, so that
every number has a ceiling beside it.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from diffusion_core import checkpoint, results
from diffusion_core.checkpoint import Checkpoint
from diffusion_core.configure import plain, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from diffusion_core.run import Run, command, launch, make_folder, one_line_errors
from materials import files, generate, report
from materials.config import DataConfig, EvaluateConfig, EvaluationConfig, MaterialsConfig, TaskConfig
from materials.crystal import Crystal, Crystals
from materials.data import sources, tables
from materials.metrics import coverage, distributions, matching, novelty, stability
from materials.metrics.describe import describe
from materials.metrics.each import each, key
from materials.metrics.validity import compositional, structural
from materials.models import CrystalModel, restore

logger = logging.getLogger("workbench.materials")

ANY_SIZE = 10_000
"""Atoms; nothing is left out for its size where only files are judged."""


def described(crystals: Sequence[Crystal], workers: int) -> list[dict[str, Any]]:
    """A row of `describe` for each."""
    return each(describe, crystals, "describe-1", workers, [key(c) for c in crystals])


def measures(
    crystals: Crystals,
    rows: Sequence[Mapping[str, Any]],
    reference: Crystals,
    evaluation: EvaluationConfig,
    task: str,
    lost: int = 0,
) -> dict[str, Estimate]:
    """What the papers report of crystals generated from nothing.

    Args:
        crystals: all that were generated.
        rows: of each, by `described`.
        reference: the test set.
        lost: how many more were generated that are no crystals: see `Crystals.sound`.
    """
    n = len(crystals) + lost
    structure = np.array([row["structure_valid"] for row in rows])
    composition = np.array([row["composition_valid"] for row in rows])
    both = structure & composition
    groups = np.array([float(row["space_group"]) for row in rows])
    found = {
        "structure_valid": results.rate(int(structure.sum()), n),
        "composition_valid": results.rate(int(composition.sum()), n),
        "valid": results.rate(int(both.sum()), n),
        "symmetric": results.rate(int((groups > 2).sum()), n),
    }
    sound = crystals.take(np.flatnonzero(both))
    found |= distributions.compare(sound, reference)
    found["tv_crystal_systems"] = distributions.crystal_systems(sound, reference, evaluation.workers)
    if evaluation.coverage and task in coverage.CUTOFFS:
        of = np.random.default_rng(0)
        ours = sound.take(np.sort(of.permutation(len(sound))[: evaluation.coverage]))
        theirs = reference.take(np.sort(of.permutation(len(reference))[: evaluation.coverage]))
        generated, real = (coverage.fingerprints(list(c), evaluation.workers) for c in (ours, theirs))
        # COV-P counts what is not valid as not covered
        denominator = round(len(ours) * n / max(int(both.sum()), 1))
        found |= coverage.coverage(generated, real, coverage.CUTOFFS[task], denominator)
    return found


def de_novo(
    model: CrystalModel,
    config: MaterialsConfig,
    evaluation: EvaluationConfig,
    train: Crystals,
    test: Crystals,
) -> tuple[dict[str, Any], Crystals, list[dict[str, Any]]]:
    """Generate from nothing: results, crystals, and a row of each."""
    counts, types = generate.sizes(model, evaluation.n, evaluation.seed), None
    if evaluation.compositions:
        rows_of = np.random.default_rng([evaluation.seed, 13]).integers(len(train), size=evaluation.n)
        types = [crystal.atom_types.tolist() for crystal in train.take(rows_of)]
        counts = np.array([len(t) for t in types])
    seeds = list(range(evaluation.seed, evaluation.seed + evaluation.n))
    began = time.perf_counter()
    drawn = generate.draw(model, model.plan(config), counts, seeds, types=types, power=config.power)
    seconds = time.perf_counter() - began
    found, made, rows = judged(drawn, evaluation, config.task.name, train, test)
    found["seconds_per_1000"] = Estimate(1e3 * seconds / len(drawn), 0.0, float("nan"), float("nan"), 1, "s")
    return {"n": len(drawn), "metrics": found}, made, rows


def judged(
    drawn: Crystals, evaluation: EvaluationConfig, task: str, train: Crystals, test: Crystals
) -> tuple[dict[str, Estimate], Crystals, list[dict[str, Any]]]:
    """Crystals from anywhere: results, those that are crystals at all, and a row of each of these."""
    made = drawn.take(np.flatnonzero(drawn.sound))
    n, lost = len(drawn), len(drawn) - len(made)
    if lost:
        logger.warning("%d of %d have no volume or are not finite: they count as not valid", lost, n)
    crystals = list(made)
    rows = described(crystals, evaluation.workers)
    found = measures(made, rows, test, evaluation, task, lost)
    first = novelty.unique(crystals, evaluation.workers)
    known = novelty.nearest_known(crystals, list(train), evaluation.workers)
    for row, is_first, old in zip(rows, first, known, strict=True):
        row |= {"unique": is_first, "nearest_known": old or ""}
    found["unique"] = results.rate(sum(first), n)
    found["novel"] = results.rate(sum(old is None for old in known), n)
    good = [r["structure_valid"] and r["composition_valid"] and r["unique"] and not r["nearest_known"] for r in rows]
    found["valid_unique_novel"] = results.rate(sum(good), n)
    if evaluation.stability:
        found |= stability_of(made, rows, train, evaluation)
    return found, made, rows


def stability_of(
    made: Crystals, rows: list[dict[str, Any]], train: Crystals, evaluation: EvaluationConfig
) -> dict[str, Estimate]:
    """Relax the first of ``made`` and place them against the partial hull of ``train``; fills their rows.

    Novelty and uniqueness are those of the crystals as they were generated.
    """
    if "formation_energy_per_atom" not in train.properties:
        raise WorkbenchError(
            f"evaluation.stability: got {train.provenance}, which has no formation energies to make a hull of; "
            "expected mp_20 or mpts_52: set evaluation.stability=0."
        )
    hull = stability.PartialHull.of(train)
    logger.info("partial hull: %s", hull.provenance)
    n = min(evaluation.stability, len(made))
    for row in rows:
        row |= dict.fromkeys(("relaxed", "energy_per_atom", "formation_energy_per_atom", "above_partial_hull"), "")
    heights = np.full(n, np.inf)
    judged = stability.judged(list(made[:n]), hull, evaluation.workers)
    for i, (_, verdict) in enumerate(judged):
        rows[i] |= verdict
        if verdict["above_partial_hull"] != "":
            heights[i] = verdict["above_partial_hull"]
    fresh = np.array([row["unique"] and not row["nearest_known"] for row in rows[:n]])
    finite = heights[np.isfinite(heights)]
    return {
        "relaxed": results.rate(sum(bool(verdict["relaxed"]) for _, verdict in judged), n),
        "stable": results.rate(int((heights <= 0.0).sum()), n),
        "metastable": results.rate(int((heights <= stability.METASTABLE).sum()), n),
        "sun": results.rate(int((fresh & (heights <= 0.0)).sum()), n),
        "msun": results.rate(int((fresh & (heights <= stability.METASTABLE)).sum()), n),
        "above_partial_hull": results.mean(finite.tolist(), "eV/atom"),
    }


def prediction(
    model: CrystalModel, config: MaterialsConfig, evaluation: EvaluationConfig, test: Crystals
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Predict structures of test compositions: results, and a row of each."""
    picked = np.sort(np.random.default_rng(0).permutation(len(test))[: evaluation.csp])
    references = list(test.take(picked))
    k = evaluation.k
    types = [reference.atom_types.tolist() for reference in references for _ in range(k)]
    seeds = list(range(evaluation.seed, evaluation.seed + len(types)))
    began = time.perf_counter()
    counts = np.array([len(t) for t in types])
    drawn = generate.draw(model, model.plan(config), counts, seeds, types=types, power=config.power)
    seconds = time.perf_counter() - began
    # what is no crystal at all is a guess that matches nothing
    made = [drawn[i] if ok else None for i, ok in enumerate(drawn.sound)]
    guesses = [made[i : i + k] for i in range(0, len(made), k)]
    sound = [structural(r) and compositional(r.composition) for r in references]
    valid = [
        [ok and g is not None and structural(g) for g in of_one] for ok, of_one in zip(sound, guesses, strict=True)
    ]
    found = matching.matches(guesses, references, valid, evaluation.workers)
    best, best_valid = found.best(), found.best(valid_only=True)
    n = len(references)
    metrics = {
        "match_rate": results.rate(int((~np.isnan(best)).sum()), n),
        "match_rate_valid": results.rate(int((~np.isnan(best_valid)).sum()), n),
        "rmse": results.mean(best[~np.isnan(best)].tolist()),
        "rmse_valid": results.mean(best_valid[~np.isnan(best_valid)].tolist()),
        "crmse": results.mean(np.where(np.isnan(best), matching.STOL, best).tolist()),
        "seconds_per_1000": Estimate(1e3 * seconds / len(made), 0.0, float("nan"), float("nan"), 1, "s"),
    }
    everyone = matching.everyone([g for g in made if g is not None], references, evaluation.workers)
    metrics["metre"] = results.rate(round(everyone["metre"] * n), n)
    rows = [
        {
            "reference": r.name,
            "formula": r.formula,
            "rms": None if np.isnan(d) else round(float(d), 5),
            "valid": bool(any(v)),
        }
        for r, d, v in zip(references, best, valid, strict=True)
    ]
    return {"n": n, "k": k, "metrics": metrics}, rows


def evaluate_and_report(
    saved: Checkpoint, config: MaterialsConfig, evaluation: EvaluationConfig, out: Path, command: str, run: Run
) -> dict[str, Any]:
    """Evaluate, and write results, a row of every crystal, the crystals, tables and ``report.html`` into ``out``."""
    model, _ = restore(saved)
    if torch.cuda.is_available():
        model = model.cuda()
    make_folder(out)
    began = time.perf_counter()
    train = sources.load(config.task, config.data, "train")
    test = sources.load(config.task, config.data, "test")
    found: dict[str, Any] = {
        "checkpoint": "/".join(saved.path.parts[-4:]),
        "step": saved.step,
        "task": config.task.name,
        "data": saved.meta["data"],
        "test": test.provenance,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sampler": {
            "lattice": config.sampler,
            "coords": config.coords,
            "grid": config.grid,
            "steps": config.steps,
            "power": config.power,
        },
        "training_seed": config.train.seed,
        "seed": evaluation.seed,
    }
    made = None
    if evaluation.n:
        found["de_novo"], made, rows = de_novo(model, config, evaluation, train, test)
        _keep(out, made, rows)
        found["test_set"] = of_test_set(test, evaluation, config.task.name)
    if evaluation.csp:
        found["prediction"], rows = prediction(model, config, evaluation, test)
        _write_rows(out / "predictions.csv", rows)
    found |= {
        "commit": results.commit(),
        "trained_at_commit": saved.meta["commit"],
        "command": command,
        "seconds": round(time.perf_counter() - began, 1),
        "hardware": results.hardware(),
    }
    results.write_json(out / "evaluation.json", found)
    page = report.write(out, found, made, test, plain(config), checkpoint.run_of(saved.path))
    _say(found, page)
    return found


def of_files(request: EvaluateConfig) -> dict[str, Any]:
    """Judge crystals from files, whoever made them, against the data of ``request.reference``."""
    evaluation: EvaluationConfig = request
    task, data = TaskConfig(request.reference, max_atoms=ANY_SIZE), DataConfig(request.folder)
    began = time.perf_counter()
    drawn = files.read(Path(request.structures), allow_overlap=True)
    train, test = (sources.load(task, data, split) for split in ("train", "test"))
    metrics, made, rows = judged(drawn, evaluation, task.name, train, test)
    found: dict[str, Any] = {
        "structures": Path(request.structures).name,
        "task": task.name,
        "data": train.provenance,
        "test": test.provenance,
        "de_novo": {"n": len(drawn), "metrics": metrics},
        "test_set": of_test_set(test, replace(evaluation, n=len(drawn)), task.name),
        "commit": results.commit(),
        "command": command("materials.evaluate"),
        "seconds": round(time.perf_counter() - began, 1),
        "hardware": results.hardware(),
    }
    out = make_folder(Path(request.out or f"runs/evaluation-{Path(request.structures).stem}"))
    _keep(out, made, rows)
    results.write_json(out / "evaluation.json", found)
    _say(found, report.write(out, found, made, test, None, None))
    return found


def of_test_set(test: Crystals, evaluation: EvaluationConfig, task: str) -> dict[str, Any]:
    """The same measures of as many crystals of the test set: what a perfect model would get."""
    rows = np.sort(np.random.default_rng(1).permutation(len(test))[: max(evaluation.n, 1)])
    truth = test.take(rows)
    metrics = measures(truth, described(list(truth), evaluation.workers), test, evaluation, task)
    return {"n": len(truth), "metrics": metrics}


def _keep(out: Path, made: Crystals, rows: Sequence[Mapping[str, Any]]) -> None:
    tables.write_parquet(out / "generated.parquet", made)
    _write_rows(out / "structures.csv", rows)


def _say(found: Mapping[str, Any], page: Path) -> None:
    for part in ("de_novo", "prediction"):
        if part in found:
            shown = ", ".join(f"{name} {value}" for name, value in found[part]["metrics"].items())
            logger.info("%s, n = %d: %s", part.replace("_", " "), found[part]["n"], shown)
    logger.info("report: %s", page)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def opened(name: str) -> Checkpoint:
    """The checkpoint that ``name`` means.

    Raises:
        WorkbenchError: there is none, or it is not of crystals.
    """
    if not name:
        raise WorkbenchError(
            "checkpoint: got none; expected checkpoint=<run folder> or one of its checkpoints; python -m "
            "materials.train task=prototypes makes one."
        )
    return checkpoint.find(name).require("materials")


def run(request: EvaluateConfig) -> dict[str, Any]:
    """Evaluate what ``request`` names."""
    if request.structures:
        return of_files(request)
    saved = opened(request.checkpoint)
    own = typed(MaterialsConfig, saved.config)
    config = request.of(own)
    others = {
        name: (getattr(request, name), getattr(own.evaluation, name))
        for name in ("n", "compositions", "csp", "k", "coverage", "stability")
    }
    others |= {name: (getattr(config, name), getattr(own, name)) for name in ("coords", "power")}
    out = Path(request.out) if request.out else checkpoint.evaluation_folder(saved, request, others)
    words = command("materials.evaluate")
    return evaluate_and_report(saved, config, replace(request), out, words, Run(make_folder(out)))


@hydra.main(version_base=None, config_path="conf", config_name="evaluate")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(EvaluateConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
