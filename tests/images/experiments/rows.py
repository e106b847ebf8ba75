"""An experiment run once with next to no training, and its row: shared by the tests of experiments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from images import reference
from images.lab import TIERS, Lab, Report


def short_lab(zoo: Path) -> Lab:
    """Everything runs, nothing is learned."""
    smoke = TIERS["smoke"]
    return Lab(replace(smoke, words=(*smoke.words, "train.steps=10")), zoo)


def check_row(name: str, lab: Lab, out: Path, at_least: int = 8) -> Report:
    """Run the experiment and look at what it wrote."""
    report = reference.run(name, lab, out)
    folder = out / "smoke" / name
    row = json.loads((folder / "row.json").read_text())
    assert row["shown"] in (True, False) and len(row["variants"]) == len(report.variants) >= 5
    assert len({v["name"] for v in row["variants"]}) == len(row["variants"])
    assert len(report.samples) >= 48 and report.samples.shape[1:] == lab.shape
    for text in (row["criterion"], row["verdict"], row["published"], row["idea"], row["notes"]):
        assert len(text) > 40 and "nan" not in text.split() and "{" not in text
    for picture in ("samples.png", "figure.png"):
        assert (folder / picture).stat().st_size > 1000
    return report
