"""Checkpoints: complete or absent, refused when they are not what they should be, and never code."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_core import checkpoint
from diffusion_core.configure import bind, build
from diffusion_core.errors import WorkbenchError

META = {"domain": "policy", "task": "pusht", "data": "expert", "commit": "abc"}
CONFIG = {"network": {"_target_": "diffusion_core.nn.mlp.ResidualMLP", "width": 8}, "steps": 10, "clip": None}
REPOSITORY = Path(__file__).parents[2]


def tensors(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    model = {"weight": torch.full((4, 3), value), "bias": torch.arange(4.0), "count": torch.tensor(7)}
    return {"model": model, "training": {"losses": torch.tensor([]), "optimizer.0.step": torch.tensor(3.0)}}


def saved(run: Path, step: int = 500) -> Path:
    return checkpoint.save(run / "checkpoints", step, tensors(float(step)), CONFIG, META)


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(caught: pytest.ExceptionInfo[WorkbenchError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_saved_is_what_is_loaded(tmp_path):
    found = checkpoint.find(saved(tmp_path))
    assert found.step == 500 and found.config == CONFIG and META.items() <= found.meta.items()
    for name, values in tensors(500.0).items():
        loaded = found.tensors(name)
        assert loaded.keys() == values.keys()
        assert all(torch.equal(loaded[k], v) and loaded[k].dtype == v.dtype for k, v in values.items())


def test_a_run_means_its_newest_checkpoint_by_number_not_by_name(tmp_path):
    for step in (9_999_999, 10_000_000, 20):
        saved(tmp_path, step)
    assert checkpoint.find(tmp_path).step == 10_000_000
    assert [checkpoint.load(p).step for p in checkpoint.listing(tmp_path)] == [20, 9_999_999, 10_000_000]


def test_a_copied_folder_loads_alone(tmp_path):
    alone = tmp_path / "elsewhere" / "mine"
    shutil.copytree(saved(tmp_path / "run"), alone)
    (alone / "training.safetensors").unlink()
    shutil.rmtree(tmp_path / "run")
    found = checkpoint.find(str(alone))
    assert torch.equal(found.tensors("model")["weight"], tensors(500.0)["model"]["weight"])
    assert checkpoint.run_of(found.path) is None


def test_a_checkpoint_is_text_and_safetensors_and_nothing_else(tmp_path):
    for name, content in everything_in(saved(tmp_path)).items():
        if name.endswith(".safetensors"):
            assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        else:
            assert name.endswith((".yaml", ".json")) and content.decode().isascii()


@pytest.mark.parametrize("moment", ["rename", "fsync", "write_text"])
def test_a_save_that_dies_leaves_the_old_checkpoints_and_nothing_to_be_listed(tmp_path, monkeypatch, moment):
    old = saved(tmp_path, 100)
    before = everything_in(old)

    def die(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt("killed")

    where = {"rename": (Path, "rename"), "fsync": (os, "fsync"), "write_text": (Path, "write_text")}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(*where, die)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, 200)
    assert checkpoint.listing(tmp_path) == [old] and everything_in(old) == before
    assert checkpoint.find(tmp_path).step == 100
    new = saved(tmp_path, 200)
    assert checkpoint.listing(tmp_path) == [old, new]
    checkpoint.prune(tmp_path, keep=5)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_0000100", "step_0000200"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_cleans_up(tmp_path, monkeypatch, number):
    old = saved(tmp_path, 100)

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(WorkbenchError) as caught:
            saved(tmp_path, 200)
    message = one_line(caught)
    assert "disk is full" in message and "resume" in message and "step_0000200" in message
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [old.name]
    assert torch.equal(checkpoint.find(tmp_path).tensors("model")["bias"], torch.arange(4.0))


def test_another_fault_of_the_disk_is_not_called_full(tmp_path, monkeypatch):
    def broken(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", broken)
        with pytest.raises(OSError, match="Input/output"):
            saved(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


FULL = """
import resource, sys
from pathlib import Path
import torch
from diffusion_core import checkpoint
from diffusion_core.errors import WorkbenchError
from diffusion_core.run import launch

parent = Path(sys.argv[1])
big = {"model": {"weight": torch.ones(300_000)}}
checkpoint.save(parent, 1, big, {"a": 1}, {"domain": "d", "task": "t"})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
launch(lambda: checkpoint.save(parent, 2, big, {"a": 1}, {"domain": "d", "task": "t"}))
"""


def test_a_file_that_the_system_refuses_to_let_grow_is_one_line(tmp_path):
    """The kernel itself says no while safetensors writes: the limit on a file's size."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: checkpoint") and "disk is full" in lines[0]
    assert [p.name for p in checkpoint.listing(tmp_path)] == ["step_0000001"]
    assert checkpoint.find(tmp_path).tensors("model")["weight"].shape == (300_000,)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_0000001"]


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 0.5, -1])
def test_truncated_weights_are_refused(tmp_path, keep):
    file = saved(tmp_path) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(WorkbenchError) as caught:
        checkpoint.find(tmp_path).tensors("model")
    assert "model.safetensors is damaged" in one_line(caught) and "older checkpoint" in str(caught.value)


def test_a_pickle_in_the_place_of_weights_is_refused_unread(tmp_path):
    folder = saved(tmp_path)

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save(Bomb(), folder / "model.safetensors")
    with pytest.raises(WorkbenchError, match="damaged"):
        checkpoint.load(folder).tensors("model")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "config.yaml", "meta.json"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = saved(tmp_path)
    (folder / name).unlink()
    with pytest.raises(WorkbenchError) as caught:
        found = checkpoint.load(folder)
        found.tensors("model")
        found.tensors("training")
    assert f"{name} is missing" in one_line(caught) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("meta.json", "{"),
        ("meta.json", "[1]"),
        ("meta.json", '{"format": 1}'),
        ("config.yaml", "a: [1,"),
        ("config.yaml", "a: b: c"),
        ("config.yaml", "- 1"),
    ],
)
def test_damaged_descriptions_are_one_line(tmp_path, name, content):
    folder = saved(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(WorkbenchError) as caught:
        checkpoint.load(folder)
    assert name in one_line(caught) and "copy the checkpoint again" in str(caught.value)


def test_another_format_is_refused(tmp_path):
    folder = saved(tmp_path)
    meta = json.loads((folder / "meta.json").read_text()) | {"format": 2}
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(WorkbenchError, match="got format 2, expected 1: it was written by another version"):
        checkpoint.load(folder)


def test_another_domain_or_task_is_refused_and_says_whose_it_is(tmp_path):
    found = checkpoint.find(saved(tmp_path))
    assert found.require("policy") is found and found.require("policy", "pusht") is found
    with pytest.raises(WorkbenchError, match=r"got one of domain=policy task=pusht, expected domain=images"):
        found.require("images")
    with pytest.raises(WorkbenchError, match=r"expected domain=policy task=lift.*python -m policy.evaluate"):
        found.require("policy", "lift")


def test_what_is_not_there_is_one_line_with_what_is(tmp_path):
    with pytest.raises(WorkbenchError, match="which does not exist; expected a run folder"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(WorkbenchError, match="holds no complete checkpoint"):
        checkpoint.find(tmp_path)
    shutil.copytree(saved(tmp_path / "run"), tmp_path / "shipped" / "pusht")
    assert checkpoint.find("pretrained/pusht", tmp_path / "shipped").step == 500
    with pytest.raises(WorkbenchError, match="what ships is pretrained/pusht"):
        checkpoint.find("pretrained/lift", tmp_path / "shipped")


def test_tensors_must_be_exactly_those_of_the_module(tmp_path):
    module = nn.Linear(3, 2)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    right = {k: v + 1.0 for k, v in before.items()}
    wrong = {
        "1 tensors are missing ['bias']": {"weight": right["weight"]},
        "1 are unknown ['scale']": right | {"scale": torch.ones(1)},
        "weight has shape (2, 4), expected (2, 3)": right | {"weight": torch.ones(2, 4)},
    }
    for words, given in wrong.items():
        with pytest.raises(WorkbenchError) as caught:
            checkpoint.fill(module, given, tmp_path)
        assert words in one_line(caught)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    checkpoint.fill(module, right, tmp_path)
    assert all(torch.equal(v, right[k]) for k, v in module.state_dict().items())


def test_the_optimizer_comes_back_as_it_was():
    def problem() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        module(torch.ones(4, 3)).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, its_optimizer = problem()
    for _ in range(3):
        step(one, its_optimizer)
    other, fresh = problem()
    other.load_state_dict(one.state_dict())
    on_disk = {k: v.clone() for k, v in checkpoint.optimizer_tensors(its_optimizer).items()}
    checkpoint.fill_optimizer(fresh, on_disk)
    for module, optimizer in ((one, its_optimizer), (other, fresh)):
        step(module, optimizer)
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


FOREIGN = ["os.system", "subprocess.run", "builtins.eval", "diffusion_core.checkpoint.shutil.rmtree", "os", "", None, 3]
SMUGGLED = ["diffusion_core.checkpoint.save_file", "diffusion_core.results.os", "diffusion_core.run.Path"]


@pytest.mark.parametrize("foreign", [*FOREIGN, *SMUGGLED], ids=str)
@pytest.mark.parametrize("call", [build, bind])
def test_a_configuration_never_runs_foreign_code(tmp_path, foreign, call):
    """Neither by a foreign name nor by a foreign name that one of our modules imports."""
    leaf = {"_target_": foreign, "command": f"touch {tmp_path}/ran", "args": ["touch", f"{tmp_path}/ran"]}
    with pytest.raises(WorkbenchError) as caught:
        call(leaf)
    assert "_target_" in one_line(caught)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_would_read_this_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    meta = {"domain": "policy", "task": "pusht"}
    saved = checkpoint.save(tmp_path, 1, {"model": {"w": torch.ones(1)}}, {"runs": "runs"}, meta)
    (saved / "config.yaml").write_text("runs: ${oc.env:SECRET}\n")
    with pytest.raises(WorkbenchError, match="interpolation"):
        checkpoint.load(saved)
