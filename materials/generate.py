"""Draw crystals from a model, or from what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from diffusion_core.configure import build
from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
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
from materials import elements
from materials.config import MaterialsConfig
from materials.crystal import Crystal, Crystals
from materials.data.batches import exists, padded
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
    # a type that is drawn at the start stays, so nothing may be known of it there
    from_mask = torch.where(times == times[0], 1.0, times) if grid is None else times
    moves = torus.flow(coords, times) if config.coords == "flow" else torus.ancestral(coords, times)
    return Together(
        {
            "lattice": build(config.sampler, lattice.schedule, times),
            "frac_coords": moves,
            "atom_types": categorical.ancestral(types, from_mask),
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
"""``expert(rows, counts)``: what these rows of all samples are drawn from, crystals of so many atoms each."""


def masked(denoiser: Denoiser) -> Categorical:
    """The process of atom types."""
    assert isinstance(denoiser.process, Joint)
    found = denoiser.process.fields["atom_types"]
    assert isinstance(found, Categorical)
    return found


@torch.no_grad()
def draw(
    model: CrystalModel,
    plan: Together,
    counts: Int64[np.ndarray, " n"],
    seeds: Sequence[int],
    expert: Factor | None = None,
    types: Sequence[Sequence[int]] | None = None,
    power: float = 1.0,
    batch_size: int = 256,
    corrector: Corrector | None = None,
) -> Crystals:
    """One crystal for each number of atoms and seed; a crystal depends on its own alone.

    Args:
        counts: atoms of each.
        seeds: of each.
        expert: what is drawn from; None: the model itself.
        types: of each, atomic numbers of all atoms: structure prediction; None: they are drawn, too.
        power: exponent of the expert's density; above 1 it prefers what is likely.
        batch_size: crystals at a time.
        corrector: after each step.
    """
    device = model.scale.mean.device
    # alike sizes together: a batch is padded to its largest
    order = np.argsort(counts, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    found: list[dict[str, Tensor]] = [{}] * len(batches)
    bar = tqdm(total=len(counts), desc="crystals", disable=None, dynamic_ncols=True)
    for b, rows in enumerate(batches):
        of_rows = torch.as_tensor(counts[rows], device=device)
        most = int(of_rows.max())
        denoiser: Denoiser = model.at(of_rows) if expert is None else expert(rows, of_rows)
        if power != 1.0:
            denoiser = denoiser**power
        if types is not None:
            denoiser = denoiser * of_types([types[i] for i in rows], most, device)
        noise = PerSample.from_seeds([int(seeds[i]) for i in rows])
        like = {
            "lattice": torch.zeros(len(rows), 6, device=device),
            "frac_coords": torch.zeros(len(rows), most, 3, device=device),
            "atom_types": torch.zeros(len(rows), most, dtype=torch.int64, device=device),
        }
        base = denoiser.process.noise(like, On(noise, device))
        first = {name: float(times[0]) for name, times in plan.times.items()}
        x = start(denoiser, base, first["lattice"])
        # combined estimates are of the noised product, which ends where each process ends
        x["atom_types"] = masked(denoiser).prior(base["atom_types"], first["atom_types"])
        x = sample(denoiser, plan, x, noise=noise, corrector=corrector)
        found[b] = {name: value.cpu() for name, value in x.items()} | {"counts": of_rows.cpu()}
        bar.update(len(rows))
    bar.close()
    return _decoded(model, found, order)


@torch.no_grad()
def redraw(
    model: CrystalModel,
    plan: Together,
    crystal: Crystal,
    seeds: Sequence[int],
    keep: Sequence[int] = (),
    expert: Factor | None = None,
) -> Crystals:
    """Perturb a crystal up to the plan's first time and draw it anew, once for each seed.

    Args:
        crystal: what is perturbed.
        keep: atomic numbers whose sites stay where they are, as they are, in the crystal's own cell; none: everything
            may change.

    Raises:
        WorkbenchError: the crystal is too large for the model, or has none of what is to be kept.

    Source: Meng et al. 2022 (SDEdit, arXiv 2108.01073).
    """
    device, n = model.scale.mean.device, len(seeds)
    tensors = {k: v.to(device).expand(n, *v.shape[1:]) for k, v in padded(Crystals.of([crystal]), model.most).items()}
    places = len(crystal)
    counts = tensors["counts"]
    denoiser: Denoiser = model.at(counts) if expert is None else expert(np.arange(n), counts)
    x0 = {
        "lattice": model.scale.normalize(tensors["lattice"], counts),
        "frac_coords": tensors["frac_coords"][:, :places],
        "atom_types": tensors["atom_types"][:, :places],
    }
    stays = np.isin(crystal.atom_types, list(keep))
    if keep and not stays.any():
        named = ", ".join(elements.SYMBOLS[z] for z in keep)
        raise WorkbenchError(f"keep: got {named}; expected elements of {crystal.formula}: name some of its own.")
    if keep:
        sites = torch.as_tensor(stays, device=device)
        mask = {
            "lattice": torch.ones(n, 6, dtype=torch.bool, device=device),
            "frac_coords": sites[None, :, None].expand(n, places, 3),
            "atom_types": sites[None].expand(n, places),
        }
        denoiser = denoiser * Known(mask, x0)
    noise = PerSample.from_seeds(seeds)
    process = denoiser.process
    base = process.noise(x0, On(noise, device))
    x = process.corrupt(x0, {k: t[0].to(device).expand(n) for k, t in plan.times.items()}, base)
    x = sample(denoiser, plan, x, noise=noise)
    made = _decoded(model, [{name: value.cpu() for name, value in x.items()} | {"counts": counts.cpu()}], np.arange(n))
    if not keep:
        return made
    # to the last digit, which single precision and the last step's noise would move
    coords = made.frac_coords.reshape(n, places, 3)
    coords[:, stays] = crystal.frac_coords[stays]
    lattices = np.broadcast_to(crystal.lattice, made.lattices.shape).copy()
    return replace(made, frac_coords=coords.reshape(-1, 3), lattices=lattices)


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
