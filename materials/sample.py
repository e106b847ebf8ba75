"""Make crystals: ``python -m materials.sample checkpoint=<run> formula=SrTiO3 n=64 format=[cif,extxyz] out=...``.

From nothing, of a formula, in a chemical system, with wanted properties, or from a structure that is at hand. Writes
the files, ``manifest.csv`` with a row for every structure, and a picture.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from diffusion_core.configure import build, typed
from diffusion_core.correct import Sweep
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch, make_folder, one_line_errors
from materials import elements, files, generate, report
from materials.config import MaterialsConfig, SampleConfig
from materials.crystal import Crystal, Crystals
from materials.data import sources
from materials.evaluate import opened
from materials.experts import product
from materials.metrics import novelty, stability
from materials.metrics.describe import describe
from materials.models import CrystalModel, restore

logger = logging.getLogger("workbench.materials")


def run(request: SampleConfig) -> tuple[Path, list[Crystal]]:
    """Draw what ``request`` asks for and write it; returns the folder and the crystals.

    Raises:
        WorkbenchError: what is asked for does not fit the model.
    """
    saved = opened(request.checkpoint)
    if request.relax:
        stability.require()
    files.require_formats(request.format)
    config = request.of(typed(MaterialsConfig, saved.config))
    models = [restore(one)[0] for one in (saved, *map(opened, request.experts))]
    if torch.cuda.is_available():
        models = [model.cuda() for model in models]
    drawn = _drawn(request, config, models)
    whole = np.flatnonzero(drawn.sound)
    if len(whole) < len(drawn):
        logger.warning("%d of %d have no volume or are not finite: left out", len(drawn) - len(whole), len(drawn))
    if not len(whole):
        raise WorkbenchError(
            f"sample: got no crystal at all among {len(drawn)}; expected some: train the model longer."
        )
    seeds = [request.seed + int(i) for i in whole]
    crystals = [c.named(id=f"{c.formula}-{seed}") for c, seed in zip(drawn.take(whole), seeds, strict=True)]
    out = make_folder(Path(request.out or f"runs/crystals-{config.task.name}"))
    rows = [{"file": i, "seed": seed, **describe(c)} for i, (c, seed) in enumerate(zip(crystals, seeds, strict=True))]
    crystals = _judged(crystals, rows, request, config)
    files.write(crystals, out, request.format)
    with (out / files.MANIFEST).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if request.picture:
        report.picture(crystals[: request.picture], out / "crystals.png")
    valid = sum(bool(row["structure_valid"] and row["composition_valid"]) for row in rows)
    logger.info("%d crystals, %d of them valid; files, manifest.csv and picture are in %s", len(rows), valid, out)
    return out, crystals


def _drawn(request: SampleConfig, config: MaterialsConfig, models: Sequence[CrystalModel]) -> Crystals:
    model = models[0]
    seeds = list(range(request.seed, request.seed + request.n))
    types = _cells(request) if request.formula else None
    expert = _expert(request, models, types)
    corrector = Sweep(request.sweeps, request.sweep_step) if request.sweeps else None
    if request.like:
        found = files.read(Path(request.like))
        if len(found) != 1:
            raise WorkbenchError(f"like: got {len(found)} crystals in {request.like}; expected one.")
        kept = [elements.number(symbol) for symbol in request.keep]
        grid = build(config.grid, **{"n": config.steps, "start": request.strength})
        plan = model.plan(config, grid)
        return generate.redraw(model, plan, found[0], seeds, kept, expert)
    plan = model.plan(config)
    if types is not None:
        counts = np.array([len(t) for t in types])
        return generate.draw(model, plan, counts, seeds, expert, types, config.power, corrector=corrector)
    counts = generate.sizes(model, request.n, request.seed)
    if request.atoms:
        counts = np.full(request.n, request.atoms)
    return generate.draw(model, plan, counts, seeds, expert, power=config.power, corrector=corrector)


def _cells(request: SampleConfig) -> list[list[int]]:
    """The atoms of each crystal: the formula, times the units that are asked for."""
    whole = elements.parse(request.formula)
    units = range(request.z[0], request.z[-1] + 1)
    return [elements.atoms({e: n * units[i % len(units)] for e, n in whole.items()}) for i in range(request.n)]


def _expert(
    request: SampleConfig, models: Sequence[CrystalModel], types: Sequence[Sequence[int]] | None
) -> generate.Factor | None:
    """Properties, ranges and the chemical system; None: the model alone."""
    allowed = None
    if request.chemical_system:
        system = [elements.number(symbol) for symbol in request.chemical_system.split("-") if symbol]
        allowed = torch.zeros(elements.CLASSES, dtype=torch.bool)
        allowed[[z - 1 for z in system if z <= elements.CLASSES]] = True
    known = {label for model in models for label in model.labels}
    rng = np.random.default_rng([request.seed, 11])
    targets = {name: np.full(request.n, value) for name, value in request.wanted.items()}
    # what a model can be told, it is told a value of the range; for the rest there are energies
    between = {name: (limits[0], limits[-1]) for name, limits in request.between.items()}
    targets |= {name: rng.uniform(*limits, request.n) for name, limits in between.items() if name in known}
    energies = {name: limits for name, limits in between.items() if name not in known}
    if not targets and not energies and allowed is None:
        return None
    return product(models, targets, request.guidance, energies, allowed=allowed, types=types)


def _judged(
    crystals: list[Crystal], rows: list[dict[str, Any]], request: SampleConfig, config: MaterialsConfig
) -> list[Crystal]:
    """Add what is known of each to its row; the relaxed crystals, where that was asked for."""
    try:
        train = sources.load(config.task, config.data, "train")
    except WorkbenchError as error:
        logger.warning("nothing is said of what is known, nor of a hull: %s", error)
        train = None
    known: Sequence[str | None] = [None] * len(crystals)
    if train is not None:
        known = novelty.nearest_known(crystals, list(train))
    for row, name in zip(rows, known, strict=True):
        row["nearest_known"] = "not looked for" if train is None else name or ""
    if not request.relax:
        return crystals
    hull = None
    if train is not None and "formation_energy_per_atom" in train.properties:
        hull = stability.PartialHull.of(train)
        logger.info("partial hull: %s", hull.provenance)
    judged = stability.judged(crystals, hull)
    for row, (_, verdict) in zip(rows, judged, strict=True):
        row |= verdict
    return [end for end, _ in judged]


@hydra.main(version_base=None, config_path="conf", config_name="sample")
@one_line_errors()
def _hydra_main(values: DictConfig) -> None:
    run(typed(SampleConfig, values))


if __name__ == "__main__":
    launch(_hydra_main)
