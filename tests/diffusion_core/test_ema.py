"""The moving average against its closed form, its rule against the formula and diffusers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_core.ema import Ema


def model(value: float) -> nn.Module:
    network = nn.BatchNorm1d(2)
    with torch.no_grad():
        network.weight.fill_(value)
        network.running_mean.fill_(10.0 * value)
    return network


def check_average(ema: Ema) -> None:
    """After n updates: ``sum_i (1 - d_i) prod_{j > i} d_j w_i``, the closed form of the recursion."""
    values = [0.3, -1.0, 2.0, 0.7, 5.0]
    average = ema.shadow(model(100.0))
    for step, value in enumerate(values, start=1):
        ema.update(average, model(value), step)
    # d_1 = 0: what the average held before the first update is forgotten
    expected, left = 0.0, 1.0
    for step in range(len(values), 0, -1):
        decay = min(1.0 - step**-0.75, 0.9999)
        expected += left * (1.0 - decay) * values[step - 1]
        left *= decay
    assert left == 0.0
    torch.testing.assert_close(average.weight, torch.full((2,), expected), rtol=1e-5, atol=1e-6)


def test_the_average_is_the_weighted_sum_of_all_weights_seen():
    check_average(Ema())


def test_buffers_are_the_newest_and_not_averaged():
    ema = Ema()
    average = ema.shadow(model(1.0))
    for step, value in enumerate((1.0, 2.0, 3.0), start=1):
        ema.update(average, model(value), step)
    assert average.running_mean.tolist() == [30.0, 30.0]


def test_the_shadow_shares_nothing_with_the_model_and_does_not_learn():
    source = model(1.0)
    shadow = Ema().shadow(source)
    with torch.no_grad():
        source.weight.fill_(7.0)
    assert shadow.weight.tolist() == [1.0, 1.0]
    assert not shadow.training and source.training
    assert not any(p.requires_grad for p in shadow.parameters()) and all(p.requires_grad for p in source.parameters())


@pytest.mark.parametrize("ema", [Ema(), Ema(power=2 / 3, inv_gamma=10.0, max_decay=0.99)], ids=str)
def test_the_decay_rises_from_zero_to_its_bound(ema):
    decays = [ema.decay(step) for step in (1, 2, 10, 1000, 10**9)]
    assert decays[0] == 0.0 and decays == sorted(decays) and decays[-1] == ema.max_decay
    assert ema.decay(10) == pytest.approx(1.0 - (1.0 + 9 / ema.inv_gamma) ** -ema.power)


def test_the_rule_is_that_of_diffusers():
    training = pytest.importorskip("diffusers.training_utils")
    theirs = training.EMAModel(model(0.0).parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    for step in (1, 2, 3, 50, 10_000, 10**7):
        # after its step-th call their counter stands at `step`
        assert Ema().decay(step) == pytest.approx(theirs.get_decay(step), rel=1e-12)
