"""Files of crystals: CIF, POSCAR, extxyz, JSON and ASE's databases, one crystal or many.

What is read is checked; of many, one that cannot be read is reported and the rest is kept.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.durable import write_text
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import make_folder
from materials import cif
from materials.adapters import from_ase, from_pymatgen, to_ase, to_pymatgen
from materials.crystal import Crystal, Crystals
from materials.data import tables
from materials.metrics.validity import SMALLEST_DISTANCE, closest

log = logging.getLogger("workbench.materials")

FORMATS = {
    "cif": ".cif",
    "poscar": ".vasp",
    "extxyz": ".extxyz",
    "json": ".json",
    "asedb": ".db",
    "parquet": ".parquet",
}
"""Name -> suffix. A folder gets one CIF or POSCAR per crystal; the others hold many in one file."""
MANIFEST = "manifest.csv"
READ = (".cif", ".vasp", ".poscar", ".extxyz", ".xyz", ".json", ".db", ".csv", ".parquet")


def read(path: Path, allow_overlap: bool = False) -> Crystals:
    """The crystals of a file, or of all such files in a folder; a file's name becomes the name of its only crystal.

    Args:
        allow_overlap: accept sites nearer than 0.5 Å, as an evaluation of generated crystals must.

    Raises:
        WorkbenchError: there is nothing that can be read; the message tells the first reason.
    """
    paths = [path]
    if path.is_dir():
        # a folder of samples has a table of them beside them
        paths = sorted(p for p in path.iterdir() if _suffix(p) in READ and p.name != MANIFEST)
    if not paths or not path.exists():
        raise WorkbenchError(
            f"crystals: {path} {'has no such files' if path.exists() else 'does not exist'}; expected a file or a "
            f"folder of files of {', '.join(READ)}."
        )
    found: list[Crystal] = []
    failed: list[str] = []
    for each in paths:
        try:
            for i, crystal in enumerate(_read(each)):
                try:
                    if not allow_overlap:
                        require_apart(crystal)
                    found.append(crystal)
                except WorkbenchError as error:
                    failed.append(f"{each.name}, crystal {i + 1}: {error}")
        except WorkbenchError as error:
            failed.append(f"{each.name}: {error}")
    if not found:
        raise WorkbenchError(failed[0] if failed else f"{path}: got no crystals; expected at least one.")
    if failed:
        more = "\n".join(failed[:5])
        log.warning("%s: left out %d of %d crystals:\n%s", path, len(failed), len(failed) + len(found), more)
    return Crystals.of(found, path.name)


def require_apart(crystal: Crystal) -> None:
    """Refuse sites that overlap.

    Raises:
        WorkbenchError: two are nearer than 0.5 Å.
    """
    if closest(crystal) < SMALLEST_DISTANCE:
        distances = crystal.distances() + 1e9 * np.eye(len(crystal))
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        raise WorkbenchError(
            f"crystal {crystal.name}: sites {i + 1} and {j + 1} are {distances[i, j]:.3f} Å apart; expected at least "
            f"{SMALLEST_DISTANCE} Å: remove the duplicate."
        )


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".vasp" if name.startswith(("poscar", "contcar")) else path.suffix.lower()


def _read(path: Path) -> Iterator[Crystal]:
    suffix = _suffix(path)
    if suffix not in READ:
        raise WorkbenchError(f"{path}: got a {suffix or 'nameless'} file; expected one of {', '.join(READ)}.")
    if suffix in (".csv", ".parquet"):
        yield from tables.read(path)
    elif suffix == ".cif":
        yield cif.parse(_text(path)).named(id=path.stem)
    elif suffix in (".vasp", ".poscar"):
        yield _poscar(path)
    elif suffix == ".json":
        yield from _json(path)
    else:
        yield from _ase(path)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkbenchError(f"{path}: cannot be read ({error}); expected a text file.") from None


def _poscar(path: Path) -> Crystal:
    from pymatgen.io.vasp import Poscar

    try:
        structure = Poscar.from_str(_text(path)).structure
    except Exception as error:  # its parser raises whatever the text makes it stumble over
        raise WorkbenchError(
            f"{path.name}: cannot be read as POSCAR ({' '.join(str(error).split())[:120]}); expected VASP 5's format "
            "with a line of element symbols."
        ) from None
    return from_pymatgen(structure, id=path.stem)


def _json(path: Path) -> Iterator[Crystal]:
    from pymatgen.core import Structure

    try:
        content = json.loads(_text(path))
        entries = content if isinstance(content, list) else [content]
        for i, entry in enumerate(entries):
            properties = {k: v for k, v in (entry.get("properties") or {}).items() if isinstance(v, int | float | str)}
            yield from_pymatgen(Structure.from_dict(entry), **{"id": f"{path.stem}-{i}", **properties})
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise WorkbenchError(
            f"{path.name}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]}); expected "
            "pymatgen's JSON of a structure, or a list of them."
        ) from None


def _ase(path: Path) -> Iterator[Crystal]:
    import ase.io

    try:
        if path.suffix == ".db":
            import ase.db

            with ase.db.connect(path) as database:
                images = [row.toatoms(add_additional_information=True) for row in database.select()]
            for i, atoms in enumerate(images):
                own = atoms.info.pop("key_value_pairs", {}) | atoms.info.pop("data", {})
                atoms.info.pop("unique_id", None)
                named = {k: v for k, v in own.items() if isinstance(v, int | float | str)}
                yield from_ase(atoms, **{"id": f"{path.stem}-{i}", **_renamed(named, "ident", "id")})
            return
        images = list(ase.io.iread(path, index=":"))
    except WorkbenchError:
        raise
    except Exception as error:  # every format has its own
        raise WorkbenchError(
            f"{path.name}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:120]}); expected "
            "atoms with a cell and pbc."
        ) from None
    for i, atoms in enumerate(images):
        yield from_ase(atoms, id=str(atoms.info.get("id", f"{path.stem}-{i}")))


def require_formats(formats: Sequence[str]) -> None:
    """Refuse what cannot be written.

    Raises:
        WorkbenchError: an unknown format.
    """
    if unknown := [f for f in formats if f not in FORMATS]:
        raise WorkbenchError(f"format: got {', '.join(unknown)}; expected some of {', '.join(FORMATS)}.")


def write(crystals: Sequence[Crystal], out: Path, formats: Sequence[str], name: str = "crystals") -> list[Path]:
    """Write ``crystals`` into the folder ``out`` in each of ``formats``; returns the files.

    CIFs and POSCARs are one file each, named by their place and formula; sites by element, in P1.

    Raises:
        WorkbenchError: an unknown format.
    """
    require_formats(formats)
    make_folder(out)
    written: list[Path] = []
    for each in formats:
        if each in ("cif", "poscar"):
            folder = make_folder(out / each)
            for i, crystal in enumerate(crystals):
                path = folder / f"{i:05d}_{_word(crystal.formula)}{FORMATS[each]}"
                write_text(path, cif.render(crystal) if each == "cif" else _as_poscar(crystal))
                written.append(path)
            continue
        path = out / (name + FORMATS[each])
        if each == "parquet":
            tables.write_parquet(path, Crystals.of(crystals))
        elif each == "json":
            write_text(path, json.dumps([_as_json(crystal) for crystal in crystals]))
        else:
            _write_ase(path, crystals, each)
        written.append(path)
    return written


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text)


def _as_poscar(crystal: Crystal) -> str:
    from pymatgen.io.vasp import Poscar

    return str(Poscar(to_pymatgen(crystal).get_sorted_structure()).get_str(significant_figures=8))


def _as_json(crystal: Crystal) -> dict[str, Any]:
    plain = {k: v for k, v in crystal.properties.items() if isinstance(v, int | float | str)}
    return {**to_pymatgen(crystal).as_dict(), "properties": plain}


def _write_ase(path: Path, crystals: Sequence[Crystal], kind: str) -> None:
    import ase.db
    import ase.io

    partial = path.with_name(f"partial-{path.name}")
    partial.unlink(missing_ok=True)
    if kind == "extxyz":
        ase.io.write(partial, [to_ase(crystal) for crystal in crystals], format="extxyz")
    else:
        with ase.db.connect(partial) as database:
            for crystal in crystals:
                atoms = to_ase(crystal)
                own = _renamed(atoms.info, "id", "ident")
                atoms.info = {}
                # its keys may not be words that it has a meaning for
                database.write(atoms, data=own)
    partial.replace(path)


def _renamed(values: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}
