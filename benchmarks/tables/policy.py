"""Policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.tables import interval, load, markdown, number, percent
from diffusion_core import results
from policy import published

HEADS = ("diffusion", "flow", "regression", "bet", "act", "lstm_gmm")


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


def realtime() -> str:
    """Strategies at the joins of chunks under latency."""
    r = load("policy/realtime")
    rows = [
        [
            row["strategy"],
            str(row["latency"]),
            interval(row["success_rate"]),
            interval(row["mean_max_score"]),
            number(row["joins"]["gap"], 1),
            number(row["joins"]["join_ratio"], 2),
        ]
        for row in r["rows"]
    ]
    head = ["strategy", "latency, steps of 0.1 s", "success [95 %]", "mean max score [95 %]", "gap at joins, px"]
    return markdown([*head, "stride at joins / stride"], rows)


def composition() -> str:
    """Products, negative prompts and costs on Push-T."""
    rows = [
        [
            row["policy"],
            interval(row["success_rate"]),
            interval(row["mean_max_score"]),
            percent(row["first_side"]),
            percent(row["in_region"]),
        ]
        for row in load("policy/composition")["rows"]
    ]
    head = ["policy", "success [95 %]", "mean max score [95 %]", "time on the first side %", "time in the region %"]
    return markdown(head, rows)


def heads() -> str:
    """Success of every head on every task at the same processor time; seeds pooled."""
    return _cells(load("policy/heads")["rows"], HEADS)


def absolute() -> str:
    """Actions that are poses: rotations and grippers as they should be learned, and otherwise."""
    names = ("diffusion", "product", "regression", "diffusion task.rotations=false")
    return _cells(load("policy/absolute")["rows"], names)


def _cells(rows: list[dict[str, Any]], names: Sequence[str]) -> str:
    """A row a task, a column a head; training seeds pooled."""
    table = []
    for task in sorted({row["task"] for row in rows}):
        cells = []
        for name in names:
            found = [r["success_rate"] for r in rows if (r["task"], r["head"]) == (task, name)]
            n = sum(r["n"] for r in found)
            pooled = results.rate(round(sum(r["value"] * r["n"] for r in found)), n) if n else None
            seeds = "" if len(found) == 3 else f" ({len(found)} seeds)"
            cells.append(f"{pooled.value:.2f} [{pooled.low:.2f}, {pooled.high:.2f}]{seeds}" if pooled else "")
        table.append([f"`{task}`", *cells])
    return markdown(["task", *(f"`{name}`" for name in names)], table)


def human() -> str:
    """Heads on the published demonstrations of Push-T at the same processor time, and what is published."""
    rows = load("policy/human")["rows"]
    table = []
    for task, sees, paper in (
        ("pusht", "keypoints", published.PUSHT),
        ("pusht_image", "pictures", published.PUSHT_IMAGE),
    ):
        for name in dict.fromkeys(row["head"] for row in rows if row["task"] == task):
            found = [row for row in rows if (row["task"], row["head"]) == (task, name)]
            scores = [row["mean_max_score"]["value"] for row in found]
            solved, n = (sum(round(x) for x in column) for column in zip(*map(_solved, found), strict=True))
            success = results.rate(solved, n)
            cells = [f"{min(scores):.2f} to {max(scores):.2f}" if len(scores) > 1 else f"{scores[0]:.2f}"]
            cells += [
                f"{success.value:.2f} [{success.low:.2f}, {success.high:.2f}]",
                f"{len(found)} x {found[0]['success_rate']['n']}",
            ]
            table.append([sees, f"`head={name}`", f"{found[0]['steps']:,}", *cells])
        table += [[sees, p.method, "", f"{p.best:.2f} / {p.last_ten:.2f}", "not given", "3 x 50"] for p in paper]
    head = ["sees", "policy", "training steps", "mean max score", "success [95 %]", "training seeds x episodes"]
    return markdown(head, table)


def _solved(row: dict[str, Any]) -> tuple[float, float]:
    rate = row["success_rate"]
    return rate["value"] * rate["n"], rate["n"]


def streaming() -> str:
    """A chunk that goes on against one drawn anew."""
    names = {"stream": "stream", "anew": "anew", "short": "anew, as few evaluations"}
    rows = [
        [
            str(row["every"]),
            names[row["way"]],
            str(row["evaluations"]),
            interval(row["success_rate"]),
            interval(row["mean_max_score"]),
            f"{row['milliseconds']:.1f}",
        ]
        for row in load("policy/streaming")["rows"]
    ]
    head = ["actions a turn", "chunk", "evaluations a turn", "success [95 %]", "mean max score [95 %]", "ms a turn"]
    return markdown(head, rows)


def imagination() -> str:
    """Imagined pictures beside the simulator's."""
    found = load("policy/imagination")
    table = []
    for row in found["rows"]:
        for error, unit in (("finger", "px"), ("block", "px"), ("overlap", "")):
            cells = [number(row[error][frame], 2 if error == "overlap" else 1) for frame in row[error]]
            table.append([row["world"], f"{error}{', ' * bool(unit)}{unit}", *cells])
    times = [f"{int(frame) * found['seconds_a_picture']:g} s" for frame in found["rows"][0]["block"]]
    return markdown(["world", "error", *times], table)


def latency() -> str:
    """Milliseconds per chunk, one robot, one thread."""
    ways = ("eager", "compiled", "exported", "onnx", "lerobot")
    merged: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for row in load("policy/latency")["rows"]:
        merged.setdefault((row["network"], row["steps"]), {}).update(row["ms"])
    rows = [
        [f"`{network}`", str(steps), *(f"{ms[way]['value']:.3g}" if way in ms else "" for way in ways)]
        for (network, steps), ms in merged.items()
        if len(ms) > 1
    ]
    return markdown(["network", "steps", "eager", "torch.compile", "torch.export", "ONNX Runtime", "LeRobot"], rows)


TABLES = {
    "pusht": pusht,
    "policy_heads": heads,
    "policy_absolute": absolute,
    "policy_human": human,
    "policy_streaming": streaming,
    "policy_imagination": imagination,
    "policy_latency": latency,
    "policy_composition": composition,
    "policy_realtime": realtime,
}
