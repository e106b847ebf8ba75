"""Rewrite the tables between ``<!-- name -->`` marks in README.md and docs/ from the files in benchmarks/results.

``python -m benchmarks.render`` (or ``make bench``); with ``--check`` it only says whether README is up to date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from images import gallery
from planning import published as planning_published
from planning.evaluate import PEERS
from policy import published

ROOT = Path(__file__).resolve().parent.parent
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


def pusht() -> str:
    """Push-T: ours beside the published rows."""
    rows = []
    for name, label, demonstrations in (
        ("pusht_pretrained", "`pretrained/pusht`", "planned, 2,155 of 2,199 episodes and their mirror images"),
        ("pusht_pretrained_500", "`pretrained/pusht`, 500 starts", "the same"),
        ("pusht_expert_cpu", "`make train`", "planned, 196 of the 200 shipped and their mirror images"),
        ("pusht_human_cpu", "`data=human`", "human, 202 of 206 episodes and their mirror images"),
    ):
        r = load(name)
        m = r["metrics"]
        aggregates = r.get("aggregates")
        rows.append(
            [
                label,
                interval(m["mean_max_score"]),
                f"{aggregates['max']:.2f} / {aggregates['mean']:.2f}" if aggregates else "",
                interval(m["success_rate"]),
                f"{m['replan_p50']['value']:.1f} / {m['replan_p95']['value']:.1f}",
                f"1 × {m['mean_max_score']['n']}",
                demonstrations,
            ]
        )
    for p in published.PUSHT:
        rows.append([p.method, "", f"{p.best:.2f} / {p.last_ten:.2f}", "", "", "3 × 50", "human"])
    head = [
        "policy",
        "mean max score, newest checkpoint [95 %]",
        "best / mean of the last ten",
        "success at 0.95 [95 %]",
        "ms per replan, p50 / p95",
        "training seeds × episodes",
        "demonstrations",
    ]
    return markdown(head, rows)


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


def images_of(tier: str) -> str:
    """The systems of the literature in one tier: what was compared, what was seen."""
    rows = []
    for _, row in gallery.rows(RESULTS / "images", tier):
        seen = "yes" if row["shown"] else "**no**"
        rows.append([f"[{row['title']}](../benchmarks/results/images/{tier}/{row['system']})", row["verdict"], seen])
    return markdown(["system", "what was measured", "the paper's effect"], rows) if rows else "Not run yet."


def scenes_judge() -> str:
    """What the judge of the captioned world reads right."""
    r = load("scenes_judge")
    cells = {(row["tier"], row["size"], row["pictures"]): row for row in r["rows"]}
    kinds = list(dict.fromkeys(pictures for _, _, pictures in cells))
    rows = [
        [
            str(tier),
            str(size),
            *(f"{cells[tier, size, kind]['all']['value']:.4f}" for kind in kinds),
            f"{min(cells[tier, size, kind]['read_per_s'] for kind in kinds):,}",
        ]
        for tier, size in dict.fromkeys((tier, size) for tier, size, _ in cells)
    ]
    names = {"noise": f"noise {r['noise']}", "blur": f"blur {r['blur_px']} px"}
    return markdown(["tier", "pixels", *(names.get(kind, kind) for kind in kinds), "read a second"], rows)


def image_throughput() -> str:
    """Images per second at each batch size."""
    r, rows = load("image_throughput"), []
    names = list(r["rows"][0]["images_per_second"])
    for row in r["rows"]:
        ratio, speed = row["ratio"], row["images_per_second"]
        apart = max(value for name, value in row["largest_difference"].items() if name != "diffusers")
        cells = [f"{speed[name]:.1f}" for name in names]
        rows.append([str(row["batch"]), *cells, f"{ratio['value']:.3f} ± {ratio['stderr']:.3f}", f"{apart:.0e}"])
    return markdown(["batch", *(f"{n}, images/s" for n in names), "ours : diffusers", "largest difference"], rows)


def maze2d() -> str:
    """Scores of the planner by what it knows, of its peers on the same problems, and published ones."""
    kinds = {
        "first": "one sample of the prior",
        "critic": "best of 64 by the critic of strides, no map",
        "own": "prior x walls, best of 64 by the map",
        "cut": "the same, refined",
    }
    places = [(maze, multi) for multi in (False, True) for maze in planning_published.MAZES]

    def files(kind: str, maze: str, multi: bool) -> list[dict[str, Any]]:
        name = f"planning/{maze}-{kind}{'-multi' if multi else ''}"
        names = [name, *(f"{name}-seed{seed}" for seed in (1, 2))]
        return [load(n) for n in names if (RESULTS / f"{n}.json").exists()]

    def cell(each: Sequence[dict[str, Any]]) -> str:
        """Of some training seeds on the same problems."""
        scores, rates = ([m[key]["value"] for m in each] for key in ("score", "success_rate"))
        seeds = f", {min(scores):.0f} to {max(scores):.0f}" if len(scores) > 1 else ""
        return f"{mean(scores):.0f} ± {max(m['score']['stderr'] for m in each):.0f}{seeds} ({mean(rates):.2f})"

    rows = []
    for kind, words in kinds.items():
        found = {place: [f["metrics"] for f in files(kind, *place)] for place in places}
        times = [m["planning_p50"]["value"] for each in found.values() for m in each]
        cells = [cell(each) if each else "" for each in found.values()]
        rows.append([words, *cells, f"{min(times):.0f} to {max(times):.0f}" if times else ""])
    by_peer: dict[str, dict[Any, dict[str, Any]]] = {}
    for place in places:
        for found_peers in (f["peers"] for kind in ("cut", "peers", "learners", "mppi") for f in files(kind, *place)):
            for peer, found_one in found_peers.items():
                by_peer.setdefault(peer, {}).setdefault(place, found_one)
    for peer, found_by in by_peer.items():
        times = [m["planning_p50"]["value"] for m in found_by.values()]
        cells = [cell([found_by[place]]) if place in found_by else "" for place in places]
        rows.append([PEERS[peer].title, *cells, f"{min(times):.1f} to {max(times):.1f}"])
    for line in planning_published.ROWS:
        published_scores = [line.score(*place) for place in places]
        rows.append([line.method + " (published)", *("" if s is None else f"{s:.0f}" for s in published_scores), ""])
    head = [f"{'multi' if multi else 'single'} {maze}" for maze, multi in places]
    return markdown(["D4RL score (success)", *head, "ms to plan, median"], rows)


def _rate(found: dict[str, Any]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def obstacles() -> str:
    """Executed success by what stands in the way."""
    rows = load("planning/obstacles")["rows"]
    series = list(next(iter(rows.values())))
    table = [[name, *(_rate(row[key]["success"]) for key in series)] for name, row in rows.items()]
    for line, row in zip(table, rows.values(), strict=True):
        line.append(f"{row[series[1]]['planning_p50']['value']:.0f}")
    return markdown(["executed success", *series, "ms, median"], table)


def halves() -> str:
    """Plans through both halves, without and with walls."""
    rows = load("planning/halves")["rows"]
    return markdown(
        ["planner", "valid", "success", "success by training seed", "path ratio", "ms, median"],
        [
            [
                name,
                _rate(row["valid"]),
                _rate(row["success"]),
                ", ".join(f"{x:.2f}" for x in row["by_prior"]),
                f"{row['path_ratio']['value']:.2f}",
                f"{row['planning_p50']['value']:.0f}",
            ]
            for name, row in rows.items()
        ],
    )


def corridors() -> str:
    """Errors of the share that takes the first way."""
    rows = load("planning/corridors")["rows"]
    return markdown(
        ["sampled", "largest error of the share", "mean error", "takes exactly one of both ways"],
        [
            [name, f"{row['largest_error']:.3f}", f"{row['error']['value']:.3f}", f"{row['either']['value']:.2f}"]
            for name, row in rows.items()
        ],
    )


def robots() -> str:
    """Joint success of several robots, beside published rates."""
    rows = load("planning/robots")["rows"]
    table = [
        [
            name,
            *(_rate(row[n]["valid"]) for n in row),
            *(_rate(row[n]["success"]) for n in row),
            f"{row['2']['planning_p50']['value']:.0f}",
        ]
        for name, row in rows.items()
    ]
    table += [
        [f"{name} (published)", "", "", f"{two:.2f}", f"{four:.2f}", ""] for name, two, four in planning_published.CMDS
    ]
    head = ["", "valid, 2", "valid, 4", "success, 2 robots", "success, 4 robots", "ms for 2, median"]
    return markdown(head, table)


def planning_speed() -> str:
    """Plans per second by candidates and network evaluations, beside published rates."""
    rows = [
        [
            f"{row['what']}, {row['candidates']} candidate{'s' if row['candidates'] > 1 else ''}",
            str(row["evaluations"]),
            f"{row['plans_per_second']:.1f}",
            f"{row['p50']['value']:.0f} / {row['p95']['value']:.0f}",
            f"{row['valid']['value']:.2f}",
        ]
        for row in load("planning_speed")["rows"]
    ]
    rows += [[f"{name} (published, {where})", "", f"{rate:.1f}", "", ""] for name, rate, where in planning_published.HZ]
    return markdown(["plans", "network evaluations", "plans/s", "ms, median / 95 %", "valid"], rows)


def giant() -> str:
    """Success in OGBench's giant-stitch, beside what is published."""
    seeds = [load(f"planning/giant-tree{seed}") for seed in ("", "-seed1")]
    found = seeds[0]
    tasks = [f"success_rate, task {k}" for k in range(1, 6)]

    def row(name: str, m: dict[str, Any]) -> list[str]:
        steps = m["steps_to_goal"]["value"]
        times = f"{m['planning_p50']['value'] / 1e3:.1f}" if m["planning_p50"]["value"] > 100 else "0.0"
        return [name, _rate(m["success_rate"]), *(f"{m[t]['value']:.2f}" for t in tasks), f"{steps:.0f}", times]

    names = [f"search over samples of the prior, no map, training seed {one['training_seed']}" for one in seeds]
    rows = [row(name, one["metrics"]) for name, one in zip(names, seeds, strict=True)]
    rows += [row(name, m) for name, m in found["peers"].items()]
    rows += [
        [f"{name} (published)", f"{share:.2f}", *[""] * len(tasks), "", ""]
        for name, share in planning_published.GIANT_STITCH
    ]
    head = ["", "success", *(f"task {k}" for k in range(1, 6)), "steps to the goal", "s to plan, median"]
    return markdown(head, rows)


def gym_pointmaze() -> str:
    """Success in Gymnasium-Robotics' PointMaze."""
    rows = [
        [
            row["row"],
            _rate(row["success"]["rate"]),
            ", ".join(f"{share:.2f}" for share in row["success"]["by_prior"]),
            f"{row['steps_to_goal']['value']:.0f}",
            _rate(row["in_goal"]),
        ]
        for row in load("planning/gym_pointmaze")["rows"]
    ]
    return markdown(["", "success", "by training seed", "steps to the goal", "share of steps in the goal"], rows)


def forcing() -> str:
    """Plans of a prior with a noise level for every node, all nodes together and one after another."""
    rows = []
    for kind, words in (("", "prior x walls, best of 64 by the map"), ("-critic", "best of 64 by the critic, no map")):
        for delay in (0, 1, 4):
            m = load(f"planning/forcing{kind}-delay{delay}")["metrics"]
            score = f"{m['score']['value']:.0f} ± {m['score']['stderr']:.0f}"
            cells = [score, _rate(m["success_rate"]), _rate(m["plan_valid"]), f"{m['planning_p50']['value']:.0f}"]
            rows.append([words, str(delay), *cells])
    return markdown(["", "delay", "D4RL score", "success", "valid", "ms, median"], rows)


def locomotion() -> str:
    """Returns of a half cheetah."""
    rows = [
        [
            row["row"],
            f"{row['return']['value']:.0f} [{row['return']['low']:.0f}, {row['return']['high']:.0f}]",
            ", ".join(f"{x:.0f}" for x in row.get("by_seed", [])),
            f"{row['score']['value']:.0f}",
            str(row.get("evaluations") or ""),
            f"{row['ms']:.0f}" if row.get("evaluations") else "",
        ]
        for row in load("planning/locomotion")["rows"]
    ]
    return markdown(["", "return", "by training seed", "D4RL's scale", "evaluations a plan", "ms a step"], rows)


def stacking() -> str:
    """Scores in three tasks with blocks."""
    rows = []
    for row in load("planning/stacking")["rows"]:
        tasks = [value for key, value in row.items() if key != "row"]
        scores = [t["score"] for t in tasks]
        moves = sum(t["move_came_off"]["value"] * t["move_came_off"]["n"] for t in tasks)
        made = sum(t["move_came_off"]["n"] for t in tasks)
        cells = [f"{s['value']:.0f} [{s['low']:.0f}, {s['high']:.0f}]" for s in scores]
        rows.append([row["row"], *cells, f"{moves / made:.2f} of {made}"])
    names = [key for key in load("planning/stacking")["rows"][0] if key != "row"]
    return markdown(["score", *names, "moves that did what was asked"], rows)


def stacking_constraints() -> str:
    """What is met under one constraint or both."""
    rows = [
        [one["asked for"], *(_rate(value) for name, value in one.items() if name != "asked for")]
        for one in load("planning/stacking")["constraints"]
    ]
    return markdown(["asked for", "something on block 1", "block 0 went", "block 0 on block 1"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "orders": orders,
    "pusht": pusht,
    "overhead": overhead,
    "samplers": samplers,
    "composition": composition,
    "maze2d": maze2d,
    "obstacles": obstacles,
    "halves": halves,
    "corridors": corridors,
    "robots": robots,
    "planning_speed": planning_speed,
    "giant": giant,
    "gym_pointmaze": gym_pointmaze,
    "forcing": forcing,
    "locomotion": locomotion,
    "stacking": stacking,
    "stacking_constraints": stacking_constraints,
    "images_quick": partial(images_of, "quick"),
    "images_full": partial(images_of, "full"),
    "images_scenes": partial(images_of, "scenes"),
    "image_throughput": image_throughput,
    "scenes_judge": scenes_judge,
}


def render(text: str) -> str:
    """``text`` with every marked table made anew."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            continue
        text = pattern.sub(rf"\g<1>{table()}\n\g<2>", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a page is out of date")
    check = parser.parse_args().check
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = page.read_text()
        new = render(old)
        if check and new != old:
            sys.exit(f"error: {page.name} is not what benchmarks/results say; run python -m benchmarks.render")
        if not check:
            page.write_text(new)


if __name__ == "__main__":
    main()
