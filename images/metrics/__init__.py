"""Measurements of samples: every number is an estimate with its error, and its name says which extractor it needs."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core.errors import WorkbenchError
from diffusion_core.results import Estimate
from images.metrics.distance import frechet_distance, kid
from images.metrics.neighbours import density_coverage, memorisation, nearest, precision_recall
from images.metrics.score import class_accuracy, class_entropy, class_total_variation, inception_score

__all__ = [
    "class_accuracy",
    "class_entropy",
    "class_total_variation",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "kid",
    "measure",
    "memorisation",
    "nearest",
    "precision_recall",
]


def measure(
    samples: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    extractor: str,
    *,
    probabilities: Float[Tensor, "n classes"] | None = None,
    asked: Int64[Tensor, " n"] | None = None,
    expected: Float[Tensor, " classes"] | None = None,
    training: Float[Tensor, "t d"] | None = None,
) -> dict[str, Estimate]:
    """Measure samples against a held-out reference with all that the given inputs allow.

    Args:
        samples, reference: features of one extractor.
        extractor: its id, which becomes part of every name: ``FD[digits-features-v1]``.
        probabilities: the extractor's class probabilities of the samples; adds IS and the class histogram's entropy.
        asked: the class that each sample was asked for; adds accuracy. Needs ``probabilities``.
        expected: the reference's share of every class; adds the total variation. Needs ``probabilities``.
        training: features of the training pictures; adds copied, the share of samples nearer to one of them than 99 %
            of the reference is.

    Returns:
        FD, KID, precision, recall, density, coverage, and of IS, entropy, accuracy, TV, copied those asked for;
        each named ``<metric>[<extractor>]``.

    Raises:
        WorkbenchError: features that cannot be compared; an input that another one needs is missing; the extractor's
            name claims to be Inception's.
    """
    if extractor.lower().startswith("inception"):
        raise WorkbenchError(
            f"measure: got extractor {extractor}; expected any other: images.metrics.inception is FID."
        )
    if probabilities is None and (asked is not None or expected is not None):
        raise WorkbenchError("measure: got asked or expected classes without probabilities; expected those, too.")
    manifold, balls = precision_recall(samples, reference), density_coverage(samples, reference)
    found = {
        "FD": frechet_distance(samples, reference),
        "KID": kid(samples, reference),
        "precision": manifold.precision,
        "recall": manifold.recall,
        "density": balls.density,
        "coverage": balls.coverage,
    }
    if probabilities is not None:
        seen = probabilities.argmax(1)
        found["IS"] = inception_score(probabilities)
        found["entropy"] = class_entropy(seen, probabilities.shape[1])
        if asked is not None:
            found["accuracy"] = class_accuracy(probabilities, asked)
        if expected is not None:
            found["TV"] = class_total_variation(seen, expected)
    if training is not None:
        found["copied"] = memorisation(samples, training, reference).copied
    return {f"{name}[{extractor}]": estimate for name, estimate in found.items()}
