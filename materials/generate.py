"""Draw crystals from a model, or from what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from diffusion_core.configure import build
from diffusion_core.denoise import Denoiser
from diffusion_core.experts.factors import Known
from diffusion_core.experts.product import start
from diffusion_core.noise import On, PerSample
from diffusion_core.plan import Together
from diffusion_core.process.categorical import Categorical
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.process.joint import Joint
from diffusion_core.process.torus import Torus
from diffusion_core.sample import Corrector, sample
from diffusion_core.solvers import categorical, torus
from materials.config import MaterialsConfig
from materials.crystal import Crystals
from materials.data.batches import exists
from materials.lattice import to_lattice
from materials.model import CrystalModel


def plan(config: MaterialsConfig, model: CrystalModel, grid: Tensor | None = None) -> Together:
    """The solvers of the three fields, on one grid.

    Args:
        grid: falling times; None: those of ``config``.

    Raises:
        WorkbenchError: the lattice's solver evaluates more than once a step.
    """
    times = build(config.grid, n=config.steps) if grid is None else grid
    process = model.denoiser.process
    assert isinstance(process, Joint)
    lattice, coords, types = (process.fields[name] for name in ("lattice", "frac_coords", "atom_types"))
    assert isinstance(lattice, Gaussian) and isinstance(coords, Torus) and isinstance(types, Categorical)
    moves = torus.flow(coords, times) if config.coords == "flow" else torus.ancestral(coords, times)
    return Together(
        {
            "lattice": build(config.sampler, lattice.schedule, times),
            "frac_coords": moves,
            "atom_types": categorical.ancestral(types, times),
        }
    )


def sizes(model: CrystalModel, n: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Numbers of atoms as often as the data has them."""
    chances = model.sizes.double().cpu().numpy()
    return np.random.default_rng([seed, 7]).choice(len(chances), size=n, p=chances / chances.sum())


def of_types(types: Sequence[Sequence[int]], most: int, device: torch.device | str) -> Known:
    """The factor that fixes every atom's type: structure prediction.

    Args:
        types: of each crystal, atomic numbers.
    """
    values = torch.zeros(len(types), most, dtype=torch.int64)
    for i, of_crystal in enumerate(types):
        values[i, : len(of_crystal)] = torch.as_tensor(of_crystal) - 1
    values = values.to(device)
    return Known({"atom_types": torch.ones_like(values, dtype=torch.bool)}, {"atom_types": values}, mode="clean")


Factor = Callable[[Int64[np.ndarray, " rows"], Int64[Tensor, " rows"]], Denoiser]
"""``factor(rows, counts)``: the expert for these rows of all samples, of so many atoms each."""


@torch.no_grad()
def draw(
    model: CrystalModel,
    plan: Together,
    counts: Int64[np.ndarray, " n"],
    seeds: Sequence[int],
    expert: Factor | None = None,
    batch_size: int = 256,
    corrector: Corrector | None = None,
    progress: Callable[[Sequence[int]], Sequence[int]] | None = None,
) -> Crystals:
    """One crystal for each number of atoms and seed; a crystal depends on its own alone.

    Args:
        counts: atoms of each.
        seeds: of each.
        expert: what is drawn from; None: the model itself.
        batch_size: crystals at a time.
        corrector: after each step.
        progress: wraps the batches in a bar.
    """
    device = model.scale.mean.device
    # alike sizes together: a batch is padded to its largest
    order = np.argsort(counts, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    found: list[dict[str, Tensor]] = [{}] * len(batches)
    which = range(len(batches))
    for b in which if progress is None else progress(which):
        rows = batches[b]
        of_rows = torch.as_tensor(counts[rows], device=device)
        most = int(of_rows.max())
        denoiser = model.at(of_rows) if expert is None else expert(rows, of_rows)
        noise = PerSample.from_seeds([int(seeds[i]) for i in rows])
        like = {
            "lattice": torch.zeros(len(rows), 6, device=device),
            "frac_coords": torch.zeros(len(rows), most, 3, device=device),
            "atom_types": torch.zeros(len(rows), most, dtype=torch.int64, device=device),
        }
        base = denoiser.process.noise(like, On(noise, device))
        x = sample(denoiser, plan, start(denoiser, base), noise=noise, corrector=corrector)
        found[b] = {name: value.cpu() for name, value in x.items()} | {"counts": of_rows.cpu()}
    return _decoded(model, found, order)


def _decoded(model: CrystalModel, found: Sequence[Mapping[str, Tensor]], order: Int64[np.ndarray, " n"]) -> Crystals:
    """Crystals in the order in which they were asked for."""
    scale = model.scale
    types, coords, lattices, counts = [], [], [], []
    for x in found:
        n = x["counts"]
        mask = exists(n, x["atom_types"].shape[1])
        vector = scale.unnormalize(x["lattice"].double().to(scale.mean.device), n.to(scale.mean.device))
        lattices.append(to_lattice(vector).cpu().numpy())
        types.append((x["atom_types"][mask] + 1).numpy())
        coords.append(x["frac_coords"][mask].double().numpy())
        counts.append(n.numpy())
    drawn = Crystals(np.concatenate(types), np.concatenate(coords), np.concatenate(lattices), np.concatenate(counts))
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return drawn.take(back)
