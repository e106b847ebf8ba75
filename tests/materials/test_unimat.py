"""UniMat's table: every element has a place, and what is put in comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from materials import generate, unimat
from materials.config import MaterialsConfig, TaskConfig
from materials.data.batches import Batches, padded
from materials.models import assemble


def test_every_element_has_a_place_of_its_own():
    places = {tuple(p) for p in unimat.PLACES[1:].tolist()}
    assert len(places) == 118
    assert unimat.PLACES[1:].min() == 0 and unimat.PLACES.max(0).tolist() == [8, 17]
    # neighbours of a column are of a group: Li, Na, K; F, Cl, Br
    assert len({unimat.PLACES[z][1] for z in (3, 11, 19, 37, 55)}) == 1
    assert len({unimat.PLACES[z][1] for z in (9, 17, 35, 53)}) == 1


@pytest.mark.parametrize("coords", ["raw", "circle"])
def test_what_is_put_in_comes_out(decorated, coords):
    tensors = padded(decorated, 20)
    order = torch.rand(tensors["atom_types"].shape, generator=torch.Generator().manual_seed(0))
    where = unimat.slots(tensors["atom_types"], tensors["counts"], 16, order)
    table = unimat.encode(tensors["frac_coords"], where, 16, coords)
    assert torch.equal(unimat.present(table, coords), unimat.occupancy(where, 16).flatten(1) > 0)
    for crystal, (types, places) in zip(
        decorated, unimat.decode(table, coords, unimat.present(table, coords)), strict=True
    ):
        assert sorted(types.tolist()) == sorted(crystal.atom_types.tolist())
        for z in set(types.tolist()):
            ours = places[types == z].numpy()
            d = ours[:, None] - crystal.frac_coords[crystal.atom_types == z][None]
            distance = np.abs(d - d.round()).max(-1)
            assert distance.min(1).max() < 1e-5 and distance.min(0).max() < 1e-5


def test_the_null_location_is_as_in_the_paper(salt):
    from materials.crystal import Crystals

    tensors = padded(Crystals.of([salt]), 8)
    where = unimat.slots(tensors["atom_types"], tensors["counts"], 4, torch.rand(1, 8))
    table = unimat.encode(tensors["frac_coords"], where, 4, "raw")
    assert table.shape == (1, 3, 4, 9, 18)
    assert int((table == -1.0).all(1).sum()) == 4 * 9 * 18 - 8


def test_too_few_layers_are_refused(salt):
    from materials.crystal import Crystals

    tensors = padded(Crystals.of([salt]), 8)
    with pytest.raises(WorkbenchError, match="4 atoms of one element"):
        unimat.slots(tensors["atom_types"], tensors["counts"], 3, torch.rand(1, 8))


def config(**changes):
    leaf = {
        "network": {
            "_target_": "materials.networks.unet3d.UniMatUNet",
            "layers": 4,
            "width": 8,
            "head": 8,
            "multipliers": [1, 2, 2],
        },
        "schedule": {"_target_": "diffusion_core.schedule.Cosine"},
        "sampler": {"_target_": "diffusion_core.solvers.ddpm"},
        "grid": {"_target_": "diffusion_core.grid.uniform", "start": 0.995},
        "steps": 4,
        "labels": ["density"],
        "task": TaskConfig("prototypes", 20),
    }
    return MaterialsConfig(**{**leaf, **changes})


@pytest.fixture(scope="module")
def trained(decorated):
    """A model after a few steps, and its losses."""
    torch.manual_seed(0)
    model = assemble(config())
    few = decorated.take(np.flatnonzero([max(c.composition.values()) <= 4 for c in decorated])[:32])
    batches = Batches(few, 20, ["density"])
    model.fit_scales(batches.tensors, batches.label_scale)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for step in range(40):
        loss = model(batches.batch(torch.arange(len(few))), Draws(torch.Generator().manual_seed(step % 4))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_training_lowers_the_loss(trained):
    _, losses = trained
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_a_formula_is_kept_and_a_crystal_depends_on_its_seed_alone(trained):
    model, _ = trained
    types = [[22, 38, 8, 8, 8], [11, 17]]
    counts = np.array([5, 2])
    made = generate.draw(model, model.plan(config()), counts, [0, 1], types=types)
    assert [c.formula for c in made] == ["SrTiO3", "NaCl"]
    alone = generate.draw(model, model.plan(config()), counts[1:], [1], types=types[1:])
    assert np.abs(made[1].frac_coords - alone[0].frac_coords).max() < 1e-4


def test_a_chemical_system_is_never_violated(trained):
    model, _ = trained
    allowed = torch.zeros(100, dtype=torch.bool)
    allowed[[2, 25, 7]] = True
    made = generate.draw(
        model,
        model.plan(config()),
        np.full(8, 6),
        range(8),
        lambda rows, counts: model.within(model.at(counts), allowed),
    )
    # a table without any atom is a hydrogen
    assert {int(z) for z in made.atom_types} <= {1, 3, 8, 26}


def test_the_network_does_not_care_for_the_order_of_the_layers(trained):
    model, _ = trained
    generator = torch.Generator().manual_seed(0)
    x = {"table": torch.randn(3, 3, 4, 9, 18, generator=generator), "lattice": torch.randn(3, 6, generator=generator)}
    cond = model.size(torch.tensor([4, 5, 6]), None) | {"labels": torch.zeros(3, 1), "told": torch.zeros(3, 1)}
    t = {name: torch.full((3,), 0.4) for name in x}
    order = torch.randperm(4, generator=generator)
    with torch.no_grad():
        a = model.denoiser.network(x, t, cond)
        b = model.denoiser.network({**x, "table": x["table"][:, :, order]}, t, cond)
    assert torch.allclose(a["table"][:, :, order], b["table"], atol=1e-4)
    assert torch.allclose(a["lattice"], b["lattice"], atol=1e-4)


def test_what_it_cannot_do_is_said(trained, salt):
    model, _ = trained
    plan = model.plan(config(), torch.linspace(0.5, 0.0, 3, dtype=torch.float64))
    with pytest.raises(WorkbenchError, match="network=periodic"):
        generate.redraw(model, plan, salt, [0], keep=[17])
    assert len(generate.redraw(model, plan, salt, [0])) == 1
