"""The gallery: one page of all systems, from the results of `images.reference`.

``python -m images.gallery [tier=quick|full|scenes|all] [results=FOLDER] [out=FILE]`` writes one self-contained
HTML file.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from diffusion_core.errors import WorkbenchError
from diffusion_core.report import Page
from diffusion_core.run import launch, make_folder, options
from images.experiments import EXPERIMENTS
from images.reference import OUT

logger = logging.getLogger("workbench.images")
TIERS = ("quick", "full", "scenes")


def rows(results: Path, tier: str) -> list[tuple[Path, dict[str, Any]]]:
    """The folder and the row of every system that has results in this tier, in the order of the literature."""
    folders = [results / tier / name for name in EXPERIMENTS]
    return [(f, json.loads((f / "row.json").read_text())) for f in folders if (f / "row.json").exists()]


def number(estimate: dict[str, Any]) -> str:
    """``value ± standard error``, to the digits that the error leaves."""
    value, error = estimate["value"], estimate["stderr"]
    if value is None:
        return "–"
    unit = "" if estimate["unit"] == "1" else f" {estimate['unit']}"
    if not error:
        return f"{value:.3g}{unit}"
    # two digits of the error
    digits = max(0, 1 - _exponent(error))
    return f"{value:.{digits}f} ± {error:.{digits}f}{unit}"


def _exponent(x: float) -> int:
    return int(f"{x:e}".partition("e")[2])


def table(row: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines of a system's table; a metric that only some variants have is empty for the others."""
    names = list(dict.fromkeys(name for variant in row["variants"] for name in variant["metrics"]))
    lines = [
        [variant["name"], *(number(variant["metrics"][n]) if n in variant["metrics"] else "" for n in names)]
        for variant in row["variants"]
    ]
    return ["", *names], lines


def section(page: Page, folder: Path, row: dict[str, Any], anchor: str) -> None:
    """One system."""
    page.heading(row["title"], anchor, ("effect seen" if row["shown"] else "effect not seen here", row["shown"]))
    page.text(f"{row['idea']} {row['source']}")
    page.figure(folder / "samples.png", "Samples.", pixels=True)
    page.text(row["verdict"])
    page.figure(folder / "figure.png", f"Criterion: {row['criterion']}")
    head, lines = table(row)
    page.table(head, lines, folded=f"All numbers: {len(lines)} rows")
    page.text(f"In the paper: {row['published']}")
    if row["notes"]:
        page.text(row["notes"])
    page.text(
        f"Judge {row['judge']}; n = {row['n']:,} samples; {row['training_seeds']} training seed; ± is the standard "
        f"error over samples; {row['seconds']:.0f} s on {row['hardware']['torch_threads']} thread of "
        f"{row['hardware']['cpu']}; commit {row['commit']}."
    )
    page.code("\n".join(dict.fromkeys([row["command"], *(c for v in row["variants"] for c in v["commands"])])))


def build(results: Path, tiers: tuple[str, ...], out: Path) -> Path:
    """Write the page.

    Raises:
        WorkbenchError: there are no results.
    """
    found = {tier: rows(results, tier) for tier in tiers}
    total = sum(len(systems) for systems in found.values())
    if not total:
        raise WorkbenchError(
            f"gallery: got no results in {results}; expected some: python -m images.reference tier={tiers[0]} makes "
            "them."
        )
    page = Page(
        "Diffusion, system by system",
        "Every generation of the literature on the same data, network budget and judge. Distances are named by their "
        "feature network; none is an FID.",
    )
    for tier, systems in found.items():
        if systems:
            task = systems[0][1]["task"]
            seen = sum(row["shown"] for _, row in systems)
            page.text(f"Tier {tier}, {task}: {len(systems)} systems; the paper's effect is seen in {seen}.")
            page.links([(row["title"], f"{tier}-{row['system']}") for _, row in systems])
    for tier, systems in found.items():
        for folder, row in systems:
            section(page, folder, row, f"{tier}-{row['system']}")
    make_folder(out.parent)
    page.write(out)
    logger.info("%d systems: %s", total, out)
    return out


def main() -> None:
    """Read the words of the command, and build."""
    words = options("gallery", {"tier": "all", "results": str(OUT), "out": "runs/gallery/index.html"})
    if words["tier"] not in (*TIERS, "all"):
        raise WorkbenchError(f"tier: got {words['tier']}; expected one of {', '.join(TIERS)}, all.")
    tiers = TIERS if words["tier"] == "all" else (words["tier"],)
    build(Path(words["results"]), tiers, Path(words["out"]))


if __name__ == "__main__":
    launch(main)
