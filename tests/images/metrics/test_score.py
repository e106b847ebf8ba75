"""Scores at their bounds, by hand, and their errors against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core.errors import WorkbenchError
from images.metrics.score import class_accuracy, class_entropy, class_total_variation, inception_score


def random_probabilities(n: int, classes: int, sharpness: float, seed: int) -> torch.Tensor:
    return (sharpness * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def test_the_inception_score_is_exact_at_its_ends():
    sure_and_varied = torch.eye(7).repeat(20, 1)
    assert inception_score(sure_and_varied).value == pytest.approx(7.0, rel=1e-12)
    sure_of_one = torch.eye(7)[torch.zeros(50, dtype=torch.int64)]
    assert inception_score(sure_of_one).value == pytest.approx(1.0, rel=1e-12)
    assert inception_score(sure_of_one).stderr < 1e-12
    assert inception_score(torch.full((50, 7), 1 / 7)).value == pytest.approx(1.0, rel=1e-12)


def test_the_inception_score_of_two_kinds_of_samples_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.2, 0.8]], dtype=torch.float64)
    mean = p.mean(0)
    divergence = sum(float((row * (row / mean).log()).sum()) for row in p) / 3
    assert inception_score(p).value == pytest.approx(math.exp(divergence), rel=1e-12)


@given(st.integers(1, 40), st.integers(2, 9), st.floats(0.0, 20.0), st.integers(0, 1000))
def test_the_inception_score_is_between_one_and_the_number_of_classes(n, classes, sharpness, seed):
    found = inception_score(random_probabilities(n, classes, sharpness, seed))
    assert 1.0 - 1e-12 <= found.value <= min(classes, n) + 1e-12
    assert found.stderr >= 0.0 and found.n == n


def test_accuracy_is_the_share_of_hits_with_wilsons_interval():
    p = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    found = class_accuracy(p, torch.tensor([0, 1, 2, 1]))
    assert (found.value, found.n) == (0.75, 4) and found.low < 0.75 < found.high < 1.0


def test_entropy_and_total_variation_by_hand():
    labels = torch.tensor([0, 0, 1, 2])
    assert class_entropy(labels, 4).value == pytest.approx(1.5 * math.log(2.0))
    assert class_entropy(torch.arange(5).repeat(10), 5).value == pytest.approx(math.log(5.0))
    assert class_total_variation(labels, torch.tensor([0.5, 0.25, 0.25, 0.0])).value == 0.0
    assert class_total_variation(labels, torch.full((4,), 0.25)).value == pytest.approx(0.25)
    assert class_total_variation(labels, torch.tensor([0.0, 0.0, 0.0, 1.0])).value == pytest.approx(1.0)


def test_the_errors_are_the_spread_of_repeated_draws_within_a_factor_of_one_and_a_half():
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    found = []
    for seed in range(150):
        labels = torch.multinomial(shares, 400, replacement=True, generator=generator)
        p = (random_probabilities(400, 4, 1.0, seed) + torch.nn.functional.one_hot(labels, 4)) / 2.0
        found.append(
            [inception_score(p), class_entropy(labels, 4), class_total_variation(labels, torch.full((4,), 0.25))]
        )
    for estimates in zip(*found, strict=True):
        spread = float(np.std([e.value for e in estimates], ddof=1))
        promised = float(np.mean([e.stderr for e in estimates]))
        assert 1 / 1.5 < promised / spread < 1.5, (promised, spread)


def test_what_is_no_probability_is_refused():
    with pytest.raises(WorkbenchError, match="expected a softmax"):
        inception_score(torch.randn(5, 3))
    with pytest.raises(WorkbenchError, match="expected a softmax"):
        inception_score(torch.zeros(0, 3))
    with pytest.raises(WorkbenchError, match="got 2 labels for 3 samples"):
        class_accuracy(torch.eye(3), torch.tensor([0, 1]))
    with pytest.raises(WorkbenchError, match="each from 0 to 2"):
        class_entropy(torch.tensor([0, 3]), 3)
