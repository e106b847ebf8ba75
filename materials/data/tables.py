"""Tables of crystals: the field's CSV files with a column of CIFs, and compact parquet files.

A parquet file has one row per crystal: material_id, cell (a, b, c in Å, three angles in degrees), numbers, frac_coords
(flat), then properties. 22,727 rows are read in a second, where parsing their CIFs takes minutes.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffusion_core.errors import WorkbenchError
from materials import cif
from materials.crystal import Crystal, Crystals
from materials.lattice import matrix, parameters

log = logging.getLogger("workbench.materials")

CRYSTAL_COLUMNS = ("material_id", "cell", "numbers", "frac_coords")


def read(path: Path) -> Crystals:
    """The crystals of a ``.parquet`` or ``.csv`` file.

    Raises:
        WorkbenchError: there is no such file, or it is no such table, or damaged.
    """
    if not path.exists():
        raise WorkbenchError(f"crystals: {path} does not exist; expected a .parquet or .csv file: correct the path.")
    return read_csv(path) if path.suffix == ".csv" else read_parquet(path)


def read_parquet(path: Path) -> Crystals:
    """The crystals of a compact parquet file.

    Raises:
        WorkbenchError: it is damaged or lacks a column.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise WorkbenchError(
            f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:120]}); expected a compact table of "
            "crystals: fetch it again."
        ) from None
    missing = [name for name in CRYSTAL_COLUMNS[1:] if name not in table.column_names]
    if missing:
        raise WorkbenchError(
            f"{path}: got the columns {table.column_names}; expected {', '.join(CRYSTAL_COLUMNS)} and properties."
        )
    numbers = table["numbers"].combine_chunks()
    counts = np.diff(numbers.offsets.to_numpy()).astype(np.int64)
    coords = table["frac_coords"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    cells = table["cell"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    types = numbers.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    if len(coords) != 3 * len(types) or len(cells) != 6 * len(counts):
        raise WorkbenchError(
            f"{path}: got {len(types)} atoms, {len(coords)} coordinates, {len(cells)} cell parameters for "
            f"{len(counts)} crystals; expected 3 an atom and 6 a crystal: the file is damaged."
        )
    properties = {}
    if "material_id" in table.column_names:
        properties["id"] = table["material_id"].to_numpy().astype(str)
    for name in table.column_names:
        if name not in CRYSTAL_COLUMNS:
            column = table[name].to_pandas().to_numpy()
            properties[name] = column.astype(str) if column.dtype == object else column
    return Crystals(types, coords.reshape(-1, 3), matrix(cells.reshape(-1, 6)), counts, properties, path.stem)


def write_parquet(path: Path, crystals: Crystals) -> None:
    """Write a compact parquet file."""
    ends = np.concatenate([[0], np.cumsum(crystals.counts)])
    columns: dict[str, pa.Array] = {
        "material_id": pa.array([str(x) for x in crystals.properties.get("id", np.arange(len(crystals)))]),
        "cell": pa.array(parameters(crystals.lattices).tolist(), pa.list_(pa.float64())),
        "numbers": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(crystals.atom_types, pa.uint8())),
        "frac_coords": pa.ListArray.from_arrays(
            pa.array(3 * ends, pa.int32()), pa.array(crystals.frac_coords.reshape(-1), pa.float64())
        ),
    }
    columns |= {name: pa.array(values) for name, values in crystals.properties.items() if name != "id"}
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.table(columns), partial, compression="zstd")
    partial.replace(path)


def read_csv(path: Path) -> Crystals:
    """The crystals of a CSV file as CDVAE, DiffCSP and FlowMM have them: a column ``cif``, others properties.

    A row whose CIF cannot be read is left out with a warning; the rest is kept.

    Raises:
        WorkbenchError: no column ``cif``, a row that is cut short, or no row that can be read.
    """
    # their CIFs are longer than the module's default limit
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = path.read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or "cif" not in rows[0]:
        raise WorkbenchError(
            f"{path}: got the columns {list(rows[0]) if rows else []}; expected cif and properties, as in CDVAE's "
            "and DiffCSP's tables."
        )
    short = [i for i, row in enumerate(rows) if any(value is None for value in row.values())]
    if short or text.count('"') % 2:
        where = f"row {short[0] + 2}" if short else "its last row"
        raise WorkbenchError(f"{path}: {where} is cut short; expected all of its columns: fetch the file again.")
    crystals: list[Crystal] = []
    failed: list[str] = []
    for i, row in enumerate(rows):
        try:
            crystal = cif.parse(row["cif"])
        except WorkbenchError as error:
            failed.append(f"row {i + 2}: {error}")
            continue
        own = {name: _value(value) for name, value in row.items() if name not in ("cif", "")}
        crystals.append(crystal.named(id=str(own.pop("material_id", i)), **own))
    if failed:
        if not crystals:
            raise WorkbenchError(f"{path}: none of {len(rows)} rows can be read, the first: {failed[0]}")
        log.warning("%s: left out %d of %d rows, the first: %s", path, len(failed), len(rows), failed[0])
    return Crystals.of(crystals, path.stem)


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def merged(parts: Sequence[Crystals]) -> Crystals:
    """One after the other."""
    whole, *others = parts
    for other in others:
        whole = whole.joined(other)
    return whole
