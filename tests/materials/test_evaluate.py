"""Judging anybody's crystals: real entries, one twice, one known, against the real data and its partial hull."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from diffusion_core.errors import WorkbenchError
from materials import evaluate, files
from materials.config import DataConfig, EvaluateConfig, TaskConfig
from materials.data import sources
from tests.materials.test_metrics import real

MP = TaskConfig("mp_20", max_atoms=20)


@real
def test_files_of_the_test_set_are_judged_as_what_they_are(tmp_path):
    test, train = (sources.load(MP, DataConfig(), split) for split in ("test", "train"))
    order = np.argsort([len(c) for c in test], kind="stable")
    small = [test[int(i)] for i in order if len(test[int(i)]) == 2][:5]
    known = next(c for c in train if len(c) == 2)
    given = files.write([*small, known, small[0]], tmp_path, ["cif"])[0].parent
    request = EvaluateConfig(structures=str(given), reference="mp_20", stability=2, workers=1)
    request.out = str(tmp_path / "out")
    found = evaluate.run(request)["de_novo"]
    assert found["n"] == 7
    metrics = found["metrics"]
    assert metrics["structure_valid"].value == 1.0
    assert metrics["unique"].value == pytest.approx(6 / 7)
    assert metrics["novel"].value <= 6 / 7
    rows = list(csv.DictReader((tmp_path / "out" / "structures.csv").open()))
    assert len(rows) == 7 and sum(row["nearest_known"] != "" for row in rows) >= 1
    judged = [row for row in rows if row["above_partial_hull"] != ""]
    assert len(judged) == 2 and all(abs(float(row["above_partial_hull"])) < 1.0 for row in judged)
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["task"] == "mp_20"
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_a_hull_needs_formation_energies(tmp_path):
    data = DataConfig(n=40)
    train = sources.load(TaskConfig("prototypes", max_atoms=20), data, "train")
    with pytest.raises(WorkbenchError, match=r"evaluation.stability: got .*, which has no formation energies"):
        evaluate.stability_of(train.take(np.arange(2)), [{}, {}], train, EvaluateConfig(stability=2))
