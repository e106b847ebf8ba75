"""Products of models, energies of ranges, and what is measured of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.correct import Sweep
from diffusion_core.errors import WorkbenchError
from materials import generate
from materials.data.batches import Batches
from materials.experiments import composition
from materials.experts import product
from materials.models import assemble
from materials.properties import density, volume_per_atom
from tests.materials.test_model import config


@pytest.fixture(scope="module")
def two(decorated):
    """Two models that were told one property each, of the same data; noise instead of training."""
    models = []
    for seed, label in enumerate(("density", "electronegativity_difference")):
        torch.manual_seed(seed)
        model = assemble(config(labels=[label]))
        batches = Batches(decorated, 20, [label])
        model.fit_scales(batches.tensors, batches.label_scale)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        models.append(model.eval())
    return models


def estimate(denoiser, n=4):
    torch.manual_seed(3)
    x = {"lattice": torch.randn(n, 6), "frac_coords": torch.rand(n, 5, 3), "atom_types": torch.full((n, 5), 100)}
    times = {name: torch.tensor([0.5], dtype=torch.float64) for name in x}
    with torch.no_grad():
        return denoiser.bind(times)(x, 0)


def test_a_product_is_the_sum_of_scores_and_of_logits(two):
    first, second = two
    counts, rows = torch.full((4,), 5), np.arange(4)
    targets = {"density": np.full(4, 5.0), "electronegativity_difference": np.full(4, 2.0)}
    whole = estimate(product(two, targets)(rows, counts))
    a = estimate(first.at(counts, {"density": 5.0}))
    b = estimate(second.at(counts, {"electronegativity_difference": 2.0}))
    free = estimate(second.at(counts))
    for name in ("lattice", "frac_coords"):
        torch.testing.assert_close(whole[name], a[name] + b[name] - free[name], rtol=1e-4, atol=1e-4)
    logits = [e["atom_types"].double().log_softmax(-1) for e in (a, b, free)]
    expected = (logits[0] + logits[1] - logits[2]).log_softmax(-1)
    torch.testing.assert_close(whole["atom_types"].double().log_softmax(-1), expected, rtol=1e-3, atol=1e-3)
    # each is told its own property only: the first model's answer alone changes with density
    assert (
        whole["lattice"] - estimate(product(two, {**targets, "density": np.full(4, 9.0)})(rows, counts))["lattice"]
    ).abs().max() > 1e-4


def test_targets_may_differ_from_crystal_to_crystal(two):
    counts = torch.full((2,), 5)
    together = estimate(product([two[0]], {"density": np.array([3.0, 8.0])})(np.arange(2), counts), 2)
    torch.manual_seed(3)
    alone = estimate(product([two[0]], {"density": np.array([3.0, 3.0])})(np.arange(2), counts), 2)
    torch.testing.assert_close(together["lattice"][0], alone["lattice"][0], rtol=1e-5, atol=1e-5)
    assert (together["lattice"][1] - alone["lattice"][1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "limits", "of"), [("density", (5.0, 6.0), density), ("volume_per_atom", (9.0, 11.0), volume_per_atom)]
)
def test_an_energy_steers_into_its_range(two, name, limits, of):
    model, n = two[0], 24
    plan = model.plan(config(steps=40))
    counts = np.full(n, 4)
    expert = product([model], {}, between={name: limits})
    steered = of(generate.draw(model, plan, counts, range(n), expert))
    free = of(generate.draw(model, plan, counts, range(n)))

    def outside(x):
        return np.log(np.maximum(limits[0] / x, 1.0)) + np.log(np.maximum(x / limits[1], 1.0))

    # a network that was never trained moves the lattice to the last step, where an energy has no say
    assert outside(steered).mean() < 0.6 * outside(free).mean()


def test_what_does_not_fit_is_refused(two, decorated):
    with pytest.raises(WorkbenchError, match="got hardness; expected some of density, electronegativity_difference"):
        product(two, {"hardness": np.zeros(1)})
    with pytest.raises(WorkbenchError, match="between: got band_gap"):
        product(two, {}, between={"band_gap": (1.0, 2.0)})
    with pytest.raises(WorkbenchError, match="the smaller first"):
        product(two, {}, between={"density": (2.0, 1.0)})
    other = assemble(config(labels=["density"]))
    batches = Batches(decorated.take(np.arange(5)), 20, ["density"])
    other.fit_scales(batches.tensors, batches.label_scale)
    with pytest.raises(WorkbenchError, match="scale of lattices differ"):
        product([two[0], other], {})


def test_a_product_is_drawn_from_with_a_corrector(two):
    targets = {"density": np.full(3, 5.0), "electronegativity_difference": np.full(3, 2.0)}
    plan = two[0].plan(config())
    made = generate.draw(two[0], plan, np.full(3, 5), range(3), product(two, targets), corrector=Sweep(1, 0.05))
    plain = generate.draw(two[0], plan, np.full(3, 5), range(3), product(two, targets))
    assert len(made) == 3 and np.abs(made.lattices - plain.lattices).max() > 1e-6


def test_hits_are_counted(decorated):
    found = density(decorated)
    limits = {"density": (float(np.quantile(found, 0.2)), float(np.quantile(found, 0.6)))}
    measured = composition.measured(decorated, limits, 1)
    expected = ((found >= limits["density"][0]) & (found <= limits["density"][1])).mean()
    assert measured["both"].value == measured["density"].value == pytest.approx(expected)
    assert measured["both_and_valid"].value <= measured["both"].value and measured["n"] == len(decorated)
