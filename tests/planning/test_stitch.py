"""Stitched priors: what is exact, what is not, and how often a network is called."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from diffusion_core.denoise import Denoiser
from diffusion_core.errors import WorkbenchError
from diffusion_core.experts import given
from diffusion_core.schedule import Cosine, Linear
from planning.stitch import Stitched, evenly
from tests.planning.chains import Chain, walk

SCHEDULE = Cosine()
WINDOWS = evenly(13, 5, 1)


def stitched(whole: Chain, overlap: str, windows=WINDOWS) -> Stitched:
    shared = [(b[0], a[1]) for a, b in pairwise(windows)]
    marginals = tuple(whole.part(*o) for o in shared) if overlap == "bethe" else ()
    return Stitched(tuple(whole.part(*w) for w in windows), windows, len(whole.mean), overlap, marginals)


def times_of(sigmas: list[float]) -> torch.Tensor:
    """Of a variance-preserving schedule."""
    variance = torch.tensor(sigmas, dtype=torch.float64) ** 2
    return SCHEDULE.t_of_log_snr(((1.0 - variance) / variance).log())


def score_errors(whole: Chain, denoiser: Denoiser, sigmas: list[float]) -> torch.Tensor:
    """Root mean square of the difference of scores, as a share of the exact one's."""
    times = times_of(sigmas)
    x0 = whole.sample(200, torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=x0.dtype)
    exact, ours = whole.bind(times), denoiser.bind(times)
    found = []
    for i, t in enumerate(times):
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        x = alpha * x0 + sigma * noise
        score, other = (((alpha * d(x, i)) - x) / sigma**2 for d in (exact, ours))
        found.append((other - score).square().mean().sqrt() / score.square().mean().sqrt())
    return torch.stack(found)


def check_bethe_is_exact_without_noise(make, nodes: int) -> None:
    """Error O(sigma^2n) for a chain and its own marginals that share n nodes: 4^n times less at half the noise."""
    errors = score_errors(walk(SCHEDULE, 13), make(walk(SCHEDULE, 13)), [0.04, 0.02, 0.01])
    assert errors[-1] < 5e-3**nodes
    assert (errors[:-1] / errors[1:]).tolist() == pytest.approx([4.0**nodes] * 2, rel=0.1 * nodes)


@pytest.mark.parametrize("windows", [WINDOWS, ((0, 5), (3, 8), (6, 13)), ((0, 6), (3, 10), (7, 13))])
def test_bethe_has_the_exact_score_without_noise(windows):
    nodes = windows[0][1] - windows[1][0]
    check_bethe_is_exact_without_noise(lambda whole: stitched(whole, "bethe", windows), nodes)
    with pytest.raises(AssertionError):
        check_bethe_is_exact_without_noise(lambda whole: stitched(whole, "average", windows), nodes)


def test_what_is_not_exact():
    """With noise no stitching is, and the average has another score even without."""
    whole = walk(SCHEDULE, 13)
    assert (score_errors(whole, stitched(whole, "bethe"), [0.5, 0.9]) > 0.01).all()
    assert (score_errors(whole, stitched(whole, "average"), [0.02, 0.005]) > 0.1).all()


def test_the_precision_that_bethe_stands_for_is_the_chains():
    """At t -> 0 the score of a Gaussian is ``-precision (x - mean)``."""
    whole, t = walk(SCHEDULE, 13), times_of([1e-4])
    evaluate = stitched(whole, "bethe").bind(t)
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    x = (alpha * whole.mean + torch.eye(13, dtype=torch.float64)[:, :, None]).contiguous()
    precision = -((alpha * evaluate(x, 0) - x) / sigma**2)[..., 0]
    assert torch.allclose(precision, torch.linalg.inv(whole.covariance), atol=1e-5)


@pytest.mark.parametrize("overlap", ["average", "bethe"])
def test_independent_nodes_are_exact_at_any_noise(overlap):
    whole = walk(SCHEDULE, 13, tie=0.0)
    assert (score_errors(whole, stitched(whole, overlap), [0.9, 0.5, 0.1]) < 1e-12).all()


def test_average_in_overlaps_is_the_mean_of_two_estimates():
    whole, times = walk(SCHEDULE, 13), torch.tensor([0.4, 0.8], dtype=torch.float64)
    x = whole.sample(7, torch.Generator().manual_seed(0))
    found = stitched(whole, "average").bind(times)(x, 1)
    parts = [whole.part(*w).bind(times)(x[:, slice(*w)], 1) for w in WINDOWS]
    assert torch.allclose(found[:, :4], parts[0][:, :4], rtol=1e-12)
    assert torch.allclose(found[:, 4], 0.5 * (parts[0][:, 4] + parts[1][:, 0]), rtol=1e-12)
    assert torch.allclose(found[:, 9:], parts[2][:, 1:], rtol=1e-12)


class Told(Denoiser):
    """Answers its condition, and counts how often it is asked."""

    def __init__(self) -> None:
        self.process, self.calls = walk(SCHEDULE, 3).process, 0

    def bind(self, times, cond=None):
        def evaluate(x, i):
            self.calls += 1
            return 0.0 * x + (0.0 if cond is None else cond.to(x)[:, None])

        return evaluate


@pytest.mark.parametrize("overlap", ["average", "bethe"])
def test_windows_of_one_denoiser_share_a_call_and_keep_their_conditions(overlap):
    network = Told()
    told = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10.0 * k for k in range(3)]
    marginals = (given(network, told[1]), given(network, told[2])) if overlap == "bethe" else ()
    denoiser = Stitched(tuple(given(network, c) for c in told), WINDOWS, 13, overlap, marginals)
    found = denoiser.bind(torch.tensor([0.5], dtype=torch.float64))(torch.zeros(2, 13, 2), 0)
    assert network.calls == (1 if overlap == "average" else 2)
    assert torch.equal(found[:, [0, 6, 12]], torch.stack(told, 1))
    assert torch.equal(found[:, 4], 0.5 * (told[0] + told[1]) if overlap == "average" else told[0])
    # one condition for all samples cannot be put beside others
    network.calls = 0
    denoiser = Stitched(tuple(given(network, c[:1]) for c in told), WINDOWS, 13)
    found = denoiser.bind(torch.tensor([0.5], dtype=torch.float64))(torch.zeros(2, 13, 2), 0)
    assert network.calls == 3 and torch.equal(found[1, [0, 6, 12]], torch.stack(told, 1)[0])


def test_gradients_pass():
    whole, times = walk(SCHEDULE, 13), torch.tensor([0.5], dtype=torch.float64)
    x = whole.sample(2, torch.Generator().manual_seed(0))[:, :, :]
    for overlap in ("average", "bethe"):
        evaluate = stitched(whole, overlap).bind(times)
        assert torch.autograd.gradcheck(lambda x, evaluate=evaluate: evaluate(x, 0), x.clone().requires_grad_())


def test_windows():
    assert WINDOWS == ((0, 5), (4, 9), (8, 13))
    assert evenly(5, 5, 1) == ((0, 5),)
    with pytest.raises(WorkbenchError, match="horizon of 12"):
        evenly(12, 5, 1)
    part = walk(SCHEDULE, 5)
    for windows in (((0, 5), (5, 10)), ((0, 5), (4, 9), (4, 9)), ((0, 5), (1, 6), (2, 7)), ((1, 6),), ()):
        with pytest.raises(WorkbenchError, match="got the windows"):
            Stitched((part,) * len(windows), windows, max([0, *(b for _, b in windows)]))
    with pytest.raises(WorkbenchError, match="0 marginals for 2 windows"):
        Stitched((part, part), ((0, 5), (4, 9)), 9, "bethe")
    with pytest.raises(WorkbenchError, match="processes"):
        Stitched((part, walk(Linear(), 5)), ((0, 5), (4, 9)), 9)
