"""Sources: the crystals that a task means, found or made. One is never put in the place of another.

The official tables (``train.csv``, ``val.csv``, ``test.csv`` of CDVAE and DiffCSP) are read where a user has them; the
folder that ``WORKBENCH_DATA`` names has parts of them, and some are downloaded; every provenance says which.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from diffusion_core import download
from diffusion_core.errors import WorkbenchError
from materials.config import DataConfig, TaskConfig
from materials.crystal import Crystals
from materials.data import tables

log = logging.getLogger("workbench.materials")
Split = Literal["train", "val", "test"]

PARTS: dict[str, dict[Split, tuple[str, ...]]] = {
    "perov_5": {"train": ("perov_5_val", "perov_5_train_subset"), "test": ("perov_5_test",)},
    "carbon_24": {"train": ("carbon_24_val",), "test": ("carbon_24_test",)},
    "mp_20": {"train": ("mp_mix_20_train",), "test": ("mp_20_test_bin_ter",)},
}
"""What the shared folder has of a task; where there is no "val", `HELD_OUT` of the training crystals are."""

HELD_OUT = 0.05
CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/f857f598d6f6cca5dc1ea0582d228f12dcc2c2ea/data"
DOWNLOADS: dict[tuple[str, Split], tuple[str, str]] = {
    ("perov_5", "train"): ("val.csv", "326f401219901270374b71e2faff63df3a29a99fd26f469993b9f476b693daf2"),
    ("perov_5", "test"): ("test.csv", "a85878c685037f0a578257f6d4fcdde00e968dbab73c5f1e90ecef65218513f6"),
    ("carbon_24", "test"): ("test.csv", "386b17c08816f434818d51e46687bf72ff3f92348f3ba24823e4758f1fe8a969"),
}
"""What is fetched where nothing is at hand: file and its sha256. Of the official training tables none is known, so that
`perov_5` learns from the validation table then, and says so."""
HOME = "https://github.com/txie-93/cdvae/tree/main/data (perov_5, carbon_24, mp_20), https://github.com/jiaor17/DiffCSP"
OFFICIAL = {"perov_5": 11_356, "carbon_24": 6_091, "mp_20": 27_136, "mpts_52": 27_380}
"""Rows of the official training tables. Source: Jiao et al. 2023, section 5.1 (arXiv 2309.04475)."""


def load(task: TaskConfig, data: DataConfig, split: Split) -> Crystals:
    """The crystals of a split; those with more atoms than the task has places for are left out, and counted.

    Raises:
        WorkbenchError: they are not at hand, or damaged.
    """
    if data.folder:
        found = _of_folder(Path(data.folder).expanduser(), split)
    elif task.name == "prototypes":
        from materials.data import prototypes

        found = prototypes.split(prototypes.load(data.n, data.seed), split)
    else:
        found = _of_parts(task.name, split)
    fits = found.counts <= task.max_atoms
    if not fits.all():
        log.warning("%s: left out %d crystals of more than %d atoms", task.name, int((~fits).sum()), task.max_atoms)
        found = found.take(np.flatnonzero(fits))
    return found


def shared() -> Path | None:
    """The materials' part of the folder that ``WORKBENCH_DATA`` names; None if there is none."""
    named = os.environ.get("WORKBENCH_DATA")
    folder = Path(named) / "materials" if named else None
    return folder if folder is not None and folder.is_dir() else None


def _of_folder(folder: Path, split: Split) -> Crystals:
    for suffix in (".csv", ".parquet"):
        if (folder / (split + suffix)).exists():
            found = tables.read(folder / (split + suffix))
            return _said(found, f"{folder.name}/{split}{suffix}")
    if split == "val" and any((folder / ("train" + suffix)).exists() for suffix in (".csv", ".parquet")):
        return _held_out(_of_folder(folder, "train"), "val")
    raise WorkbenchError(
        f"data.folder: {folder} holds no {split}.csv or {split}.parquet; expected tables as CDVAE and DiffCSP have "
        f"them: fetch them from {HOME}."
    )


def _of_parts(name: str, split: Split) -> Crystals:
    parts, folder = PARTS.get(name), shared()
    if folder is not None and parts is not None:
        names = parts.get(split) or parts["train"]
        missing = [part for part in names if not (folder / f"{part}.parquet").exists()]
        if not missing:
            found = tables.merged([tables.read(folder / f"{part}.parquet") for part in names])
            if split != "test" and "val" not in parts:
                found = _held_out(found, split)
            return _said(found, " + ".join(names))
    if (name, split) in DOWNLOADS:
        file, digest = DOWNLOADS[name, split]
        path = fetched(download.cache("materials") / name / file, f"{CDVAE}/{name}/{file}", digest)
        return _said(tables.read(path), f"{name}/{file} of CDVAE, sha256 {digest[:12]}")
    raise WorkbenchError(
        f"{name}: its {split} crystals are not at hand; expected data.folder=<folder of train.csv, val.csv, test.csv> "
        f"from {HOME}, or WORKBENCH_DATA to name a folder that has materials/."
    )


def fetched(path: Path, url: str, digest: str) -> Path:
    """A published file at ``path``, downloaded if it is not there.

    Raises:
        WorkbenchError: there is none and no network, or it is not the published file.
    """
    if not path.exists():
        try:
            download.retrieve(url, path, path.name)
        except Exception as error:  # requests, urllib3 and the disk have each their own
            raise WorkbenchError(
                f"{path.parent.name}: not at hand, and the download failed ({type(error).__name__}); expected {url}: "
                f"run where there is a network, copy the file to {path}, or name a folder: data.folder=... with tables "
                f"from {HOME}, or WORKBENCH_DATA."
            ) from error
    if (got := download.file_sha256(path)) != digest:
        raise WorkbenchError(
            f"{path}: got sha256 {got}; expected {digest}: this is not the published file; it was "
            f"{download.put_aside(path)}; run again to download it."
        )
    return path


def _held_out(crystals: Crystals, split: Split) -> Crystals:
    """A fixed twentieth for "val", the rest for "train"."""
    order = np.random.default_rng(0).permutation(len(crystals))
    n = max(1, round(HELD_OUT * len(crystals)))
    return crystals.take(np.sort(order[:n] if split == "val" else order[n:]))


def _said(crystals: Crystals, parts: str) -> Crystals:
    said = f"{parts}: {len(crystals)} crystals"
    return Crystals(
        crystals.atom_types, crystals.frac_coords, crystals.lattices, crystals.counts, crystals.properties, said
    )


def formulas(crystals: Crystals) -> Sequence[str]:
    """Reduced formulas."""
    return [crystal.formula for crystal in crystals]
