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
from jaxtyping import Int64
from omegaconf import DictConfig
from torch import Tensor

from diffusion_core.configure import build, typed
from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch, make_folder, one_line_errors
from materials import elements, files, generate, report
from materials.config import MaterialsConfig, SampleConfig
from materials.crystal import Crystal, Crystals
from materials.data import sources
from materials.evaluate import opened
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
    model, _ = restore(saved)
    if torch.cuda.is_available():
        model = model.cuda()
    drawn = _drawn(request, config, model)
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
    with (out / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if request.picture:
        report.picture(crystals[: request.picture], out / "crystals.png")
    valid = sum(bool(row["structure_valid"] and row["composition_valid"]) for row in rows)
    logger.info("%d crystals, %d of them valid; files, manifest.csv and picture are in %s", len(rows), valid, out)
    return out, crystals


def _drawn(request: SampleConfig, config: MaterialsConfig, model: CrystalModel) -> Crystals:
    seeds = list(range(request.seed, request.seed + request.n))
    types = _cells(request) if request.formula else None
    expert = _expert(request, model, types)
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
        return generate.draw(model, plan, counts, seeds, expert, types, config.power)
    counts = generate.sizes(model, request.n, request.seed)
    if request.atoms:
        counts = np.full(request.n, request.atoms)
    return generate.draw(model, plan, counts, seeds, expert, power=config.power)


def _cells(request: SampleConfig) -> list[list[int]]:
    """The atoms of each crystal: the formula, times the units that are asked for."""
    whole = elements.parse(request.formula)
    units = range(request.z[0], request.z[-1] + 1)
    return [elements.atoms({e: n * units[i % len(units)] for e, n in whole.items()}) for i in range(request.n)]


def _expert(
    request: SampleConfig, model: CrystalModel, types: Sequence[Sequence[int]] | None
) -> generate.Factor | None:
    """Guidance and the chemical system; None: the model alone."""
    system = [elements.number(symbol) for symbol in request.chemical_system.split("-") if symbol]
    if not system and not request.wanted:
        return None
    allowed = torch.zeros(elements.CLASSES, dtype=torch.bool)
    allowed[[z - 1 for z in system if z <= elements.CLASSES]] = True

    def expert(rows: Int64[np.ndarray, " rows"], counts: Int64[Tensor, " rows"]) -> Denoiser:
        own = None if types is None else [types[i] for i in rows]
        denoiser: Denoiser = model.at(counts, types=own)
        if request.wanted:
            denoiser = denoiser * (model.at(counts, request.wanted, own) / denoiser) ** request.guidance
        return model.within(denoiser, allowed) if system else denoiser

    return expert


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
