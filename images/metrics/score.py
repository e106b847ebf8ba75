"""Scores from a classifier's opinion of the samples: how sure, how varied, how right."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from diffusion_core import results
from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from images.metrics.distance import around

RESAMPLES = 200


def inception_score(probabilities: Float[Tensor, "n classes"], seed: int = 0) -> Estimate:
    """Estimate the inception score from class probabilities.

        IS = exp( mean_i KL( p(y | x_i) || p(y) ) ),    p(y) = mean_i p(y | x_i)

    From 1 (nothing recognised, or always the same class) to the number of classes (sure, and every class as often).
    The standard error is the spread over 200 bootstrap draws of the samples, all n at once and not in ten parts as in
    the paper: fewer samples bias the score upwards.

    Raises:
        WorkbenchError: rows that are not probabilities.

    Source: Salimans et al. 2016, section 4 (arXiv 1606.03498); on its use: Barratt & Sharma 2018 (arXiv 1801.01973).
    """
    p = _checked(probabilities)
    # KL(p_i || mean) = sum p_i log p_i - sum p_i log mean; averaged, the second term is the entropy of the mean
    negative_entropy = torch.special.xlogy(p, p).sum(1)

    def score(weights: Float64[Tensor, "draws n"]) -> Float64[Tensor, " draws"]:
        # a divergence is not negative; rounding is
        return (weights @ negative_entropy + entropy(weights @ p)).clamp(min=0.0).exp()

    whole = torch.full((1, len(p)), 1.0 / len(p), dtype=torch.float64, device=p.device)
    drawn = score(_redraws(len(p), seed).to(p.device))
    return around(float(score(whole)), float(drawn.std()), len(p), low=1.0, high=float(p.shape[1]))


def class_accuracy(probabilities: Float[Tensor, "n classes"], asked: Int64[Tensor, " _"]) -> Estimate:
    """Estimate how often the classifier sees the class that was asked for; Wilson's interval.

    Raises:
        WorkbenchError: rows that are not probabilities, or labels of another number.
    """
    p = _checked(probabilities)
    if len(asked) != len(p):
        raise WorkbenchError(f"class accuracy: got {len(asked)} labels for {len(p)} samples; expected one each.")
    return results.rate(int((p.argmax(1) == asked.to(p.device)).sum()), len(p))


def class_entropy(labels: Int64[Tensor, " n"], n_classes: int, seed: int = 0) -> Estimate:
    """Estimate the entropy of the histogram of ``labels``, in nats: at most log(n_classes).

    The plain estimate is too low by about (n_classes - 1) / (2 n). The standard error is the spread over 200
    bootstrap draws.
    """
    seen = _one_hot(labels, n_classes)
    drawn = entropy(_redraws(len(seen), seed) @ seen)
    return around(float(entropy(seen.mean(0))), float(drawn.std()), len(seen), low=0.0)


def class_total_variation(labels: Int64[Tensor, " n"], expected: Float[Tensor, " classes"], seed: int = 0) -> Estimate:
    """Estimate the total variation between the histogram of ``labels`` and ``expected`` probabilities.

        TV = 1/2 Σ_c | share_c - expected_c |

    0 where they agree (up to the sampling error, which only ever adds) and 1 where they share no class. A dropped
    class costs its share. The standard error is the spread over 200 bootstrap draws.

    Raises:
        WorkbenchError: ``expected`` does not add up to 1.
    """
    expected = _checked(expected[None])[0].cpu()
    seen = _one_hot(labels, len(expected))

    def distance(shares: Float64[Tensor, "*draws classes"]) -> Float64[Tensor, "*draws"]:
        return (shares - expected).abs().sum(-1) / 2.0

    drawn = distance(_redraws(len(seen), seed) @ seen)
    return around(float(distance(seen.mean(0))), float(drawn.std()), len(seen), low=0.0, high=1.0)


def entropy(shares: Float64[Tensor, "*draws classes"]) -> Float64[Tensor, "*draws"]:
    """``-Σ p log p`` in nats, with 0 log 0 = 0."""
    return -torch.special.xlogy(shares, shares).sum(-1)


def _checked(probabilities: Float[Tensor, "n classes"]) -> Float64[Tensor, "n classes"]:
    p = probabilities.double()
    if len(p) == 0 or not (bool((p >= 0.0).all()) and bool(((p.sum(1) - 1.0).abs() < 1e-4).all())):
        raise WorkbenchError(
            f"class probabilities: got {tuple(p.shape)}, rows from {float(p.min()) if p.numel() else 0:.3g} that add "
            "up to other than 1, or none; expected a softmax, not logits."
        )
    # a softmax in float32 adds up to 1 within 1e-7 only
    return p / p.sum(1, keepdim=True)


def _one_hot(labels: Int64[Tensor, " n"], n_classes: int) -> Float64[Tensor, "n classes"]:
    if len(labels) == 0 or not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise WorkbenchError(f"labels: got {len(labels)}; expected some, each from 0 to {n_classes - 1}.")
    return torch.nn.functional.one_hot(labels.cpu(), n_classes).double()


def _redraws(n: int, seed: int) -> Float64[Tensor, "draws n"]:
    """The weights of n samples in bootstrap draws: how often each was drawn, over n."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(n, (RESAMPLES, n), generator=generator)
    return torch.zeros(RESAMPLES, n, dtype=torch.float64).scatter_add_(
        1, picks, torch.full_like(picks, 1.0 / n, dtype=torch.float64)
    )
