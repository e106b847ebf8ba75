"""The measures, against published numbers and second implementations."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from materials.crystal import Crystal, Crystals
from materials.data import tables
from materials.metrics import distributions, matching, novelty, stability, validity
from materials.metrics.describe import describe
from materials.metrics.each import Kept, each, key

DATA = Path(os.environ.get("WORKBENCH_DATA", "nowhere")) / "materials"
real = pytest.mark.skipif(not DATA.is_dir(), reason="WORKBENCH_DATA names no folder with materials/")


@real
def test_published_samples_of_diffcsp_have_their_published_validity():
    crystals = tables.read(DATA / "peer_samples_diffcsp_mp20.parquet")
    some = list(crystals.take(np.arange(0, 10_000, 5)))
    assert all(validity.structural(c) for c in some)
    valid = np.mean([validity.compositional(c.composition) for c in some])
    # 83.25 in the paper; three standard errors of 2,000
    assert abs(valid - 0.8325) < 3 * np.sqrt(0.8325 * 0.1675 / 2000)


@real
def test_compositional_validity_agrees_with_smact_itself():
    from smact.screening import smact_validity

    crystals = list(tables.read(DATA / "mp_20_test_bin_ter.parquet").take(np.arange(0, 7000, 23)))
    for crystal in crystals:
        ours = validity.compositional(crystal.composition, "icsd24")
        assert ours == smact_validity(crystal.formula, oxidation_states_set="icsd24"), crystal.formula


@real
def test_formation_energies_and_the_partial_hull():
    test = tables.read(DATA / "mp_20_test_bin_ter.parquet")
    rows = np.random.default_rng(0).permutation(len(test))[:24]
    some = test.take(rows)
    energies = stability.energies(list(some), progress=False)
    found = [stability.formation_energy(e, c.composition) for e, c in zip(energies, some, strict=True)]
    assert np.abs(np.array(found) - some.properties["formation_energy_per_atom"]).mean() < 0.04
    hull = stability.PartialHull.of(test)
    above = [hull.above(c.composition, c.properties["formation_energy_per_atom"]) for c in some]
    # fewer entries can only bring the hull up, and a crystal nearer to it
    assert max(np.array(above) - some.properties["e_above_hull"]) < 1e-6


def test_a_crystal_matches_itself_in_another_cell_and_not_another(salt, decorated):
    primitive = Crystal(
        np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 2.82 * (np.ones((3, 3)) - np.eye(3))
    )
    assert matching.rms((primitive, salt)) == pytest.approx(0.0, abs=1e-6)
    zincblende = Crystal(salt.atom_types, salt.frac_coords + 0.25 * (salt.atom_types == 17)[:, None], salt.lattice)
    found = matching.matches([[zincblende, salt], [primitive, primitive]], [salt, salt], [[True, False], [True, True]])
    assert found.rate() == 1.0
    assert found.rate(valid_only=True) < 1.0 or not np.isnan(found.distances[0, 0])
    assert matching.everyone([primitive], [salt, decorated[0]])["metre"] == 0.5


def test_uniqueness_and_novelty(salt, decorated):
    some = [salt, *decorated[:5], salt]
    assert novelty.unique(some) == [True] * 6 + [False]
    assert novelty.nearest_known(some, [salt]) == ["salt", *[None] * 5, "salt"]


def test_distances_of_a_shifted_sample_are_the_shift():
    x = np.random.default_rng(0).normal(size=500)
    assert distributions.wasserstein(x, x + 0.3).value == pytest.approx(0.3, abs=1e-9)


def test_a_row_of_rock_salt(salt):
    row = describe(salt)
    assert (row["space_group"], row["cell_formula"], row["structure_valid"]) == (225, "Na4Cl4", True)


def test_what_was_measured_is_not_measured_again(tmp_path, decorated):
    store, seen = Kept(tmp_path / "kept.sqlite"), []

    def measured(crystal):
        seen.append(crystal)
        return crystal.density

    crystals = list(decorated)
    keys = [key(c) for c in crystals]
    first = each(measured, crystals[:40], "density", keys=keys[:40], store=store, progress=False)
    again = each(measured, crystals, "density", keys=keys, store=store, progress=False)
    assert again[:40] == first and len(seen) == len(set(keys))


def test_several_processes_give_what_one_gives(decorated):
    crystals = list(decorated) * 2
    assert each(describe, crystals, "d", 2, progress=False) == each(describe, crystals, "d", 1, progress=False)


def test_prototypes_are_neutral_ions_that_touch(decorated):
    from materials.data import prototypes

    again = Crystals.of(list(prototypes.generate(60, seed=3)))
    assert (again.atom_types == decorated.atom_types).all() and (again.lattices == decorated.lattices).all()
    assert all(validity.structural(c) for c in decorated)
    assert np.mean([validity.compositional(c.composition, "icsd24") for c in decorated]) > 0.9
