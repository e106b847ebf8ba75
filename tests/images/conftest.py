"""One short training through the program, shared by the tests of the image domain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from images import train
from images.config import configuration

SMOKE = ("task=digits", "preset=smoke", "network=unet2d_small")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The run folder of ``python -m images.train preset=smoke system=conditional`` on the digits."""
    here = tmp_path_factory.mktemp("images")
    config = configuration(
        [*SMOKE, "system=conditional", "steps=10", "train.checkpoint_every=20", "train.keep=3", f"runs={here}"]
    )
    return train.run(config)
