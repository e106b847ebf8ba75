"""What a drawn chunk has to do with the plans it joins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.guidance import Inflated
from diffusion_core.schedule import Cosine, RectifiedFlow
from policy.runtime.execution import Plans
from policy.runtime.joins import (
    Bounded,
    Conditioned,
    Join,
    Overlap,
    RealTimeChunking,
    WarmStart,
    from_middle,
    independent,
    infer,
    inpainting,
    prefix_weights,
)


def distance(shipped, draw, overlap: Overlap, rows: slice) -> float:
    """Mean distance of a draw's rows to what was planned, px."""
    chunk = draw(shipped.policy, shipped.table, shipped.obs, overlap, shipped.noise())
    plans = shipped.policy.actions(overlap.x, shipped.obs)
    return float((chunk - plans)[:, rows].norm(dim=-1).mean())


def test_inpainting_leaves_what_is_frozen_exactly_as_planned(shipped):
    overlap = shipped.overlap(frozen=5)
    assert distance(shipped, inpainting, overlap, slice(0, 5)) < 1e-9
    assert distance(shipped, inpainting, overlap, slice(5, 8)) > 0.1


def test_guidance_draws_the_chunk_to_the_plans_and_the_policys_own_covariance_more(shipped):
    overlap = shipped.overlap()
    alone, guided, conditioned = (
        distance(shipped, draw, overlap, slice(1, 5)) for draw in (independent, RealTimeChunking(), Conditioned())
    )
    assert conditioned < 0.5 * guided < 0.5 * alone


def test_soft_weights_draw_the_rows_beyond_the_frozen_ones_too(shipped):
    overlap = shipped.overlap(frozen=3)
    soft, hard = (distance(shipped, Conditioned(soft=soft), overlap, slice(3, 6)) for soft in (True, False))
    assert soft < hard


@pytest.mark.parametrize("draw", [inpainting, RealTimeChunking(), Conditioned()])
def test_without_plans_every_draw_is_an_independent_one(shipped, draw):
    nothing = shipped.overlap(frozen=0, known=0)
    chunk = draw(shipped.policy, shipped.table, shipped.obs, nothing, shipped.noise())
    alone = shipped.policy.plan(shipped.obs, shipped.table, shipped.noise())
    torch.testing.assert_close(chunk, alone, rtol=1e-9, atol=1e-7)


def test_the_weights_are_those_of_the_paper():
    """Black et al., eq. 5, term by term: d = 3 rows frozen, the plans end after H - s = 7 of H = 10."""
    index = torch.arange(10)[None]
    found = prefix_weights(index < 7, index < 3)[0].tolist()
    expected = [1.0] * 3
    for i in range(3, 7):
        c = (7 - i) / (7 - 3 + 1)
        expected.append(c * (math.exp(c) - 1) / (math.e - 1))
    assert found == pytest.approx([*expected, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("tau", [0.02, 0.2, 0.5, 0.9, 0.99])
def test_guidance_of_a_flow_is_as_strong_as_in_the_paper(tau):
    """Their velocity grows by min(beta, (1 - tau) / (tau r^2)) J^T e at tau = 1 - t; x0_hat by 1 - tau times that."""
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    theirs = (1 - tau) * min(5.0, (1 - tau) / (tau * r2))
    schedule, t = RectifiedFlow(), torch.tensor([1.0 - tau], dtype=torch.float64)
    strength = Bounded(Inflated(schedule, 0.0), schedule, 5.0)(t)
    assert float(schedule.sigma(t) ** 2 / schedule.alpha(t) * strength) == pytest.approx(theirs)


def test_where_nothing_of_the_data_is_left_there_is_no_guidance():
    schedule = Cosine()
    strength = Bounded(Inflated(schedule, 0.0), schedule, 5.0)(torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert float(strength[0]) == 0.0 and float(strength[1]) > 0.0


def test_a_warm_start_takes_fewer_steps_and_stays_near_the_plans(shipped):
    whole = from_middle(shipped.config, shipped.policy, 1.0)
    torch.testing.assert_close(whole.estimate, shipped.table.estimate)
    middle = from_middle(shipped.config, shipped.policy, 0.5)
    assert len(middle.times) == 5 and float(middle.times[0]) == pytest.approx(0.5)
    overlap = shipped.overlap(known=16)
    ahead = slice(1, 16)
    assert distance(shipped, WarmStart(middle), overlap, ahead) < distance(shipped, independent, overlap, ahead)
    with pytest.raises(WorkbenchError, match=r"warm start: got t=0\.05"):
        from_middle(shipped.config, shipped.policy, 0.05)


def test_robots_with_and_without_plans_share_a_call_and_do_not_notice(shipped):
    """One by one or together: the same chunks, in the order of the robots."""
    known = np.arange(16) < 8
    planned = shipped.policy.plan(shipped.obs, shipped.table, shipped.noise(1000))[0].float().numpy()
    some = Plans(planned, known, np.arange(16) < 5)
    none = Plans(np.zeros((16, 0), np.float32), np.zeros(16, bool), np.zeros(16, bool))
    plans = [none, some, none, some]

    def drawn(members: list[int]) -> list[np.ndarray]:
        streams = [torch.Generator().manual_seed(i) for i in members]
        windows = [shipped.windows[0] for _ in members]
        join = Join(RealTimeChunking())
        return infer(join, shipped.policy, shipped.table, windows, [plans[i] for i in members], streams)

    together = drawn([0, 1, 2, 3])
    alone = [drawn([i])[0] for i in range(4)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(together[0] - together[2]).max() > 0.1


def test_bad_settings_are_refused(shipped):
    with pytest.raises(WorkbenchError, match="bound=0"):
        RealTimeChunking(bound=0.0)
    with pytest.raises(WorkbenchError, match="does not denoise"):
        inpainting(shipped.policy, None, shipped.obs, shipped.overlap(), shipped.noise())
