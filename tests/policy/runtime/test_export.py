"""A policy in a file runs where this project is not, and gives the same chunk."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_core import checkpoint
from diffusion_core.errors import WorkbenchError
from policy import export
from policy.evaluate import PRETRAINED
from policy.model import restore, sampling_table

BLOCKED = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("policy", "diffusion_core", "envs"):
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Nothing())
for name in ("policy", "diffusion_core"):
    try:
        __import__(name)
    except ImportError as error:
        assert str(error).startswith("blocked"), error
    else:
        raise AssertionError(name + " was imported")
"""
TORCH = """
import json, numpy, torch
extra = {"policy.json": ""}
run = torch.export.load(sys.argv[1], extra_files=extra).module()
about, given = json.loads(extra["policy.json"]), numpy.load(sys.argv[2])
obs = {key: torch.from_numpy(given[key]) for key in about["observations"]}
numpy.save(sys.argv[3], run(torch.from_numpy(given["noise"]), obs).numpy())
"""
ONNX = """
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["policy.json"])
given = numpy.load(sys.argv[2])
named = {"noise": given["noise"]} | {"obs_" + key: given[key] for key in about["observations"]}
numpy.save(sys.argv[3], session.run(["chunk"], named)[0])
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module", params=["ddim", "ddpm"])
def planner(request):
    """The shipped policy with few steps, and with a sampler that draws noise on the way."""
    policy, config = restore(checkpoint.find("pretrained/pusht", PRETRAINED))
    config = replace(config, sampler={"_target_": f"diffusion_core.solvers.{request.param}"}, steps=4)
    return export.Planner(policy, sampling_table(config, policy)), config


@pytest.mark.parametrize(("suffix", "program"), [(".pt2", TORCH), (".onnx", ONNX)])
def test_the_file_alone_gives_the_same_chunk(planner, suffix, program, tmp_path):
    own, config = planner
    about = export.export(own.policy, config, tmp_path / f"policy{suffix}", batch=2)
    # other numbers than it was traced with
    noise, obs = export.example(own, config, batch=2, seed=5)
    assert list(noise.shape) == about["noise"] == [own.draws, 2, 16, 2]
    np.savez(tmp_path / "given.npz", noise=noise.numpy(), **{key: value.numpy() for key, value in obs.items()})
    words = [str(tmp_path / name) for name in (f"policy{suffix}", "given.npz", "chunk.npy")]
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED + program, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    expected = own.policy.plan(obs, own.table, export.Handed(noise)).numpy()
    # of a world of 512 px
    assert np.abs(np.load(tmp_path / "chunk.npy") - expected).max() < 1e-5 * 512.0
    assert np.ptp(expected) > 10.0


def test_the_noise_that_is_handed_in_is_all_there_is():
    handed = export.Handed(torch.zeros(1, 2, 3))
    handed.normal((2, 3), torch.float32, torch.device("cpu"))
    with pytest.raises(WorkbenchError, match="got draw 2 of shape"):
        handed.normal((2, 3), torch.float32, torch.device("cpu"))
    with pytest.raises(WorkbenchError, match="uniform"):
        handed.uniform((2, 3), torch.float32, torch.device("cpu"))


def test_another_ending_is_refused(planner, tmp_path):
    with pytest.raises(WorkbenchError, match=r"ends in \.pt2 or \.onnx"):
        export.export(planner[0].policy, planner[1], Path(tmp_path / "policy.pth"))
