"""One short training through the program, shared by the tests of the planning domain."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from diffusion_core.configure import composed
from planning import train
from planning.config import PlanningConfig

WORDS = ("task=maze2d_umaze", "preset=smoke", "evaluation.film=1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The run folder of ``python -m planning.train task=maze2d_umaze preset=smoke``."""
    here = tmp_path_factory.mktemp("planning")
    # as the program's
    logging.getLogger("workbench").setLevel(logging.INFO)
    return train.run(composed(PlanningConfig, "planning.conf", "train", [*WORDS, f"runs={here}"]))
