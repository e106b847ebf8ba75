"""What a person looks at: crystals, their properties beside the data's, and one page with all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from diffusion_core.durable import write_text
from diffusion_core.report import ACCENT, INK, MUTED, Page, save_figure, subplots
from diffusion_core.results import Estimate
from diffusion_core.run import read_metrics
from materials import published
from materials.adapters import to_ase
from materials.crystal import Crystal, Crystals
from materials.properties import density, n_elements, volume_per_atom

NAMES = {
    "structure_valid": "structural validity",
    "composition_valid": "compositional validity (smact14)",
    "valid": "both",
    "symmetric": "space group above 2",
    "w_density": "Wasserstein, density",
    "w_elements": "Wasserstein, number of elements",
    "tv_crystal_systems": "total variation, crystal systems",
    "cov_r": "COV-R",
    "cov_p": "COV-P",
    "amsd_r": "AMSD-R",
    "amcd_r": "AMCD-R",
    "amsd_p": "AMSD-P",
    "amcd_p": "AMCD-P",
    "unique": "unique",
    "novel": "not in the training data",
    "valid_unique_novel": "valid, unique and novel",
    "relaxed": "relaxed by CHGNet",
    "stable": "on or below the partial hull",
    "metastable": "at most 0.1 eV/atom above the partial hull",
    "sun": "stable (partial hull), unique, novel",
    "msun": "metastable (partial hull), unique, novel",
    "above_partial_hull": "above the partial hull",
    "match_rate": "match rate, all",
    "match_rate_valid": "match rate, valid only",
    "rmse": "RMSE, all",
    "rmse_valid": "RMSE, valid only",
    "crmse": "cRMSE",
    "metre": "METRe",
    "seconds_per_1000": "time for 1,000",
}


_VIEW = np.array([[0.94, -0.34, 0.0], [0.10, 0.28, 0.95], [0.33, 0.90, -0.30]])
"""Rows: right, up, and towards the reader."""


def picture(crystals: Sequence[Crystal], path: Path, columns: int = 6) -> Path:
    """Draw one cell of each crystal, sites on its faces on all of them, and its formula."""
    rows = (len(crystals) + columns - 1) // columns
    across = min(columns, len(crystals))
    figure, axes = subplots(rows, across, 2.2 * across, 2.5 * rows)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, crystal in zip(axes.flat, crystals, strict=False):
        _cell(axis, crystal)
        axis.set_title(f"{crystal.formula}\n{crystal.density:.2f} g/cm³", fontsize=9)
    return save_figure(figure, path)


def _cell(axis: Any, crystal: Crystal) -> None:
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.patches import Circle

    # in the standard orientation, or a cell would be seen from anywhere
    lattice = to_ase(crystal).cell.standard_form()[0].array
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    places, types = [], []
    for site, z in zip(crystal.frac_coords, crystal.atom_types, strict=True):
        near = np.where(site > 0.97, site - 1.0, site)
        for shift in corners:
            if (shift <= (near < 0.03)).all():
                places.append(near + shift)
                types.append(z)
    seen = np.array(places) @ lattice @ _VIEW.T
    ends = corners @ lattice @ _VIEW.T
    for i, a in enumerate(corners):
        for j in range(i):
            if np.abs(a - corners[j]).sum() == 1.0:
                depth = min(ends[i, 2], ends[j, 2])
                axis.plot(*ends[[i, j], :2].T, color=MUTED, lw=0.8, zorder=float(depth))
    for (x, y, depth), z in zip(seen, types, strict=True):
        fill = Circle((x, y), 0.45 * covalent_radii[z], fc=jmol_colors[z], ec=INK, lw=0.6, zorder=float(depth))
        axis.add_patch(fill)
    low = np.minimum(ends[:, :2].min(0), seen[:, :2].min(0)) - 1.0
    high = np.maximum(ends[:, :2].max(0), seen[:, :2].max(0)) + 1.0
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")


def histograms(generated: Crystals, test: Crystals, path: Path) -> Path:
    """Density, volume per atom, number of elements and of atoms: generated beside the test set."""
    figure, axes = subplots(1, 4, 12.0, 2.9)
    sizes = [c.counts.astype(float) for c in (generated, test)]
    columns: Any = (
        ("density, g/cm³", density(generated), density(test), None),
        ("volume per atom, Å³", volume_per_atom(generated), volume_per_atom(test), None),
        ("elements", n_elements(generated), n_elements(test), 1.0),
        ("atoms in the cell", *sizes, 1.0),
    )
    for axis, (name, ours, theirs, step) in zip(axes.flat, columns, strict=True):
        low, high = np.percentile(np.concatenate([ours, theirs]), [0.0, 99.5])
        bins = np.arange(low - 0.5, high + 1.0, step) if step else np.linspace(low, high, 41)
        axis.hist(theirs, bins, density=True, color=MUTED, alpha=0.55, label="test set")
        axis.hist(ours, bins, density=True, histtype="step", color=ACCENT, lw=1.8, label="generated")
        axis.set(xlabel=name, yticks=[])
        axis.spines["left"].set_visible(False)
    axes[0, 0].legend(fontsize=8)
    return save_figure(figure, path)


def learning(run: Path, path: Path) -> Path | None:
    """The loss over the steps; None without records."""
    records = [r for r in read_metrics(run) if "loss" in r]
    if len(records) < 2:
        return None
    figure, axes = subplots(1, 1, 6.0, 2.6)
    axes[0, 0].plot([r["step"] for r in records], [r["loss"] for r in records], color=INK, lw=1.0)
    axes[0, 0].set(xlabel="step", ylabel="loss", yscale="log")
    return save_figure(figure, path)


def _percent(e: Estimate) -> str:
    return "" if e.n == 0 else f"{100.0 * e.value:.2f} ± {100.0 * e.stderr:.2f}"


def _distance(e: Estimate) -> str:
    return "" if e.n == 0 else f"{e.value:.3f} ± {e.stderr:.3f}"


def de_novo_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Ours, the test set itself, and the published rows."""
    head = ["", "structural %", "compositional %", "COV-R %", "COV-P %", "W density", "W elements", "n", "source"]
    rows = []
    for name, part in (
        ("this model" if "parameters" in found else found["structures"], "de_novo"),
        ("the test set itself", "test_set"),
    ):
        m: dict[str, Estimate] = found[part]["metrics"]
        none = Estimate(float("nan"), 0.0, 0.0, 0.0, 0)
        rates = [_percent(m.get(k, none)) for k in ("structure_valid", "composition_valid", "cov_r", "cov_p")]
        rows.append([name, *rates, *(_distance(m[k]) for k in ("w_density", "w_elements")), str(found[part]["n"]), ""])
    for line in published.DE_NOVO.get(found["task"], ()):
        numbers = [f"{x:g}" for x in (line.structural, line.compositional, line.cov_r, line.cov_p)]
        rows.append([line.method, *numbers, f"{line.w_density:g}", f"{line.w_elements:g}", "10000", line.source])
    return head, rows


def prediction_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Ours and the published rows."""
    head = ["", "k", "match rate %, all", "valid only", "RMSE, all", "valid only", "n", "source"]
    m: dict[str, Estimate] = found["prediction"]["metrics"]
    cells = [_percent(m["match_rate"]), _percent(m["match_rate_valid"])]
    cells += [f"{m[k].value:.4f} ± {m[k].stderr:.4f}" for k in ("rmse", "rmse_valid")]
    rows = [["this model", str(found["prediction"]["k"]), *cells, str(found["prediction"]["n"]), ""]]
    for line in published.PREDICTION.get(found["task"], ()):
        # papers count valid pairs alone, unless they say so
        cells = ["", f"{line.match:g}", "", f"{line.rmse:g}"]
        if "all" in line.method:
            cells = [f"{line.match:g}", "", f"{line.rmse:g}", ""]
        rows.append([line.method, str(line.k), *cells, "whole test set", line.source])
    return head, rows


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(
    out: Path, found: Mapping[str, Any], generated: Crystals | None, test: Crystals, config: Any, run: Path | None
) -> Path:
    """Write figures, ``tables.md`` and ``report.html`` into ``out``; returns the page's path."""
    said = f"Structures: {found.get('structures', '')}"
    if "parameters" in found:
        said = (
            f"{found['parameters']:,} parameters, step {found['step']:,}; learned from {found['data']}; "
            f"{found['sampler']['steps']} evaluations a crystal"
        )
    page = Page(f"Crystals: {found['task']}", f"{said}; test set: {found['test']}.")
    text = []
    if generated is not None:
        part = found["de_novo"]
        page.heading("From nothing")
        page.numbers({NAMES[name]: e for name, e in part["metrics"].items()})
        table = de_novo_table(found)
        page.table(*table, mine=0)
        text.append("From nothing\n\n" + markdown(*table))
        page.text(
            "Shares with their standard error. Validity, coverage and distances are those of CDVAE; the test set's own "
            "row is what a perfect model would get. Published rows are of models that learned from the whole official "
            "training set, judged on 10,000 crystals. Distances are of 1,000 valid crystals, or of all if there are "
            "fewer."
        )
        page.figure(picture(list(generated[:12]), out / "crystals.png"), "The first twelve, none left out.")
        page.figure(histograms(generated, test, out / "distributions.png"), "Generated crystals and the test set.")
    if "prediction" in found:
        page.heading("The structure of a composition")
        page.numbers({NAMES[name]: e for name, e in found["prediction"]["metrics"].items()})
        table = prediction_table(found)
        page.table(*table, mine=0)
        text.append("The structure of a composition\n\n" + markdown(*table))
        page.text(
            "pymatgen's StructureMatcher (stol 0.5, ltol 0.3, angle_tol 10); RMSE is the mean over matched references, "
            "of the best of k. DiffCSP counts a pair only if both crystals are valid, so its row stands under that."
        )
    if run is not None and (drawn := learning(run, out / "learning.png")):
        page.heading("Training")
        page.figure(drawn, "Loss.")
    page.heading("How it was made")
    trained = f", trained at {found['trained_at_commit']}" if "trained_at_commit" in found else ""
    page.code(f"{found['command']}\ncommit {found['commit']}{trained}")
    if config is not None:
        page.code(OmegaConf.to_yaml(OmegaConf.create(config)))
    write_text(out / "tables.md", "\n".join(text))
    return page.write(out / "report.html")
