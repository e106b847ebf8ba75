"""Planners."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.tables import RESULTS, interval, load, markdown
from planning import published as planning_published
from planning.evaluate import PEERS


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


def obstacles() -> str:
    """Executed success by what stands in the way."""
    rows = load("planning/obstacles")["rows"]
    series = list(next(iter(rows.values())))
    table = [[name, *(interval(row[key]["success"]) for key in series)] for name, row in rows.items()]
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
                interval(row["valid"]),
                interval(row["success"]),
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
            *(interval(row[n]["valid"]) for n in row),
            *(interval(row[n]["success"]) for n in row),
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
        return [name, interval(m["success_rate"]), *(f"{m[t]['value']:.2f}" for t in tasks), f"{steps:.0f}", times]

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
            interval(row["success"]["rate"]),
            ", ".join(f"{share:.2f}" for share in row["success"]["by_prior"]),
            f"{row['steps_to_goal']['value']:.0f}",
            interval(row["in_goal"]),
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
            cells = [score, interval(m["success_rate"]), interval(m["plan_valid"]), f"{m['planning_p50']['value']:.0f}"]
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
        [one["asked for"], *(interval(value) for name, value in one.items() if name != "asked for")]
        for one in load("planning/stacking")["constraints"]
    ]
    return markdown(["asked for", "something on block 1", "block 0 went", "block 0 on block 1"], rows)


TABLES = {
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
}
