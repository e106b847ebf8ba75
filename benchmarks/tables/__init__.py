"""Tables of the pages, each made from files in ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    """One results file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def interval(estimate: dict[str, Any]) -> str:
    """``value [low, high]``."""
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def percent(estimate: dict[str, Any] | None) -> str:
    """A rate in %, with its standard error; "" where there is none."""
    return f"{100.0 * estimate['value']:.1f} ± {100.0 * estimate['stderr']:.1f}" if estimate else ""


def number(estimate: dict[str, Any] | None, digits: int = 3) -> str:
    """A value and its standard error."""
    return f"{estimate['value']:.{digits}f} ± {estimate['stderr']:.{digits}f}" if estimate else ""
