"""From demonstrations to a report through the command line; killed, resumed, shared among processes, judged again."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import kill_and_resume, two_processes
from diffusion_core import checkpoint
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch, read_metrics
from policy import evaluate, train
from policy.config import EvaluateConfig
from policy.model import restore
from tests.policy.conftest import config


def episodes_of(evaluation: Path) -> list[dict[str, str]]:
    with (evaluation / "episodes.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_loss_falls_and_the_curve_is_on_disk(trained):
    records = read_metrics(trained)
    losses = [r["loss"] for r in records if "loss" in r]
    assert [r["step"] for r in records if "loss" in r] == list(range(10, 301, 10))
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    judged = [r for r in records if "validation_score" in r]
    assert [r["step"] for r in judged] == [300] and 0.0 <= judged[0]["validation_score"] <= 1.0
    assert 0.0 < judged[0]["validation_loss"] < losses[0]
    assert [p.name for p in checkpoint.listing(trained)] == ["step_0000100", "step_0000200", "step_0000300"]


def test_the_evaluation_is_complete(trained, data):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((trained / "evaluation" / "evaluation.json").read_text(), parse_constant=refuse)
    outcome = {"mean_max_score", "success_rate", "final_coverage", "max_coverage", "steps_to_success"}
    assert outcome | {"replan_p50", "replan_p95"} <= found["metrics"].keys()
    for name, metric in found["metrics"].items():
        assert metric.keys() == {"value", "stderr", "low", "high", "n", "unit"}, name
        if metric["n"]:
            assert metric["low"] <= metric["value"] <= metric["high"] and metric["stderr"] >= 0.0, name
        else:
            assert metric["value"] is None, name
    assert found["metrics"]["mean_max_score"]["n"] == 3
    assert found["metrics"]["replan_p50"]["unit"] == "ms" and found["metrics"]["replan_p50"]["n"] == 100
    assert found["metrics"]["replan_p50"]["value"] <= found["metrics"]["replan_p95"]["value"]
    assert found["seeds"] == [100_000, 100_002] and found["task"] == "pusht" and found["step"] == 300
    assert data.name in found["data"] and "6 episodes" in found["data"]
    assert found["command"].startswith("python -m policy.train preset=smoke")
    assert found["sampler"]["steps"] == 4 and found["sampler"]["solver"]["_target_"].startswith("diffusion_core")
    assert found["commit"] and found["seconds"] > 0.0 and found["hardware"]["cores"] >= 1
    scores = [float(e["max_reward"]) for e in episodes_of(trained / "evaluation")]
    assert found["metrics"]["mean_max_score"]["value"] == pytest.approx(sum(scores) / 3)


def test_the_report_needs_nothing_but_itself(trained):
    page = (trained / "evaluation" / "report.html").read_text()
    sources = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?([^"'\s>]+)""", page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert not re.search(r"@import|url\(|<script|<link|<iframe", page)
    assert page.count("<video") == 3 and page.count("<img") >= 3
    score = json.loads((trained / "evaluation" / "evaluation.json").read_text())["metrics"]["mean_max_score"]["value"]
    for words in (f"mean max score {score:.3f}", "Diffusion Policy, CNN", "learning_rate", "python -m policy.train"):
        assert words in page


def test_films_decode_to_one_frame_per_state(trained):
    steps = {e["seed"]: int(e["steps"]) for e in episodes_of(trained / "evaluation")}
    films = sorted((trained / "evaluation").glob("seed_*.mp4"))
    # two that were asked for, and the other that was not solved
    assert [f.stem for f in films] == ["seed_100000", "seed_100001", "seed_100002"]
    for film in films:
        frames = iio.imread(film, plugin="pyav")
        assert frames.shape == (steps[film.stem.removeprefix("seed_")] + 1, 512, 512, 3)
        assert frames[0].std() > 10.0 and (frames[0] != frames[-1]).any()
    together = iio.imread(trained / "evaluation" / "grid.mp4", plugin="pyav")
    assert together.shape == (max(steps.values()) + 1, 512, 3 * 512 + 2 * 4, 3)


def judge(checkpoint_path: Path, out: Path, **more: Any) -> dict[str, Any]:
    request = EvaluateConfig(checkpoint=str(checkpoint_path), out=str(out), **({"n": 4, "film": 0} | more))
    return evaluate.run(request)


def test_an_evaluation_does_not_depend_on_how_many_episodes_run_side_by_side(trained, tmp_path):
    alone, together = (judge(trained, tmp_path / str(batch), batch=batch) for batch in (1, 4))
    assert (tmp_path / "1" / "episodes.csv").read_bytes() == (tmp_path / "4" / "episodes.csv").read_bytes()
    for name, metric in alone["metrics"].items():
        assert name.startswith("replan") or str(metric) == str(together["metrics"][name])
    assert len({e["final_coverage"] for e in episodes_of(tmp_path / "4")} | {"0"}) > 1


def test_nor_on_how_many_processes_play_them(trained, tmp_path):
    alone, shared = (judge(trained, tmp_path / str(jobs), n=3, jobs=jobs) for jobs in (1, 2))
    assert (tmp_path / "1" / "episodes.csv").read_bytes() == (tmp_path / "2" / "episodes.csv").read_bytes()
    assert str(alone["metrics"]["mean_max_score"]) == str(shared["metrics"]["mean_max_score"])


def test_an_evaluation_again_is_the_same_and_so_from_a_copied_folder(trained, tmp_path):
    newest = checkpoint.listing(trained)[-1]
    shutil.copytree(newest, tmp_path / "copied")
    (tmp_path / "copied" / "training.safetensors").unlink()
    judge(tmp_path / "copied", tmp_path / "out", n=3)
    assert episodes_of(tmp_path / "out") == episodes_of(trained / "evaluation")


def test_the_last_checkpoints_are_aggregated_as_the_paper_does(trained, tmp_path):
    found = judge(trained, tmp_path / "all", n=2, last=3)
    assert found["aggregates"]["steps"] == [100, 200, 300] and found["aggregates"]["checkpoints"] == 3
    single = [judge(p, tmp_path / p.name, n=2)["metrics"]["mean_max_score"].value for p in checkpoint.listing(trained)]
    assert found["aggregates"]["max"] == max(single)
    assert found["aggregates"]["mean"] == pytest.approx(sum(single) / 3)
    assert found["metrics"]["mean_max_score"].value == single[-1]
    with pytest.raises(WorkbenchError, match=r"last: got 4, but .* has 3 checkpoints"):
        judge(trained, tmp_path / "more", last=4)


def test_another_sampler_can_be_named_at_evaluation(trained, tmp_path):
    euler = {"_target_": "diffusion_core.solvers.euler"}
    found = judge(trained, tmp_path / "euler", n=1, sampler=euler, steps=3)
    assert found["sampler"] == {"solver": euler, "grid": found["sampler"]["grid"], "steps": 3}


def test_a_consistency_policy_begins_as_its_teacher_and_learns_from_it(trained, data, tmp_path):
    words = ["preset=smoke", "head=consistency", "prediction=x0", f"teacher={trained}", f"data.source={data}"]
    settings = config(*words, f"runs={tmp_path}", "train.steps=20", "evaluation.n=1", "evaluation.film=0")
    settings.task.env["max_steps"] = 16
    policy = train.untrained(settings, train.load_data(settings))
    teacher, _ = restore(checkpoint.find(str(trained)))
    assert all(
        torch.equal(a, b) for a, b in zip(policy.state_dict().values(), teacher.state_dict().values(), strict=True)
    )
    (taught,) = policy.head.teacher
    assert not any(key.startswith("head.teacher") for key in policy.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), teacher.denoiser.parameters(), strict=True))
    found = json.loads((train.run(settings) / "evaluation" / "evaluation.json").read_text())
    assert found["sampler"]["steps"] == 1
    for wrong, match in (("network.width=32", "with network="), ("head=diffusion", "expected head=consistency")):
        other = config(*words, wrong)
        with pytest.raises(WorkbenchError, match=match):
            train.untrained(other, train.load_data(other))


def tampered(trained: Path, folder: Path, **meta: str) -> Path:
    shutil.copytree(checkpoint.listing(trained)[-1], folder)
    about = json.loads((folder / "meta.json").read_text()) | meta
    (folder / "meta.json").write_text(json.dumps(about))
    return folder


def test_a_checkpoint_of_another_task_or_domain_is_refused(trained, tmp_path):
    with pytest.raises(WorkbenchError, match="got one of domain=policy task=pusht, expected domain=policy task=lift"):
        judge(trained, tmp_path / "out", expect_task="lift")
    other = tampered(trained, tmp_path / "other", domain="planning", task="maze")
    with pytest.raises(WorkbenchError, match=r"domain=planning task=maze.*python -m planning.evaluate"):
        judge(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_whose_configuration_names_foreign_code_runs_none_of_it(trained, tmp_path):
    for key in ("schedule", "network", "loss", "sampler", "grid"):
        folder = tampered(trained, tmp_path / key)
        config = OmegaConf.load(folder / "config.yaml")
        config[key] = {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
        OmegaConf.save(config, folder / "config.yaml")
        with pytest.raises(WorkbenchError, match=r"_target_='os\.system'"):
            judge(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def refused(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["policy/train.py", *words])
    with pytest.raises(SystemExit) as caught:
        launch(train._hydra_main)
    said = capfd.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in said
    return said.splitlines()[-1]


def test_a_resumed_run_keeps_its_own_configuration(trained, monkeypatch, capfd):
    before = (trained / "metrics.jsonl").read_bytes()
    said = refused([f"resume={trained}", "train.steps=400"], monkeypatch, capfd)
    assert said.startswith("error: resume: got ['train.steps=400'] besides")
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_what_is_not_a_run_is_not_resumed(tmp_path, monkeypatch, capfd):
    assert "has no config.yaml; expected the folder of a run" in refused([f"resume={tmp_path}"], monkeypatch, capfd)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_resumed_on_other_demonstrations(trained, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    kill_and_resume.demonstrations(tmp_path / "others.zarr.zip", 4)
    config = OmegaConf.load(run / "config.yaml")
    config.data.source = str(tmp_path / "others.zarr.zip")
    OmegaConf.save(config, run / "config.yaml")
    assert "not the demonstrations this run began with" in refused([f"resume={run}"], monkeypatch, capfd)
    assert checkpoint.find(run).step == 300


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_ends_bit_for_bit_where_an_undisturbed_run_ends(data, tmp_path):
    """benchmarks/kill_and_resume.py does this with 20 kills."""
    steps, every = 500, 15
    log = tmp_path / "log"
    kill_and_resume.finish(kill_and_resume.overrides(data, tmp_path / "undisturbed", steps, every), log)
    undisturbed = kill_and_resume.only_run(tmp_path / "undisturbed")
    words = kill_and_resume.overrides(data, tmp_path / "killed", steps, every)
    run, killed_at = kill_and_resume.killed(words, tmp_path / "killed", 5, log, random.Random(0), longest=0.2)
    assert len(killed_at) == 5 and 0 < max(killed_at) < steps
    one, other = (checkpoint.listing(r)[-1] for r in (undisturbed, run))
    for name in kill_and_resume.FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    records = kill_and_resume.records(run)
    assert records == kill_and_resume.records(undisturbed) and len(records) == steps + 1
    assert episodes_of(undisturbed / "evaluation") == episodes_of(run / "evaluation")
    assert not list((run / "checkpoints").glob("*.partial"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data, tmp_path):
    curves, weights = [], []
    for n in (1, 2):
        run = two_processes.train(n, kill_and_resume.overrides(data, tmp_path / str(n), 60, 0), tmp_path / str(n))
        curves.append(two_processes.losses(run))
        weights.append(checkpoint.find(run).tensors("model"))
        assert len(list((tmp_path / str(n)).glob("*/*"))) == 1
    assert len(curves[0]) == len(curves[1]) == 60 and curves[0][-1] < 0.5 * curves[0][0]
    assert all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(*curves, strict=True))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


def test_a_sweep_trains_side_by_side_and_a_mistake_in_it_is_one_line(data, tmp_path):
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "preset=smoke", f"data.source={data}"]
    words += [f"runs={tmp_path}/runs", "task.env.max_steps=16", "train.steps=20", "evaluation.n=1", "evaluation.film=0"]
    kill_and_resume.finish([*words, "train.seed=0,1"], tmp_path / "log")
    told = [OmegaConf.load(path) for path in (tmp_path / "runs").glob("*/policy-*/config.yaml")]
    assert sorted(config.train.seed for config in told) == [0, 1]
    assert len(list((tmp_path / "runs").glob("*/policy-*/evaluation/evaluation.json"))) == 2
    assert kill_and_resume.start([*words, "train.seed=-1"], tmp_path / "mistake").wait() == 2
    assert (tmp_path / "mistake").read_text().splitlines()[-1].startswith("error: train.seed: got -1;")
