"""Published scores of generated and predicted crystals, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeNovo:
    """Of 10,000 crystals from nothing (1,000 for the distances), in % and Wasserstein distances; nan: not given."""

    method: str
    structural: float
    compositional: float
    cov_r: float
    cov_p: float
    w_density: float
    w_elements: float
    source: str


@dataclass(frozen=True)
class Prediction:
    """Of the structure of a composition: match rate in % and RMSE, of k predictions."""

    method: str
    k: int
    match: float
    rmse: float
    source: str


@dataclass(frozen=True)
class Speed:
    """Seconds for 1,000 structures of MP-20's sizes, on a GPU."""

    method: str
    seconds: float
    source: str


_CRYS = "as collected in CrysLLMGen, table 2"
_UNIMAT = "Yang et al. 2023, table 1 (arXiv 2311.09235)"
_FLOWMM = "Miller et al. 2024 (arXiv 2406.04713), quoted from memory"
_DIFFCSP = "Jiao et al. 2023, table 1 (arXiv 2309.04475)"

DE_NOVO: dict[str, tuple[DeNovo, ...]] = {
    "perov_5": (
        DeNovo("CDVAE", 100.0, 98.59, 99.45, 98.46, 0.126, 0.063, _CRYS),
        DeNovo("DiffCSP", 100.0, 98.85, 99.74, 98.27, 0.111, 0.013, _CRYS),
        DeNovo("UniMat", 100.0, 98.8, 99.2, 98.2, 0.076, 0.025, _UNIMAT),
        DeNovo("FlowMM", 100.0, 97.91, 99.31, 88.91, 1.210, 0.061, _CRYS),
        DeNovo("CrysBFN", 100.0, 98.86, 99.52, 98.63, 0.073, 0.010, _CRYS),
    ),
    "mp_20": (
        DeNovo("CDVAE", 100.0, 86.70, 99.15, 99.49, 0.687, 1.432, _CRYS),
        DeNovo("DiffCSP", 100.0, 83.25, 99.71, 99.76, 0.350, 0.339, _CRYS),
        DeNovo("UniMat", 97.2, 89.4, 99.8, 99.7, 0.088, 0.056, _UNIMAT),
        DeNovo("FlowMM", 96.85, 83.19, 99.49, 99.58, 0.239, 0.083, _CRYS),
        DeNovo("MatterGen", 100.0, 86.34, 99.59, 99.45, 0.459, 0.254, _CRYS),
    ),
}
PREDICTION: dict[str, tuple[Prediction, ...]] = {
    "perov_5": (
        Prediction("CDVAE", 1, 45.31, 0.1138, _DIFFCSP),
        Prediction("DiffCSP", 1, 52.02, 0.0760, _DIFFCSP),
        Prediction("FlowMM", 1, 53.15, 0.0992, _FLOWMM),
        Prediction("CDVAE", 20, 88.51, 0.0464, _DIFFCSP),
        Prediction("DiffCSP", 20, 98.60, 0.0128, _DIFFCSP),
    ),
    "carbon_24": (
        Prediction("CDVAE", 1, 17.09, 0.2969, _DIFFCSP),
        Prediction("DiffCSP", 1, 17.54, 0.2759, _DIFFCSP),
    ),
    "mp_20": (
        Prediction("CDVAE", 1, 33.90, 0.1045, _DIFFCSP),
        Prediction("DiffCSP", 1, 51.49, 0.0631, _DIFFCSP),
        Prediction("FlowMM", 1, 61.39, 0.0566, _FLOWMM),
        Prediction("FlowMM, all (valid only 59.98)", 1, 66.22, 0.0661, "OMatG-flash, table 1"),
        Prediction("OMatG, all (valid only 63.75)", 1, 69.83, 0.0741, "OMatG-flash, table 1"),
        Prediction("CDVAE", 20, 66.95, 0.1026, _DIFFCSP),
        Prediction("DiffCSP", 20, 77.93, 0.0492, _DIFFCSP),
    ),
}
_LATER = "as collected by later papers, on a GPU that is not named with them"
SPEED: tuple[Speed, ...] = (
    Speed("CDVAE", 25_764.0, _LATER),
    Speed("DiffCSP", 381.0, _LATER),
    Speed("FlowMM", 547.0, _LATER),
    Speed("CrystalFlow", 43.0, _LATER),
)
