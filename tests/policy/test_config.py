"""The command line of the policy domain: what composes, what is refused, and how."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from diffusion_core import solvers
from diffusion_core.configure import build, table, target
from diffusion_core.errors import WorkbenchError
from diffusion_core.normalize import MinMax
from policy import config as schema
from policy.config import EvaluateConfig, PolicyConfig, plain, typed
from policy.model import assemble
from tests.policy.conftest import config

REPOSITORY = Path(__file__).parents[2]


def names(group: str, package: str = "policy") -> list[str]:
    return sorted(p.stem for p in (REPOSITORY / package / "conf" / group).glob("*.yaml"))


PAIRS = list(itertools.product(names("preset"), names("task")))


@pytest.mark.parametrize(("preset", "task"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_every_preset_with_every_task_is_a_policy_that_can_be_sampled(preset, task):
    found = config(f"preset={preset}", f"task={task}")
    assert found.task.name == task
    env = build(found.task.env, obs=found.task.obs)
    features = env.observation_space.shape[0]
    policy = assemble(found, MinMax.empty(features), MinMax.empty(2 * found.horizon))
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
    schema.save(one, tmp_path / "config.yaml")
    other = typed(PolicyConfig, OmegaConf.load(tmp_path / "config.yaml"))
    assert plain(other) == plain(one) and isinstance(other, PolicyConfig)
    assert replace(one, horizon=8) != one


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


BAD = {
    "train unknown=1": ("unknown",),
    "train train.stepz=1": ("stepz",),
    "train horizon=many": ("horizon", "many"),
    "train task=juggling": ("juggling", "pusht", "pusht_state"),
    "train sampler=eulr": ("eulr", "euler"),
    "train task.env._target_=os.system": (),
    "train prediction=nothing data.source={data}": ("prediction", "nothing", "velocity"),
    "train data.source=/nowhere.zarr": ("/nowhere.zarr",),
    "train horizon=": ("horizon",),
    "train resume=/nowhere": ("resume", "/nowhere", "config.yaml"),
    "evaluate": ("checkpoint", "expected checkpoint="),
    "evaluate checkpoint=/nowhere": ("/nowhere", "does not exist"),
    "evaluate checkpiont=runs": ("checkpiont",),
}
FREE = "train task.env._target_=os.system"


@pytest.mark.slow
def test_a_bad_command_is_one_clear_line_and_status_2(tmp_path, data):
    """Two at a time: most of each is the import of torch."""
    waiting, running = list(BAD.items()), []
    while waiting or running:
        while waiting and len(running) < 2:
            words, expected = waiting.pop()
            module, *overrides = words.format(data=data).split()
            if module == "train" and "resume" not in words:
                overrides += [f"runs={tmp_path}/runs", "preset=smoke", "train.steps=1"]
                overrides += [] if "data.source" in words else [f"data.source={data}"]
            process = subprocess.Popen(
                [sys.executable, "-m", f"policy.{module}", *overrides],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            running.append((words, expected, process))
        words, expected, process = running.pop(0)
        said = process.communicate(timeout=120)[0]
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        assert process.returncode == 2, (words, said)
        assert "Traceback" not in said and len(errors) == 1 and said.splitlines()[-1] == errors[0], (words, said)
        assert all(word in errors[0] for word in expected), (words, errors)
