"""One short training through the command line, shared by the tests of the policy domain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.kill_and_resume import demonstrations, finish, only_run
from diffusion_core.configure import composed
from policy.config import PolicyConfig


def config(*overrides: str) -> PolicyConfig:
    """What ``python -m policy.train <overrides>`` is configured with."""
    return composed(PolicyConfig, "policy.conf", "train", overrides)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Six short episodes of the real expert."""
    return demonstrations(tmp_path_factory.mktemp("demonstrations") / "expert.zarr.zip")


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory) -> Path:
    """The run folder of ``python -m policy.train preset=smoke`` on them, with short episodes in the simulator."""
    here = tmp_path_factory.mktemp("trained")
    words = ["preset=smoke", f"data.source={data}", f"runs={here}/runs", "task.env.max_steps=48", "train.steps=300"]
    finish([*words, "evaluation.n=3", "evaluation.film=2", "train.log_every=10"], here / "log")
    run = only_run(here / "runs")
    assert run is not None
    return run
