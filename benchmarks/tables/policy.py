"""Policies."""

from __future__ import annotations

from benchmarks.tables import interval, load, markdown, number, percent
from policy import published


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


TABLES = {
    "pusht": pusht,
    "policy_composition": composition,
    "policy_realtime": realtime,
}
