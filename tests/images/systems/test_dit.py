"""Diffusion transformers: gates at the start, and what an evaluation costs."""

from __future__ import annotations

import pytest
import torch

from diffusion_core.errors import WorkbenchError
from images.config import configuration
from images.experiments.adm import operations
from images.model import assemble
from images.systems.diffusion import Diffusion
from tests.images.conftest import SMOKE

OPEN = "system._target_=images.systems.dit.open_gates"


def build(*words: str) -> Diffusion:
    torch.manual_seed(0)
    model = assemble(configuration([*SMOKE, "system=dit", *words]), 10)
    assert isinstance(model, Diffusion)
    return model


def test_zero_gates_leave_every_block_the_identity_and_open_ones_do_not():
    h, c = torch.randn(2, 1, 16, 64, generator=torch.Generator().manual_seed(0)), torch.randn(2, 64)
    for words, same in (((), True), ((OPEN,), False)):
        model = build("network=dit", *words)
        outputs = [block(h, c, None) for block in model.denoiser.network.blocks]
        assert all(torch.equal(out, h) == same for out in outputs)


def test_open_gates_are_one_and_nothing_else_differs():
    closed, opened = build("network=dit_small").state_dict(), build("network=dit_small", OPEN).state_dict()
    differing = {name for name in closed if not torch.equal(closed[name], opened[name])}
    assert differing == {f"denoiser.network.blocks.{i}.modulation.bias" for i in range(2)}
    for name in differing:
        expected = torch.zeros(6, 32)
        expected[2] = expected[5] = 1.0
        assert torch.equal(opened[name], expected.flatten())


def test_gates_are_those_of_a_transformer():
    with pytest.raises(WorkbenchError, match="UNet2d"):
        build("network=unet2d_small", OPEN)


@pytest.mark.parametrize(("leaf", "w", "depth"), [("dit_small", 32, 2), ("dit", 64, 4), ("dit_large", 96, 6)])
@pytest.mark.parametrize("patch", [4, 2])
def test_the_operations_are_counted_as_by_hand(leaf, w, depth, patch):
    tokens = (8 // patch) ** 2
    # query, key, value, out: 4 w^2; the perceptron: 8 w^2; the map and its use: 2 tokens w
    block = tokens * (12 * w * w + 2 * tokens * w) + 6 * w * w
    ends = 2 * tokens * patch**2 * w + 2 * w * w
    time = 64 * w + w * w
    model = build(f"network={leaf}", f"network.patch={patch}")
    assert operations(model) == pytest.approx(2e-6 * (depth * block + ends + time), rel=1e-9)
    assert all(getattr(part, "hook", None) is None for part in model.modules())
