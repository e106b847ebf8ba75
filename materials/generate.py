"""Draw crystals from a model, or from what it is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import On, PerSample
from diffusion_core.plan import Together
from diffusion_core.sample import Corrector, sample
from materials import elements
from materials.crystal import Crystal, Crystals
from materials.data.batches import padded
from materials.models import CrystalModel

Factor = Callable[[Int64[np.ndarray, " rows"], Int64[Tensor, " rows"]], Denoiser]
"""``expert(rows, counts)``: what these rows of all samples are drawn from, crystals of so many atoms each."""


def sizes(model: CrystalModel, n: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Numbers of atoms as often as the data has them."""
    chances = model.sizes.double().cpu().numpy()
    return np.random.default_rng([seed, 7]).choice(len(chances), size=n, p=chances / chances.sum())


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
        plan: `CrystalModel.plan`.
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
    found = []
    bar = tqdm(total=len(counts), desc="crystals", disable=None, dynamic_ncols=True)
    for rows in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        of_rows = torch.as_tensor(counts[rows], device=device)
        own = None if types is None else [types[i] for i in rows]
        denoiser: Denoiser = model.at(of_rows, types=own) if expert is None else expert(rows, of_rows)
        if power != 1.0:
            denoiser = denoiser**power
        if own is not None:
            denoiser = model.pinned(denoiser, own)
        noise = PerSample.from_seeds([int(seeds[i]) for i in rows])
        x = model.begin(denoiser, plan, of_rows, noise)
        found.append(model.decode(sample(denoiser, plan, x, noise=noise, corrector=corrector), of_rows, own))
        bar.update(len(rows))
    bar.close()
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return found[0].joined(*found[1:]).take(back)


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
    places, counts = len(crystal), tensors["counts"]
    tensors |= {name: tensors[name][:, :places] for name in ("frac_coords", "atom_types")}
    denoiser: Denoiser = model.at(counts) if expert is None else expert(np.arange(n), counts)
    x0 = model.state(tensors)
    stays = np.isin(crystal.atom_types, list(keep))
    if keep and not stays.any():
        named = ", ".join(elements.SYMBOLS[z] for z in keep)
        raise WorkbenchError(f"keep: got {named}; expected elements of {crystal.formula}: name some of its own.")
    if keep:
        denoiser = model.kept(denoiser, x0, torch.as_tensor(stays, device=device))
    noise = PerSample.from_seeds(seeds)
    process = denoiser.process
    base = process.noise(x0, On(noise, device))
    x = process.corrupt(x0, {k: t[0].to(device).expand(n) for k, t in plan.times.items()}, base)
    made = model.decode(sample(denoiser, plan, x, noise=noise), counts)
    if not keep:
        return made
    # to the last digit, which single precision and the last step's noise would move
    coords = made.frac_coords.reshape(n, places, 3)
    coords[:, stays] = crystal.frac_coords[stays]
    lattices = np.broadcast_to(crystal.lattice, made.lattices.shape).copy()
    return replace(made, frac_coords=coords.reshape(-1, 3), lattices=lattices)
