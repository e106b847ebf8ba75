"""Make, look at and convert crystals: `python -m materials.data <verb> key=value ...`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import MISSING

from diffusion_core.errors import WorkbenchError, require_at_least
from diffusion_core.verbs import Verb, run
from materials import elements, files
from materials.crystal import Crystals
from materials.data import prototypes, tables
from materials.properties import CLOSED_FORM, values

PROGRAM = "python -m materials.data"
USAGE = """usage: python -m materials.data <verb> key=value ...

  prototypes out=made.parquet n=20000 seed=0
           crystals made by decorating AFLOW's prototypes: synthetic, seeded, with exact properties
           overwrite=false
  inspect  FILE                      a file or a folder: .cif, POSCAR, .vasp, .extxyz, .json, .db (ASE), .csv (CDVAE),
                                     .parquet; what cannot be read is told, and the rest is shown
  convert  FILE OUT                  OUT: .parquet, .extxyz, .json or .db, or a folder with format=cif or format=poscar
           allow_overlap=false       keep crystals whose sites are nearer than 0.5 Å
           overwrite=false
"""


@dataclass
class Prototypes:
    """Options of `make`; see USAGE."""

    out: str = MISSING
    n: int = 20_000
    seed: int = 0
    overwrite: bool = False


@dataclass
class Inspect:
    """Options of `inspect`."""

    file: str = MISSING


@dataclass
class Convert:
    """Options of `convert`."""

    file: str = MISSING
    out: str = MISSING
    format: str = ""
    allow_overlap: bool = False
    overwrite: bool = False


def make(options: Prototypes) -> None:
    """Decorate prototypes and save them."""
    require_at_least(1, {"prototypes: n": options.n})
    require_at_least(0, {"prototypes: seed": options.seed})
    out = _free(Path(options.out), options.overwrite)
    if out.suffix != ".parquet":
        raise WorkbenchError(f"prototypes: got out={out.name}; expected a name that ends in .parquet.")
    made = prototypes.load(options.n, options.seed)
    tables.write_parquet(out, made)
    print(f"{out}: {made.provenance}, {out.stat().st_size:,} bytes")


def inspect(options: Inspect) -> None:
    """Print what a file holds."""
    path = Path(options.file).expanduser()
    found = files.read(path, allow_overlap=True)
    print(f"{path}: {len(found)} crystals\n")
    columns = {"atoms": found.counts.astype(float)} | {name: values(found, name) for name in CLOSED_FORM}
    columns |= {n: c.astype(float) for n, c in found.properties.items() if c.dtype.kind in "fiub"}
    print(f"{'':<30}{'known':>8}{'smallest':>12}{'median':>12}{'largest':>12}")
    for name, column in columns.items():
        known = column[np.isfinite(column)]
        marks = "".join(f"{v:>12.4g}" for v in np.quantile(known, [0.0, 0.5, 1.0])) if len(known) else ""
        print(f"{name:<30}{len(known):>8}{marks}")
    often = Counter(found.atom_types.tolist()).most_common(12)
    print("\nmost frequent: " + ", ".join(f"{elements.SYMBOLS[z]} {n}" for z, n in often))


def convert(options: Convert) -> None:
    """Rewrite crystals in another format."""
    suffixes = {suffix: name for name, suffix in files.FORMATS.items()}
    path, out = Path(options.file).expanduser(), Path(options.out)
    if options.format:
        files.require_formats([options.format])
    elif out.suffix not in suffixes or out.suffix in (".cif", ".vasp"):
        raise WorkbenchError(
            f"convert: got OUT={out.name}; expected a name that ends in .parquet, .extxyz, .json or .db, or a folder "
            "with format=cif or format=poscar."
        )
    _free(out, options.overwrite)
    found: Crystals = files.read(path, options.allow_overlap)
    folder, name = (out, "crystals") if options.format else (out.parent, out.stem)
    written = files.write(list(found), folder, [options.format or suffixes[out.suffix]], name)
    print(f"{out}: {len(found)} crystals in {len(written)} file{'s' if len(written) > 1 else ''}")


def _free(out: Path, overwrite: bool) -> Path:
    if out.exists() and not overwrite:
        raise WorkbenchError(f"{out}: is there already; expected a new name: add overwrite=true to replace it.")
    return out


VERBS = {
    "prototypes": Verb(Prototypes, make),
    "inspect": Verb(Inspect, inspect, 1),
    "convert": Verb(Convert, convert, 2),
}


def main(words: list[str]) -> int:
    """Run one verb; 0 if it went well, 2 after a mistake of the user's, 130 after Ctrl-C."""
    return run(PROGRAM, USAGE, VERBS, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
