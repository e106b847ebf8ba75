"""The network's invariances, training, and sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.denoise.restricted import Restricted
from diffusion_core.errors import WorkbenchError
from diffusion_core.loss import Draws
from materials import generate
from materials.config import MaterialsConfig, TaskConfig
from materials.data.batches import Batches
from materials.models import assemble


def config(**changes):
    leaf = {
        "network": {"_target_": "materials.networks.periodic.PeriodicTransformer", "width": 32, "depth": 2, "heads": 4},
        "schedule": {"_target_": "diffusion_core.schedule.Cosine"},
        "sampler": {"_target_": "diffusion_core.solvers.ddpm"},
        "grid": {"_target_": "diffusion_core.grid.uniform", "start": 0.995},
        "steps": 6,
        "labels": ["density"],
        "task": TaskConfig("prototypes", 20),
    }
    return MaterialsConfig(**{**leaf, **changes})


@pytest.fixture(scope="module")
def model(decorated):
    torch.manual_seed(0)
    model = assemble(config())
    batches = Batches(decorated, 20, ["density"])
    model.fit_scales(batches.tensors, batches.label_scale)
    # the heads begin at 0, and an answer of 0 is equivariant to anything
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def answers(model, x, counts):
    t = {name: torch.full((len(counts),), 0.4, dtype=torch.float64) for name in x}
    cond = {"counts": counts, "labels": torch.zeros(len(counts), 1), "told": torch.zeros(len(counts), 1)}
    with torch.no_grad():
        return model.denoiser(x, t, cond)


def states(decorated, model, n=12):
    tensors = Batches(decorated.take(np.arange(n)), 20).tensors
    x = {
        "lattice": model.scale.normalize(tensors["lattice"], tensors["counts"]),
        "frac_coords": torch.rand(n, 20, 3, generator=torch.Generator().manual_seed(1)),
        "atom_types": tensors["atom_types"],
    }
    return x, tensors["counts"]


def test_the_network_is_invariant_to_translations(decorated, model):
    x, counts = states(decorated, model)
    moved = {**x, "frac_coords": (x["frac_coords"] + torch.tensor([0.37, 0.81, 0.13])) % 1.0}
    for a, b in zip(answers(model, x, counts).values(), answers(model, moved, counts).values(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


def test_the_network_is_equivariant_to_permutations(decorated, model):
    x, counts = states(decorated, model)
    n = int(counts[0])
    order = torch.cat([torch.randperm(n, generator=torch.Generator().manual_seed(0)), torch.arange(n, 20)])
    one = {name: value[:1] for name, value in x.items()}
    turned = {**one, "frac_coords": one["frac_coords"][:, order], "atom_types": one["atom_types"][:, order]}
    a, b = answers(model, one, counts[:1]), answers(model, turned, counts[:1])
    assert torch.allclose(a["lattice"], b["lattice"], atol=1e-4)
    for name in ("frac_coords", "atom_types"):
        assert torch.allclose(a[name][:, order][:, :n], b[name][:, :n], atol=1e-4)
    assert a["frac_coords"][:, :n].abs().max() > 1e-3


def test_padding_changes_nothing(decorated, model):
    x, counts = states(decorated, model)
    n = int(counts[0])
    short = {name: value[:1] if name == "lattice" else value[:1, :n] for name, value in x.items()}
    one = {name: value[:1] for name, value in x.items()}
    a, b = answers(model, one, counts[:1]), answers(model, short, counts[:1])
    assert torch.allclose(a["frac_coords"][:, :n], b["frac_coords"], atol=1e-5)
    assert torch.allclose(a["lattice"], b["lattice"], atol=1e-5)


def test_training_lowers_the_loss(decorated):
    torch.manual_seed(0)
    model = assemble(config())
    batches = Batches(decorated, 20, ["density"])
    model.fit_scales(batches.tensors, batches.label_scale)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for step in range(150):
        loss = model(batches.batch(torch.arange(60)), Draws(torch.Generator().manual_seed(step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])


def test_a_crystal_depends_on_its_seed_and_not_on_its_batch(model):
    plan = model.plan(config())
    many = generate.draw(model, plan, np.array([4, 6, 5]), [1, 2, 3])
    alone = generate.draw(model, plan, np.array([6]), [2])
    assert (many[1].atom_types == alone[0].atom_types).all()
    assert np.abs(many[1].lattice - alone[0].lattice).max() < 1e-3


def test_structure_prediction_keeps_the_formula(model):
    plan = model.plan(config())
    types = [[22, 38, 8, 8, 8], [11, 17]]
    made = generate.draw(model, plan, np.array([5, 2]), [0, 1], types=types, power=2.0)
    assert [c.formula for c in made] == ["SrTiO3", "NaCl"]


def test_a_chemical_system_is_never_violated(model):
    allowed = torch.zeros(100, dtype=torch.bool)
    allowed[[2, 25, 7]] = True
    plan = model.plan(config())
    made = generate.draw(
        model,
        plan,
        np.full(40, 6),
        range(40),
        lambda rows, counts: Restricted(model.at(counts), {"atom_types": allowed}),
    )
    assert {int(z) for z in made.atom_types} <= {3, 26, 8}


def test_kept_sites_stay_and_others_move(model, salt):
    from dataclasses import replace

    plan = model.plan(config(), torch.linspace(0.9, 0.0, 7, dtype=torch.float64))
    made = generate.redraw(model, plan, salt, [0, 1, 2], keep=[17])
    for crystal in made:
        assert np.abs(crystal.cart_coords[4:] - salt.cart_coords[4:]).max() < 1e-6
        assert (crystal.atom_types[4:] == 17).all()
        assert np.abs(crystal.frac_coords[:4] - salt.frac_coords[:4]).max() > 1e-3
    with pytest.raises(WorkbenchError, match="keep: got O"):
        generate.redraw(model, plan, replace(salt), [0], keep=[8])


def test_what_a_model_was_not_trained_for_is_refused(model):
    with pytest.raises(WorkbenchError, match="property: got hardness"):
        model.at(torch.tensor([4]), {"hardness": 3.0})
    with pytest.raises(WorkbenchError, match="1 to 20"):
        model.at(torch.tensor([21]))
