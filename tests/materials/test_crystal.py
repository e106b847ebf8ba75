"""Crystals, lattices, formulas and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from diffusion_core.errors import WorkbenchError
from materials import cif, elements, files, lattice
from materials.adapters import from_ase, from_pymatgen, to_ase, to_pymatgen
from materials.crystal import Crystal, Crystals
from materials.data import tables
from materials.data.__main__ import main


def cells(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(2.0, 12.0, (n, 3)), rng.uniform(60.0, 110.0, (n, 3))], 1)


def test_cell_parameters_and_matrices_invert_one_another():
    assert np.abs(lattice.parameters(lattice.matrix(cells())) - cells()).max() < 1e-9


def test_the_vector_of_a_lattice_forgets_its_rotation_and_nothing_else():
    matrices = lattice.matrix(cells())
    turned = matrices @ Rotation.random(len(matrices), rng=np.random.default_rng(1)).as_matrix()
    vector = lattice.to_vector(torch.as_tensor(matrices))
    assert torch.allclose(vector, lattice.to_vector(torch.as_tensor(turned)), atol=1e-12)
    back = lattice.parameters(lattice.to_lattice(vector).numpy())
    assert np.abs(back - cells()).max() < 1e-8
    volumes = torch.as_tensor(np.abs(np.linalg.det(matrices)))
    assert torch.allclose(lattice.log_volume(vector), volumes.log(), atol=1e-12)


def test_formulas_are_read_as_pymatgen_reads_them():
    from pymatgen.core import Composition

    for text in ("SrTiO3", "Ca(OH)2", "Al2(SO4)3", "Fe3O4", "K2(Al2(Si6O16)2)3"):
        wanted = {e.Z: int(n) for e, n in Composition(text).items()}
        assert elements.parse(text) == dict(sorted(wanted.items()))


@pytest.mark.parametrize("text", ["", "SrTiQ3", "Ca(OH", "NaCl)", "Na0.5Cl", "Na0Cl", "x"])
def test_a_formula_that_is_none_is_refused(text):
    with pytest.raises(WorkbenchError, match="formula: got"):
        elements.parse(text)


def test_density_is_that_of_rock_salt(salt):
    assert salt.density == pytest.approx(2.16, abs=0.01)
    assert salt.formula == "NaCl"
    assert salt.distances()[0, 4] == pytest.approx(2.82)


def test_pymatgen_and_ase_there_and_back(decorated):
    for crystal in decorated[:20]:
        for back in (from_pymatgen(to_pymatgen(crystal)), from_ase(to_ase(crystal))):
            assert (back.atom_types == crystal.atom_types).all()
            d = back.frac_coords - crystal.frac_coords
            assert np.abs(d - d.round()).max() < 1e-12
            assert np.abs(back.lattice - crystal.lattice).max() < 1e-12


def _ordered(crystal):
    order = np.lexsort((*(crystal.frac_coords.round(4) % 1.0).T, crystal.atom_types))
    return crystal.atom_types[order], crystal.frac_coords[order]


@pytest.mark.parametrize("kind", list(files.FORMATS))
def test_every_format_keeps_the_crystals(kind, decorated, tmp_path):
    some = decorated[:8]
    written = files.write(list(some), tmp_path, [kind])
    found = files.read(written[0].parent if kind in ("cif", "poscar") else written[0])
    assert len(found) == len(some)
    for a, b in zip(some, found, strict=True):
        (types, coords), (other, places) = _ordered(a), _ordered(b)
        assert (types == other).all()
        d = coords - places
        assert np.abs(d - d.round()).max() < 1e-6
        assert np.abs(a.cell - b.cell).max() < 1e-6


def test_the_fast_cif_reader_agrees_with_pymatgen(decorated):
    from pymatgen.io.cif import CifParser, CifWriter

    for crystal in decorated[:10]:
        for text in (cif.render(crystal), str(CifWriter(to_pymatgen(crystal)))):
            quick = cif.fast(text)
            assert quick is not None
            slow = from_pymatgen(CifParser.from_str(text).parse_structures(primitive=False)[0])
            (types, coords), (other, places) = _ordered(quick), _ordered(slow)
            assert (types == other).all()
            d = coords - places
            # pymatgen moves what is within 1e-4 of a third to the third
            assert np.abs(d - d.round()).max() < 1e-4


def test_a_symmetric_cif_goes_to_pymatgen(salt):
    from pymatgen.io.cif import CifWriter

    text = str(CifWriter(to_pymatgen(salt), symprec=0.01))
    assert cif.fast(text) is None
    assert len(cif.parse(text)) == 8


def test_bad_files_have_one_clear_error(salt, tmp_path):
    text = cif.render(salt)
    with pytest.raises(WorkbenchError, match=r"occupancy of 0\.5"):
        cif.parse(text.replace("0.00000000  1\n", "0.00000000  0.5\n", 1))
    with pytest.raises(WorkbenchError, match="CIF: cannot be read"):
        cif.parse("data_x\n_cell_length_a 3\n")
    with pytest.raises(WorkbenchError, match="cell of"):
        Crystal(np.array([1]), np.zeros((1, 3)), np.ones((3, 3)))
    with pytest.raises(WorkbenchError, match="atomic numbers"):
        Crystal(np.array([119]), np.zeros((1, 3)), np.eye(3))
    overlapping = Crystal(np.array([11, 17]), np.array([[0, 0, 0], [0.01, 0, 0]]), 5.0 * np.eye(3))
    (tmp_path / "a.cif").write_text(cif.render(overlapping))
    with pytest.raises(WorkbenchError, match=r"sites 1 and 2 are 0\.050 Å apart"):
        files.read(tmp_path / "a.cif")
    assert len(files.read(tmp_path / "a.cif", allow_overlap=True)) == 1


def test_one_bad_file_of_many_is_left_out(decorated, tmp_path, caplog):
    files.write(list(decorated[:5]), tmp_path, ["cif"])
    (tmp_path / "cif" / "00002_bad.cif").write_text("nonsense")
    assert len(files.read(tmp_path / "cif")) == 5
    assert "left out 1 of 6" in caplog.text


def test_tables_of_cifs_and_a_row_that_is_cut_short(decorated, tmp_path, caplog):
    import csv

    path = tmp_path / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "cif", "heat"])
        writer.writerows([[f"m{i}", cif.render(c), i / 2] for i, c in enumerate(decorated[:6])])
        writer.writerow(["m6", "nonsense", 3])
    found = tables.read(path)
    assert list(found.properties["id"]) == [f"m{i}" for i in range(6)]
    assert list(found.properties["heat"]) == [i / 2 for i in range(6)]
    assert "left out 1 of 7" in caplog.text
    path.write_text(path.read_text()[:-400])
    with pytest.raises(WorkbenchError, match="cut short"):
        tables.read(path)


def test_taking_rows_and_joining(decorated):
    rows = np.array([5, 1, 40])
    taken = decorated.take(rows)
    assert [c.formula for c in taken] == [decorated[int(r)].formula for r in rows]
    assert len(taken.joined(decorated)) == 63
    assert Crystals.of(list(decorated)).properties["prototype"].tolist() == decorated.properties["prototype"].tolist()


def test_the_command_line_converts_inspects_and_refuses(tmp_path, decorated, capsys):
    def told(*words):
        return main([str(word) for word in words]), capsys.readouterr()

    few = decorated.take(np.arange(6))
    files.write(list(few), tmp_path, ["parquet"])
    status, said = told("convert", tmp_path / "crystals.parquet", tmp_path / "all.extxyz")
    assert status == 0 and "6 crystals in 1 file" in said.out
    status, _ = told("convert", tmp_path / "all.extxyz", tmp_path / "folder", "format=poscar")
    assert status == 0 and len(list((tmp_path / "folder" / "poscar").iterdir())) == 6
    back = files.read(tmp_path / "folder" / "poscar")
    assert sorted(c.formula for c in back) == sorted(c.formula for c in few)
    (tmp_path / "folder" / "poscar" / "bad.vasp").write_text("no structure at all")
    status, said = told("inspect", tmp_path / "folder" / "poscar")
    assert status == 0 and "6 crystals" in said.out and "density" in said.out
    for words, error in (
        (("convert", tmp_path / "all.extxyz", tmp_path / "all.extxyz"), "is there already"),
        (("convert", tmp_path / "all.extxyz", tmp_path / "all.txt"), "expected a name that ends in"),
        (("inspct", "x"), "did you mean inspect?"),
        (("inspect", tmp_path / "none"), "does not exist"),
    ):
        status, said = told(*words)
        assert status == 2 and error in said.err and len(said.err.splitlines()) == 1


def test_what_is_no_crystal_is_known(decorated):
    few = decorated.take(np.arange(4))
    lattices = few.lattices.copy()
    lattices[1] = 0.0
    lattices[2, 0, 0] = np.nan
    coords = few.frac_coords.copy()
    coords[-1] = np.inf
    assert replace(few, lattices=lattices, frac_coords=coords).sound.tolist() == [True, False, False, False]
    assert few.sound.all()
