"""Would it stay? Relaxation and energies by CHGNet, formation energies, and the distance to a partial convex hull.

The hull is that of the entries at hand and not of all that is known, so a distance to it is a lower bound of the true
one; it is called partial wherever it stands.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_core.errors import WorkbenchError
from materials import elements
from materials.adapters import from_pymatgen, to_pymatgen
from materials.crystal import Crystal, Crystals
from materials.metrics.each import each, key

REFERENCES = Path(__file__).with_name("elemental_references.json")
METASTABLE = 0.1
"""eV/atom above the hull. Source: Zeni et al. 2025 (MatterGen, doi 10.1038/s41586-025-08628-5)."""
MODEL = "chgnet-0.3.0"


@lru_cache(maxsize=1)
def references() -> dict[int, float]:
    """eV/atom of each element's ground state in the Materials Project, with its corrections."""
    energies = json.loads(REFERENCES.read_text())["energies"]
    return {elements.number(symbol): value for symbol, value in energies.items()}


def formation_energy(energy_per_atom: float, composition: dict[int, int]) -> float | None:
    """eV/atom relative to the elements; None if one of them has no reference."""
    known, n = references(), sum(composition.values())
    if any(z not in known for z in composition):
        return None
    return energy_per_atom - sum(known[z] * m for z, m in composition.items()) / n


@lru_cache(maxsize=1)
def _model() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from chgnet.model import CHGNet
    except ImportError:
        raise WorkbenchError(
            "stability: CHGNet is not installed; expected its weights, which come in its package: pip install "
            "'diffusion-workbench[crystals]', or leave relax and stability out."
        ) from None
    with redirect_stdout(io.StringIO()):
        return CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)


def require() -> None:
    """Refuse now what would be refused after sampling.

    Raises:
        WorkbenchError: CHGNet is not installed.
    """
    _model()


def energy(crystal: Crystal) -> float | None:
    """CHGNet's energy in eV/atom, of the crystal as it is; None where it sees no atom with neighbours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return float(_model().predict_structure(to_pymatgen(crystal), task="e")["e"])
        except (ValueError, IndexError, RuntimeError):
            return None


def energies(crystals: Sequence[Crystal], workers: int = 1, progress: bool = True) -> list[float | None]:
    """`energy` of each, kept on disk."""
    require()
    return each(energy, crystals, f"{MODEL}-energy", workers, [key(c) for c in crystals], progress=progress)


def relax(crystal: Crystal, steps: int = 200, fmax: float = 0.1) -> dict[str, Any] | None:
    """Relax cell and atoms with CHGNet (FIRE); None where it fails.

    Args:
        steps: at most.
        fmax: eV/Å; the largest force at which it stops.

    Returns:
        ``atom_types``, ``frac_coords``, ``lattice``, ``energy`` (eV/atom), ``converged`` and ``steps``.
    """
    from chgnet.model import StructOptimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # it says on what device it runs, once for each crystal
            with redirect_stdout(io.StringIO()):
                optimizer = StructOptimizer(model=_model(), use_device="cpu")
            found: Any = optimizer.relax(to_pymatgen(crystal), fmax=fmax, steps=steps, verbose=False)
        except (ValueError, IndexError, RuntimeError, ArithmeticError, np.linalg.LinAlgError):
            return None
    end, trajectory = found["final_structure"], found["trajectory"]
    if not np.isfinite(trajectory.energies[-1]):
        return None
    relaxed = from_pymatgen(end)
    return {
        "atom_types": relaxed.atom_types.tolist(),
        "frac_coords": relaxed.frac_coords.tolist(),
        "lattice": relaxed.lattice.tolist(),
        "energy": float(trajectory.energies[-1]) / len(relaxed),
        "converged": bool(np.linalg.norm(trajectory.forces[-1], axis=1).max() <= fmax),
        "steps": len(trajectory.energies),
    }


def relaxations(
    crystals: Sequence[Crystal], workers: int = 1, progress: bool = True
) -> list[tuple[Crystal, float, bool] | None]:
    """Each relaxed crystal, its energy in eV/atom, and whether it converged; kept on disk."""
    require()
    found = each(relax, crystals, f"{MODEL}-relax-200-0.1", workers, [key(c) for c in crystals], progress=progress)
    return [
        None
        if f is None
        else (
            Crystal(np.array(f["atom_types"]), np.array(f["frac_coords"]), np.array(f["lattice"]), c.properties),
            f["energy"],
            f["converged"],
        )
        for c, f in zip(crystals, found, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class PartialHull:
    """The convex hull of the entries at hand.

    Args:
        entries: by chemical system (atomic numbers): compositions and formation energies, eV/atom.
        provenance: where the entries are from.
    """

    entries: dict[frozenset[int], list[tuple[dict[int, int], float]]]
    provenance: str

    @classmethod
    def of(cls, crystals: Crystals, column: str = "formation_energy_per_atom") -> PartialHull:
        """Of all crystals that have a formation energy."""
        found: dict[frozenset[int], list[tuple[dict[int, int], float]]] = {}
        for crystal in crystals:
            value = crystal.properties.get(column)
            if isinstance(value, float) and np.isfinite(value):
                whole = elements.reduced(crystal.composition)
                found.setdefault(frozenset(whole), []).append((whole, value))
        n = sum(len(v) for v in found.values())
        return cls(found, f"{n} entries of {crystals.provenance}")

    def above(self, composition: dict[int, int], formation_energy: float) -> float:
        """eV/atom above the partial hull; below it, negative.

        Raises:
            WorkbenchError: an element that no entry has.
        """
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
        from pymatgen.core import Composition

        own = frozenset(composition)
        diagram = self._diagrams().get(own)
        if diagram is None:
            unknown = own - self.elements
            if unknown:
                raise WorkbenchError(
                    f"partial hull: got {', '.join(elements.SYMBOLS[z] for z in sorted(unknown))}, which none of "
                    f"{self.provenance} has; expected its elements among them: add entries."
                )
            made = [PDEntry(Composition(elements.SYMBOLS[z]), 0.0) for z in own]
            for system, entries in self.entries.items():
                if system <= own:
                    made += [PDEntry(_composition(c), e * sum(c.values())) for c, e in entries]
            diagram = self._diagrams()[own] = PhaseDiagram(made)
        whole = _composition(composition)
        return float(formation_energy - diagram.get_hull_energy_per_atom(whole))

    @property
    def elements(self) -> frozenset[int]:
        """All that any entry has."""
        return frozenset().union(*self.entries) if self.entries else frozenset()

    def _diagrams(self) -> dict[frozenset[int], Any]:
        # made when they are asked for: there are thousands of systems
        return self.__dict__.setdefault("_made", {})


def judged(
    crystals: Sequence[Crystal], hull: PartialHull | None, workers: int = 1
) -> list[tuple[Crystal, dict[str, Any]]]:
    """Each crystal relaxed, or as it was where that fails, and what is known of it; "" is what is not.

    The keys are ``relaxed`` (whether it converged), ``energy_per_atom``, ``formation_energy_per_atom`` and
    ``above_partial_hull``, in eV/atom.
    """
    out = []
    for crystal, found in zip(crystals, relaxations(crystals, workers), strict=True):
        row = {"relaxed": False, "energy_per_atom": "", "formation_energy_per_atom": "", "above_partial_hull": ""}
        end = crystal
        if found is not None:
            end, per_atom, converged = found
            row |= {"relaxed": converged, "energy_per_atom": round(per_atom, 5)}
            formation = formation_energy(per_atom, crystal.composition)
            if formation is not None:
                row["formation_energy_per_atom"] = round(formation, 5)
                if hull is not None and set(crystal.composition) <= hull.elements:
                    row["above_partial_hull"] = round(hull.above(crystal.composition, formation), 5)
        out.append((end, row))
    return out


def _composition(counts: dict[int, int]) -> Any:
    from pymatgen.core import Composition

    return Composition({elements.SYMBOLS[z]: n for z, n in counts.items()})
