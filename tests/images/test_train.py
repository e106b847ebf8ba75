"""From images to a report through the programs: train, resume, sample, evaluate; and what they refuse."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from diffusion_core import checkpoint
from diffusion_core.configure import build, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch, read_metrics
from diffusion_core.schedule import Cosine
from images import evaluate, features, metrics, model, sample
from images.config import EvaluateConfig, ImagesConfig, SampleConfig, configuration
from images.data.sources import load
from images.model import restore, sampling
from images.systems import Sampling
from images.train import run
from tests.images.conftest import SMOKE

CONF = Path(sample.__file__).parent / "conf"


def test_the_loss_falls_and_all_of_the_run_is_on_disk(trained):
    losses = [r["loss"] for r in read_metrics(trained)]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    found = json.loads((trained / "evaluation" / "evaluation.json").read_text())
    names = {"FD", "KID", "precision", "recall", "accuracy", "copied"}
    assert {f"{name}[digits-features-v1]" for name in names} <= found["metrics"].keys()
    assert found["system"] == "Diffusion" and found["step"] == 60 and found["seeds"] == [100_000, 100_199]
    page = (trained / "evaluation" / "report.html").read_text()
    assert "FD[digits-features-v1]" in page and page.count("data:image/png") == 2
    assert iio.imread(trained / "evaluation" / "samples.png").std() > 10


def test_a_run_that_was_stopped_ends_where_an_undisturbed_one_ends(trained, tmp_path):
    stopped = tmp_path / "run"
    shutil.copytree(trained, stopped)
    shutil.rmtree(checkpoint.listing(stopped)[-1])
    assert checkpoint.find(stopped).step == 40
    config = configuration([*SMOKE, "system=conditional", "steps=10", "train.checkpoint_every=20"])
    config.resume = str(stopped)
    run(config)
    ends = [load_file(checkpoint.listing(where)[-1] / "model.safetensors") for where in (trained, stopped)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_checkpoint_is_the_system_again_and_a_sample_does_not_depend_on_its_batch(trained):
    system, config = restore(checkpoint.find(trained))
    labels = evaluate.in_turn(7, 10)
    together = evaluate.generate(system, labels, sampling(config), seed=5)
    alone = evaluate.generate(system, labels[3:4], sampling(config), seed=8)
    torch.testing.assert_close(together[3:4], alone, atol=1e-5, rtol=0.0)
    in_parts = evaluate.generate(system, labels, sampling(config), seed=5, batch=2)
    torch.testing.assert_close(together, in_parts, atol=1e-5, rtol=0.0)


def test_samples_are_written_one_by_one_and_as_a_grid(trained, tmp_path):
    out = sample.run(SampleConfig(checkpoint=str(trained), n=3, label="7", steps=4, out=str(tmp_path / "samples")))
    files = sorted(out.glob("*.png"))
    assert len(files) == 4 and (out / "grid.png") in files
    assert {iio.imread(f).shape[:2] for f in files if f.name != "grid.png"} == {(8, 8)}


def test_another_sampler_is_another_result_in_the_same_form(trained, tmp_path):
    asked = EvaluateConfig(checkpoint=str(trained), steps=3, n=100, batch=50, guidance_scale=2.0, out=str(tmp_path))
    found = evaluate.run(asked)
    assert found["sampler"]["steps"] == 3 and found["guidance_scale"] == 2.0 and len(found["seeds"]) == 2
    assert found["metrics"]["FD[digits-features-v1]"].n == 100


def test_another_way_of_sampling_is_judged_beside_what_the_training_left(trained):
    own = (trained / "evaluation" / "evaluation.json").read_bytes()
    evaluate.run(EvaluateConfig(checkpoint=str(trained), steps=2, n=20, batch=20, guidance_scale=3.0))
    assert (trained / "evaluation" / "evaluation.json").read_bytes() == own
    assert (trained / "evaluation-2-steps-n-20-guidance-3.0" / "evaluation.json").exists()


def test_guidance_that_explodes_is_said_and_not_drawn(trained):
    system, config = restore(checkpoint.find(trained))
    config = evaluate.with_sampler(config, None, None, 4, 1e15)
    with pytest.raises(WorkbenchError, match=r"not finite, with guidance_scale=1e\+15.*lower guidance_scale"):
        evaluate.generate(system, evaluate.in_turn(4, 10), sampling(config), seed=0)


def test_images_without_a_feature_network_are_compared_by_pixels_and_named_so():
    task = configuration(["task=folder"]).task
    name, judge = evaluate.judge_of(task)
    features, probabilities = judge(torch.zeros(2, 3, 32, 32))
    assert name == "pixels-8x8" and features.shape == (2, 192) and probabilities is None


SYSTEMS = sorted(p.stem for p in (CONF / "system").glob("*.yaml"))
TASKS = sorted(p.stem for p in (CONF / "task").glob("*.yaml"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_composes_with_every_task_and_preset(system):
    # presets and tasks touch no key in common: each with one of the others
    for task, preset in [*((task, "quick") for task in TASKS), *(("digits", p) for p in ("cpu", "smoke", "gpu"))]:
        found = configuration([f"task={task}", f"preset={preset}", f"system={system}"])
        assert found.task.name == task and found.system["_target_"].startswith("images.systems.")


def is_one_line(said: str, expected: tuple[str, ...]) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert "Traceback" not in said and len(errors) == 1, said
    assert all(word in errors[0] for word in expected), errors


BAD = {
    "train train.stepz=1": ("stepz",),
    "train system=nonsense": ("nonsense",),
    "train system._target_=os.system": ("_target_='os.system'",),
    "train system._target_=images.train.run": ("images.train.run",),
    "train prediction=nothing": ("prediction", "nothing", "velocity"),
    "train task.source=elsewhere": ("task.source", "elsewhere", "digits"),
    "train task=folder": ("path",),
    "train task=folder task.path=/nowhere": ("/nowhere",),
    "train task.channels=2": ("task.channels", "2"),
    "train guidance_scale=nan": ("guidance_scale", "nan", "finite"),
    "train network.heads=0": ("configuration of", "UNet2d", "zero"),
    "train parent={trained}": ("parent", "Diffusion is built on no other"),
    "train system=latent parent=pretrained/digits-features": ("digits-features", "expected a system"),
    "train resume=/nowhere": ("resume", "/nowhere", "does not exist"),
    "train resume={damaged}": ("resume", "config.yaml", "damaged", "expected"),
    "sample": ("checkpoint", "expected"),
    "sample checkpoint=/nowhere": ("/nowhere", "does not exist"),
    "sample checkpoint={trained} label=10": ("label", "10", "10 classes"),
    "sample checkpoint={trained} expect_system=Cascade": ("Diffusion", "expected a Cascade"),
    "sample checkpoint={trained} n=0": ("n", "0"),
    "sample checkpoint={trained} n=2 seed=9223372036854775807": ("seed", "9223372036854775807", "2^63"),
    "sample checkpoint={trained} sampler.eta=1": ("sampler.eta",),
    "sample checkpoint=pretrained/digits-features": ("digits-features", "expected a system"),
    "evaluate checkpoint=pretrained/pusht": ("pretrained/pusht",),
    "evaluate checkpoint={policy}": ("policy", "images"),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_command_is_one_clear_line_and_status_2(words, tmp_path, trained, monkeypatch, capfd):
    policy = Path(sample.__file__).parents[1] / "policy" / "pretrained" / "pusht"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("task: [1,\n steps: {")
    module, *overrides = words.format(trained=trained, policy=policy, damaged=damaged).split()
    if module == "train" and "resume" not in words:
        smoke = [f"runs={tmp_path}", "preset=smoke", "train.steps=1"]
        overrides = smoke + overrides
    elif module == "sample":
        overrides.append(f"out={tmp_path / 'samples'}")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", [f"images/{module}.py", *overrides])
    with pytest.raises(SystemExit) as caught:
        launch(importlib.import_module(f"images.{module}")._hydra_main)
    assert caught.value.code == 2
    is_one_line(capfd.readouterr().err, BAD[words])


def test_a_checkpoint_whose_data_have_changed_is_not_resumed(trained, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(trained, other)
    newest = checkpoint.listing(other)[-1] / "meta.json"
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"data": "other images"}))
    config = configuration([*SMOKE, "system=conditional"])
    config.resume = str(other)
    with pytest.raises(WorkbenchError, match="not the images this run began with"):
        run(config)


def test_every_class_comes_in_turn():
    assert np.bincount(evaluate.in_turn(100, 10).numpy()).tolist() == [10] * 10
    assert evaluate.in_turn(5, 0).tolist() == [0] * 5


def test_too_few_images_are_not_compared_and_enough_are(trained, tmp_path):
    def names(n: int) -> set[str]:
        asked = EvaluateConfig(checkpoint=str(trained), steps=1, n=n, out=str(tmp_path))
        return {name.partition("[")[0] for name in evaluate.run(asked)["metrics"]}

    assert names(evaluate.FEWEST - 1) == {"images per second"}
    assert {"FD", "density", "coverage"} <= names(evaluate.FEWEST)


def test_a_system_that_is_told_no_labels_is_not_judged_by_them(tmp_path):
    words = [*SMOKE, "system=ddpm", "train.steps=1", "steps=1", "evaluation.n=20", f"runs={tmp_path}"]
    there = run(configuration(words))
    found = json.loads((there / "evaluation" / "evaluation.json").read_text())["metrics"]
    assert "IS[digits-features-v1]" in found and "accuracy[digits-features-v1]" not in found
    with pytest.raises(WorkbenchError, match=r"label: got 7; expected none.*trained without labels"):
        sample.run(SampleConfig(checkpoint=str(there), n=1, label="7", out=str(tmp_path / "samples")))


def test_a_run_needs_its_parent_only_to_begin(tmp_path):
    first = run(configuration([*SMOKE, "system=autoencoder", "train.steps=1", f"runs={tmp_path / 'parents'}"]))
    words = [*SMOKE, "system=latent", "train.steps=4", "train.checkpoint_every=2", "train.keep=2", "steps=1"]
    words += ["evaluation.n=20", f"parent={first}", f"runs={tmp_path}"]
    there = run(configuration(words))
    other = checkpoint.load(checkpoint.listing(first)[-1])
    other.meta["classes"].append("one more")
    (other.path / "meta.json").write_text(json.dumps(other.meta))
    with pytest.raises(WorkbenchError, match="got one of 11 classes; expected 10"):
        run(configuration(words))

    shutil.rmtree(first)
    whole = load_file(checkpoint.listing(there)[-1] / "model.safetensors")
    assert (sample.run(SampleConfig(checkpoint=str(there), n=1, out=str(tmp_path / "samples"))) / "00000.png").exists()
    shutil.rmtree(checkpoint.listing(there)[-1])
    saved = typed(ImagesConfig, OmegaConf.load(there / "config.yaml"))
    saved.resume = str(there)
    run(saved)
    again = load_file(checkpoint.listing(there)[-1] / "model.safetensors")
    assert checkpoint.find(there).step == 4 and all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_damaged_feature_network_is_not_replaced_by_another_measure(monkeypatch):
    monkeypatch.setitem(features.SHA256, "digits", "0" * 64)
    evaluate._extractor.cache_clear()
    with pytest.raises(WorkbenchError, match="restore the shipped file"):
        evaluate.judge_of(configuration(["task=digits"]).task)


def test_pictures_are_judged_in_parts_as_they_are_at_once(monkeypatch):
    task, seen = configuration(["task=digits"]).task, {}
    monkeypatch.setattr(metrics, "measure", lambda found, reference, name, **others: seen.update(others) or {})
    train, test = load(task, "train"), load(task, "test")
    evaluate.measure(test.images()[:20], test.labels[:20], task, test, train)
    assert len(train) > 1000  # more than one part
    torch.testing.assert_close(seen["training"], evaluate.judge_of(task)[1](train.images())[0])


def test_a_folder_that_cannot_be_written_into_is_refused_before_drawing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(WorkbenchError, match="cannot write into"):
        sample.run(SampleConfig(checkpoint=str(trained), n=1, out=str(tmp_path)))


def test_what_is_no_system_is_refused(monkeypatch):
    # what a target of images.systems that takes one argument and is none would return
    monkeypatch.setattr(model, "build", lambda leaf, *parts, **more: leaf if parts else build(leaf, **more))
    with pytest.raises(WorkbenchError, match=r"Diffusion', which is none"):
        model.assemble(configuration(["system=conditional"]), 10)


def test_a_solver_that_cannot_use_a_value_says_so_in_one_line():
    with pytest.raises(WorkbenchError, match=r"sampler and grid: .*by zero"):
        Sampling(solver=lambda schedule, times: 1 // 0).table(Cosine())


@pytest.mark.parametrize("system", ["conditional", "low_res", "zero_terminal"])
def test_what_could_never_be_sampled_is_refused_before_training(system, tmp_path):
    words = [*SMOKE, "task=digits_inverted", f"system={system}", "prediction=eps", "grid.start=1.0", f"runs={tmp_path}"]
    with pytest.raises(WorkbenchError, match=r"eps|signal"):
        run(configuration(words))
    assert not list(tmp_path.glob("*/*/checkpoints"))
