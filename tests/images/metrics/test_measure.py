"""The front door: every name carries its extractor, every value is the metric's own."""

from __future__ import annotations

import pytest
import torch

from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from images import metrics
from images.metrics import measure


def draw(n: int, seed: int, d: int = 4) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_names_carry_the_extractor_and_values_are_the_metrics_own():
    a, b = draw(120, 0), draw(130, 1)
    found = measure(a, b, "toy-features-v1")
    assert list(found) == [f"{m}[toy-features-v1]" for m in ("FD", "KID", "precision", "recall", "density", "coverage")]
    assert all(isinstance(e, Estimate) and e.stderr > 0.0 for e in found.values())
    assert found["FD[toy-features-v1]"] == metrics.frechet_distance(a, b)
    assert found["coverage[toy-features-v1]"] == metrics.density_coverage(a, b).coverage


def test_more_inputs_add_more_metrics():
    a, b, p, asked = draw(120, 0), draw(130, 1), draw(120, 2).softmax(1), torch.arange(120) % 4
    found = measure(a, b, "x", probabilities=p, asked=asked, expected=torch.full((4,), 0.25), training=draw(50, 3))
    assert list(found)[6:] == ["IS[x]", "entropy[x]", "accuracy[x]", "TV[x]", "copied[x]"]
    assert found["accuracy[x]"] == metrics.class_accuracy(p, asked)
    assert found["copied[x]"] == metrics.memorisation(a, draw(50, 3), b).copied


def test_nothing_else_may_call_itself_inception():
    a = draw(120, 0)
    with pytest.raises(WorkbenchError, match=r"images\.metrics\.inception is FID"):
        measure(a, a, "inception-v3")
    with pytest.raises(WorkbenchError, match="without probabilities"):
        measure(a, a, "x", asked=torch.zeros(120, dtype=torch.int64))
