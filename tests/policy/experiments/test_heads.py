"""The table of heads and tasks: cells are trained once, in shards, and go on where they were stopped."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from diffusion_core.run import read_metrics
from policy.experiments import heads


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> dict[str, object]:
    shared = [
        "--data",
        str(folder),
        "--work",
        str(folder / "work"),
        "--out",
        str(folder / "out.json"),
        "--tasks",
        "pusht",
    ]
    budget = ["--minutes", "0.02", "--n", "1", "--seeds", "1"]
    small = ["--words", "preset=smoke", "task.env.max_steps=16", "head.width=16", "horizon=4", "n_action_steps=2"]
    monkeypatch.setattr(sys, "argv", ["heads", *shared, *budget, *words, *small])
    heads.main()
    return json.loads((folder / "out.json").read_text())


def test_cells_are_filled_by_shards_and_left_alone_afterwards(monkeypatch, tmp_path, data):
    shutil.copy(data, tmp_path / "pusht.zarr.zip")
    first = run(monkeypatch, tmp_path, "--heads", "bet", "act", "--shard", "0/2")
    assert [row["head"] for row in first["rows"]] == ["bet"]
    whole = run(monkeypatch, tmp_path, "--heads", "bet", "act", "--shard", "1/2")
    assert [row["head"] for row in whole["rows"]] == ["act", "bet"]
    for row in whole["rows"]:
        assert row["steps"] >= 10 and row["success_rate"]["n"] == 1
        (home,) = (tmp_path / "work" / f"pusht-{row['head']}-0").glob("*/*")
        assert [r["step"] for r in read_metrics(home) if "loss" in r][-1] == row["steps"]
    before = sorted(p.name for p in (tmp_path / "work").rglob("*"))
    assert run(monkeypatch, tmp_path, "--heads", "bet", "act")["rows"] == whole["rows"]
    assert sorted(p.name for p in (tmp_path / "work").rglob("*")) == before
    # a cell that was stopped before its end is not begun anew
    (tmp_path / "work" / "cells" / "pusht-bet-0.json").unlink()
    again = run(monkeypatch, tmp_path, "--heads", "bet", "act")["rows"][1]
    assert (
        again["steps"] == whole["rows"][1]["steps"] and sorted(p.name for p in (tmp_path / "work").rglob("*")) == before
    )


def test_missing_demonstrations_say_how_to_make_them(monkeypatch, tmp_path, capfd):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "--heads", "bet")
    said = capfd.readouterr().err.splitlines()[-1]
    assert "got no demonstrations" in said and "python -m policy.data generate task=pusht" in said
