"""The command line of the policy domain: what composes, what is refused, and how."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest
import yaml
from omegaconf import OmegaConf

from diffusion_core import solvers
from diffusion_core.configure import build, plain, save, table, target, typed
from diffusion_core.errors import WorkbenchError
from diffusion_core.normalize import MinMax
from diffusion_core.run import launch
from policy import config as schema
from policy.config import EvaluateConfig, PolicyConfig
from policy.model import assemble
from tests.policy.conftest import config

REPOSITORY = Path(__file__).parents[2]


def names(group: str, package: str = "policy") -> list[str]:
    return sorted(p.stem for p in (REPOSITORY / package / "conf" / group).glob("*.yaml"))


PAIRS = [("cpu", task) for task in names("task")] + [(preset, "pusht") for preset in names("preset") if preset != "cpu"]


@pytest.mark.parametrize(("preset", "task"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_preset_with_every_task_is_a_policy_that_can_be_sampled(preset, task):
    if task.startswith(("lift", "can", "square")):
        pytest.importorskip("robosuite", reason="robosuite is not installed (extra robosuite)")
    found = config(f"preset={preset}", f"task={task}")
    assert found.task.name == task
    env = build(found.task.env)
    space = env.observation_space
    spaces = space.spaces if isinstance(space, gymnasium.spaces.Dict) else {next(iter(found.task.obs)): space}
    assert set(found.task.obs) <= set(spaces)
    features = sum(spaces[key].shape[0] for key, kind in found.task.obs.items() if kind == "low_dim")
    dim = env.action_space.shape[0]
    policy = assemble(found, MinMax.empty(features), MinMax.empty(dim * found.horizon))
    plan = table(found.sampler, found.grid, found.steps, policy.denoiser.schedule)
    policy.denoiser.bind(plan.times)
    assert int(plan.ends_step.sum()) == found.steps
    assert all(0 <= feature < features for feature in found.task.reference)
    assert found.n_obs_steps - 1 + found.n_action_steps <= found.horizon


def test_the_default_is_the_cpu_preset_on_pusht_with_the_shipped_demonstrations():
    assert config() == config("preset=cpu", "task=pusht", "data=expert")


def test_the_paper_preset_has_the_papers_hyper_parameters():
    """Chi et al. 2023, table 7, state-based Push-T."""
    paper = config("preset=paper")
    assert (paper.horizon, paper.n_obs_steps, paper.n_action_steps) == (16, 2, 8)
    assert (paper.prediction, paper.n_train, paper.steps) == ("eps", 100, 100)
    assert (paper.train.learning_rate, paper.train.weight_decay, paper.train.batch_size) == (1e-4, 1e-6, 256)
    assert (tuple(paper.train.betas), paper.train.warmup_steps) == ((0.95, 0.999), 500)
    assert (paper.data.max_episodes, paper.data.mirror) == (90, False)
    assert target(paper.sampler) is solvers.ddpm


@pytest.mark.parametrize("group", ["sampler", "grid", "schedule", "loss", "network"])
def test_every_choice_of_a_shared_group_composes(group):
    package = "policy" if group == "network" else "diffusion_core"
    for name in names(group, package):
        leaf = yaml.safe_load((REPOSITORY / package / "conf" / group / f"{name}.yaml").read_text())
        assert getattr(config(f"{group}={name}"), group)["_target_"] == leaf["_target_"]


def test_a_choice_replaces_the_whole_leaf_and_an_override_changes_one_key():
    assert config("sampler=heun").sampler == {"_target_": "diffusion_core.solvers.heun"}
    assert config("sampler.eta=0.5").sampler == {"_target_": "diffusion_core.solvers.ddim", "eta": 0.5}


@pytest.mark.parametrize("preset", names("preset"))
def test_a_configuration_survives_yaml(tmp_path, preset):
    one = config(f"preset={preset}", "clip=null", "runs=elsewhere", "data.source=a b: c")
    save(one, tmp_path / "config.yaml")
    other = typed(PolicyConfig, OmegaConf.load(tmp_path / "config.yaml"))
    assert plain(other) == plain(one) and isinstance(other, PolicyConfig)
    assert replace(one, horizon=32) != one


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"horizn": 3}, "horizn"),
        ({"train": {"stepz": 3}}, "stepz"),
        ({"horizon": "many"}, "many"),
        ({"train": {"learning_rate": [1]}}, "learning_rate"),
        ({"train": {"precision": None}}, "precision"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(values, words):
    with pytest.raises(WorkbenchError) as caught:
        typed(PolicyConfig, values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_evaluation_keeps_the_sampler_unless_told_otherwise():
    kept = typed(EvaluateConfig, {})
    assert kept.sampler is None and kept.grid is None and kept.steps == 0


def is_one_line(said: str, expected: tuple[str, ...]) -> None:
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert "Traceback" not in said and len(errors) == 1 and said.splitlines()[-1] == errors[0], said
    assert all(word in errors[0] for word in expected), errors


BAD = {
    "train train.stepz=1": ("stepz",),
    "train sampler=eulr": ("eulr", "euler"),
    "train horizon=": ("horizon",),
    "train task.env._target_=os.system": ("_target_='os.system'",),
    "train schedule._target_=subprocess.run": ("_target_='subprocess.run'",),
    "train prediction=nothing": ("prediction", "nothing", "velocity"),
    "train prediction=eps": ("eps prediction", "leaves no way to get x0"),
    "train data.source=/nowhere.zarr": ("/nowhere.zarr",),
    "train resume=/nowhere": ("resume", "/nowhere", "does not exist"),
    "evaluate": ("checkpoint", "expected checkpoint="),
    "evaluate checkpoint=/nowhere": ("/nowhere", "does not exist"),
    "evaluate checkpiont=runs": ("checkpiont",),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_command_is_one_clear_line_and_status_2(words, tmp_path, data, monkeypatch, capfd):
    module, *overrides = words.split()
    if module == "train" and "resume" not in words:
        preset = ["preset=smoke", f"runs={tmp_path}", "train.steps=1", f"data.source={data}"]
        overrides = preset[: 3 if "data.source" in words else 4] + overrides
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", [f"policy/{module}.py", *overrides])
    with pytest.raises(SystemExit) as caught:
        launch(importlib.import_module(f"policy.{module}")._hydra_main)
    assert caught.value.code == 2
    is_one_line(capfd.readouterr().err, BAD[words])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("unknown=1", ("unknown",)),
        ("horizon=many", ("horizon", "many")),
        ("task=juggling", ("juggling", "pusht_state")),
    ],
)
def test_so_it_is_from_a_real_shell(word, expected):
    command = [sys.executable, "-m", "policy.train", word]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    is_one_line(done.stderr, expected)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("program", "groups"),
    [
        ("train", ["grid", "loss", "sampler", "schedule"]),
        ("evaluate", ["grid", "sampler"]),
        ("sample", ["grid", "sampler"]),
    ],
)
def test_help_names_every_option_of_the_core(program: str, groups: list[str]) -> None:
    text = (Path(schema.__file__).parent / "conf" / f"{program}.yaml").read_text()
    core = Path(schema.__file__).parents[1] / "diffusion_core" / "conf"
    for group in groups:
        options = ", ".join(sorted(leaf.stem for leaf in (core / group).glob("*.yaml")))
        assert f"{group}: {options}" in text
