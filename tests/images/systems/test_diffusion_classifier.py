"""The diffusion classifier against classes that are known exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.draws import Draws
from diffusion_core.errors import WorkbenchError
from diffusion_core.noise import PerSample
from diffusion_core.process.gaussian import Gaussian
from diffusion_core.schedule import Cosine
from images.systems import Parts
from images.systems.diffusion import Diffusion
from images.systems.diffusion_classifier import Stage, all_errors, classify, errors, times_of

CLASSES = 5


class Points(nn.Module):
    """The exact v of classes that are one image each: x0 is known from the label alone."""

    def __init__(self, channels: int, size: int, n_classes: int, out_channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = nn.Parameter(torch.randn(n_classes + 1, channels, size, size, generator=generator))

    def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
        alpha, sigma = (f(t.double()).float()[:, None, None, None] for f in (Cosine().alpha, Cosine().sigma))
        assert cond is not None
        return (alpha * x - self.images[cond["label"]]) / sigma


def model(conditional: bool = True) -> Diffusion:
    return Diffusion(Parts((1, 4, 4), CLASSES, Points, Cosine(), "v"), conditional=conditional)


def draws(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def images(exact: Diffusion, labels: Tensor) -> Tensor:
    return exact.denoiser.network.images.detach()[labels]


def test_the_error_of_every_class_is_in_closed_form():
    # eps_hat - eps = alpha / sigma (x0 - x0 of the class)
    exact, labels, t = model(), torch.tensor([0, 3]), 0.37
    found = all_errors(
        exact, images(exact, labels), torch.arange(CLASSES).expand(2, -1), torch.tensor([t]).double(), draws()
    )
    squared = (
        (images(exact, labels)[:, None] - images(exact, torch.arange(CLASSES))).double().square().flatten(2).mean(2)
    )
    ratio = torch.exp(Cosine().log_snr(torch.tensor(t).double()))
    torch.testing.assert_close(found[..., 0], squared * ratio, atol=1e-5, rtol=1e-4)


def test_the_error_is_that_of_eps_whatever_is_predicted():
    exact, labels = model(), torch.tensor([1, 2, 4])
    x0 = images(exact, torch.tensor([0, 2, 3]))
    t, noise = (
        torch.tensor([0.2, 0.5, 0.9]).double(),
        PerSample.from_seeds(range(3)).normal(x0.shape, x0.dtype, x0.device),
    )
    x_t = Gaussian(Cosine()).corrupt(x0, t, noise)
    v_error = (exact.denoiser(x_t, t, {"label": labels}) - exact.denoiser.target(x0, noise, t)).double()
    expected = Cosine().alpha(t) ** 2 * v_error.square().flatten(1).mean(1)
    torch.testing.assert_close(errors(exact, x0, labels, t, noise), expected.detach(), atol=1e-6, rtol=1e-4)


def test_exact_classes_are_named_without_error_and_at_no_cost_in_evaluations():
    exact, labels = model(), torch.arange(CLASSES).repeat(3)
    whole = classify(exact, images(exact, labels), [Stage(6, 1)], draws())
    staged = classify(exact, images(exact, labels), [Stage(1, 3), Stage(4, 2), Stage(6, 1)], draws())
    assert torch.equal(whole.label, labels) and torch.equal(staged.label, labels)
    assert whole.evaluations == 6 * CLASSES
    assert staged.evaluations == 1 * CLASSES + 3 * 3 + 2 * 2
    assert torch.equal(staged.error.argmin(1), labels) and staged.error.isfinite().all()


def test_one_stage_is_the_least_of_all_errors():
    exact, x0 = model(), torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    found = all_errors(exact, x0, torch.arange(CLASSES).expand(4, -1), times_of(7), draws(3))
    decided = classify(exact, x0, [Stage(7, 1)], draws(3))
    torch.testing.assert_close(decided.error, found.mean(2))
    assert torch.equal(decided.label, found.mean(2).argmin(1))


def test_shared_pairs_are_shared_and_independent_ones_are_not():
    exact = model()
    x0 = images(exact, torch.tensor([2, 2]))
    same_class = torch.full((2, 3), 1)
    spread = {
        shared: all_errors(exact, x0, same_class, times_of(2), draws(), shared).std(1)
        for shared in ("pairs", "times", "nothing")
    }
    # exact classes leave no error of the noise: what differs between columns is the time alone
    assert (spread["pairs"] == 0.0).all() and (spread["nothing"] > 1e-3).all()
    assert (spread["times"] < 1e-4).all()


def test_own_noise_differs_between_columns_where_the_network_sees_it():
    class Copy(Points):
        def forward(self, x: Tensor, t: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
            return 0.5 * x

    copying = Diffusion(Parts((1, 4, 4), CLASSES, Copy, Cosine(), "v"))
    x0, same_class = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5)), torch.full((2, 3), 1)
    shared, own = (all_errors(copying, x0, same_class, times_of(2), draws(), s).std(1) for s in ("pairs", "times"))
    assert (shared == 0.0).all() and (own > 1e-3).all()


@pytest.mark.parametrize("pairs", [1, 2, 5, 16, 64])
def test_every_beginning_of_the_times_fills_the_interval(pairs):
    t = times_of(pairs)
    assert torch.equal(t, times_of(100)[:pairs]) and bool(((t > 0.0) & (t < 1.0)).all())
    edges = torch.cat([torch.zeros(1).double(), t.sort().values, torch.ones(1).double()])
    # the golden ratio's sequence leaves no gap of more than (1 + golden ratio) / (pairs + 1)
    assert edges.diff().max() <= 2.62 / (pairs + 1)


def test_what_cannot_be_is_refused():
    x0 = torch.zeros(1, 1, 4, 4)
    for stages in (
        [],
        [Stage(4, 2)],
        [Stage(4, 1), Stage(4, 1)],
        [Stage(2, 1), Stage(4, 2)],
        [Stage(4, 9), Stage(5, 1)],
    ):
        with pytest.raises(WorkbenchError, match="stages"):
            classify(model(), x0, stages, draws())
    with pytest.raises(WorkbenchError, match="without labels"):
        classify(model(conditional=False), x0, [Stage(4, 1)], draws())
