"""Solvers, samplers and products."""

from __future__ import annotations

import inspect
from typing import Any

from benchmarks.tables import interval, load, markdown


def overhead() -> str:
    """Sampler overhead against three libraries: microseconds and tensor operations per step, and ratios."""
    r = load("sampler_overhead")
    cells = {(row["solver"], row["library"]): row for row in r["rows"]}
    ratio = {(row["solver"], row["library"]): row for row in r["ratios"]}
    peers = [name for name in ("diffusers", "k-diffusion", "azula") if name in r["peers"]]

    def cell(row: dict[str, Any] | None) -> str:
        return f"{row['us_per_step_median']:.1f} ({row['aten_ops_per_step']:g})" if row else ""

    def times(solver: str, library: str) -> str:
        found = ratio.get((solver, library))
        if found is None:
            return ""
        without = f", {found['time_without_draw']:.1f}× without the draw" if "time_without_draw" in found else ""
        return f"{cell(cells[solver, library])} **{found['time']:.1f}×**{without}"

    rows = [
        [f"`{solver}`", cell(cells[solver, "ours"]), cell(cells[solver, "floor"]), *(times(solver, p) for p in peers)]
        for solver in dict.fromkeys(solver for solver, _ in cells if solver)
    ]
    return markdown(["µs per step (tensor operations)", "ours", "floor", *peers], rows)


def samplers() -> str:
    """Solvers and step counts of the shipped Push-T policy."""
    rows = [
        [
            f"`{row['solver']}`",
            str(row["steps"]),
            str(row["evaluations"]),
            interval(row["success_rate"]),
            interval(row["mean_max_score"]),
            f"{row['replan_p50']['value']:.1f}",
        ]
        for row in load("pusht_samplers")["rows"]
    ]
    head = ["solver", "steps", "network evaluations", "success [95 %]", "mean max score [95 %]", "ms per replan"]
    return markdown(head, rows)


def composition() -> str:
    """Samplers of products of experts: distance and error of the modes' shares for every product, cost."""
    r = load("composition")
    problems = r["problems"]
    rows = []
    for i, row in enumerate(next(iter(problems.values()))["rows"]):
        cells = [problem["rows"][i] for problem in problems.values()]
        distances = [
            f"{c['w1']['value']:.3f} ± {c['w1']['stderr']:.3f} / {c['mode_error']['value']:.3f}" for c in cells
        ]
        cost = f"{row['evaluations']} + {row['log_densities']}" if row["log_densities"] else str(row["evaluations"])
        costs = [cost, f"{row['cpu_ms']:.0f}"] if row["evaluations"] else ["", ""]
        rows.append([row["sampler"], *distances, *costs])
    head = ["W1 / modes", *(f"{name}: {p['what']}" for name, p in problems.items()), "evaluations", "CPU ms"]
    return markdown(head, rows)


def orders() -> str:
    """Every solver's evaluations, order of convergence and source, the last from its docstring."""
    from diffusion_core import solvers

    r, rows = load("orders"), []
    for row in r["rows"]:
        name, *variant = row["solver"].split(", ")
        calls, steps = row["evaluations"], r["n"]
        each = (calls[-1] - calls[-2]) // (steps[-1] - steps[-2])
        once = calls[-1] - each * steps[-1]
        source = (
            " ".join((inspect.getdoc(getattr(solvers, name)) or "").split("Source: ")[1].split(")")[0].split()) + ")"
        )
        error = max((c, e) for c, e in zip(calls, row["errors"], strict=True) if c <= 34)[1]
        noise = "yes" if row["noisy"] else "no"
        call = f"`{name}({', '.join(variant)})`" if variant else f"`{name}`"
        rows.append(
            [call, f"{each} (+{once})" if once else str(each), noise, f"{row['order']:.2f}", f"{error:.1e}", source]
        )
    return markdown(["solver", "evaluations a step", "noise", "order", "error at 24 to 34", "source"], rows)


TABLES = {
    "overhead": overhead,
    "samplers": samplers,
    "composition": composition,
    "orders": orders,
}
