"""Crystals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import RESULTS, load, markdown, number, percent
from materials import published

MODELS = {"": "transformer", "_unimat": "UniMat"}


def _found(task: str) -> dict[str, dict[str, Any]]:
    """The evaluations of a task's models."""
    there = {suffix: f"materials/{task}{suffix}" for suffix in MODELS}
    return {MODELS[s]: load(name) for s, name in there.items() if (RESULTS / f"{name}.json").exists()}


def _trained(found: Mapping[str, Any]) -> str:
    model = found["model"]
    samples = model["steps"] * model["batch_size"]
    return f"{model['parameters'] / 1e6:.1f} M parameters, {samples / 1e6:.2f} M samples"


def de_novo(task: str) -> str:
    """Crystals from nothing: ours, the test set itself, the published rows."""
    rows: list[list[str]] = []
    found = _found(task)
    for model, one in found.items():
        if "de_novo" in one:
            m = one["de_novo"]["metrics"]
            given = ", compositions of training crystals" if one.get("compositions") else ""
            rows.append([f"{model}{given}: {_trained(one)}", *_de_novo(m), str(one["de_novo"]["n"]), ""])
    for one in list(found.values())[:1]:
        part = one["test_set"]
        rows.append(["the test set itself", *_de_novo(part["metrics"]), str(part["n"]), ""])
    for line in published.DE_NOVO[task]:
        rates = [f"{x:g}" for x in (line.structural, line.compositional, line.cov_r, line.cov_p)]
        distances = [f"{x:g}" for x in (line.w_density, line.w_elements)]
        rows.append([line.method, *rates, *distances, "", "", "", "10000", line.source])
    head = ["", "structural %", "compositional %", "COV-R %", "COV-P %", "W density", "W elements", "TV systems"]
    return markdown([*head, "unique %", "novel %", "n", "source"], rows)


def _de_novo(m: Mapping[str, Any]) -> list[str]:
    rates = [percent(m.get(name)) for name in ("structure_valid", "composition_valid", "cov_r", "cov_p")]
    distances = [number(m.get(name)) for name in ("w_density", "w_elements", "tv_crystal_systems")]
    return [*rates, *distances, percent(m.get("unique")), percent(m.get("novel"))]


def stability() -> str:
    """Relaxed by CHGNet, against the partial hull."""
    rows = []
    for model, one in _found("mp_20").items():
        m = one["de_novo"]["metrics"]
        if "stable" in m:
            rates = [percent(m[name]) for name in ("relaxed", "stable", "metastable", "sun", "msun")]
            rows.append([model, *rates, number(m["above_partial_hull"]), str(m["stable"]["n"])])
    head = ["", "relaxed %", "stable %", "metastable %", "S.U.N. %", "M.S.U.N. %", "above the partial hull, eV/atom"]
    return markdown([*head, "n"], rows)


def prediction(task: str) -> str:
    """Structures of test compositions: ours and the published rows."""
    rows: list[list[str]] = []
    for model, one in _found(task).items():
        for part in one["predictions"]:
            m = part["metrics"]
            power = part["power"]
            name = f"{model}, density to the power {power:g}" if power != 1.0 else model
            rates = [percent(m["match_rate"]), percent(m["match_rate_valid"])]
            distances = [number(m[k], 4) for k in ("rmse", "rmse_valid")]
            matched = [*rates, *distances, number(m["crmse"], 4), percent(m["metre"])]
            rows.append([name, str(part["k"]), str(part["evaluations"]), *matched, str(part["n"]), ""])
    for line in published.PREDICTION[task]:
        cells = ["", f"{line.match:g}", "", f"{line.rmse:g}"]
        if "all" in line.method:
            cells = [f"{line.match:g}", "", f"{line.rmse:g}", ""]
        rows.append([line.method, str(line.k), "", *cells, "", "", "whole test set", line.source])
    head = ["", "k", "evaluations", "match rate %, all", "valid only", "RMSE, all", "valid only", "cRMSE", "METRe %"]
    return markdown([*head, "n", "source"], rows)


def trust() -> str:
    """Our evaluators on what others have published, and on the test sets."""
    r = load("materials/trust")
    rows = []
    p = r["published_samples"]
    said = p["reported"]
    pairs = (
        ("structure_valid", "structural validity, %", 100.0),
        ("composition_valid", "compositional validity, %", 100.0),
    )
    for key, name, scale in pairs:
        rows.append(
            [f"10,000 DiffCSP samples (MP-20): {name}", percent(p[key]), f"{scale * said[key]:.2f}", str(p["n"])]
        )
    for key, name in (("w_density", "Wasserstein, density"), ("w_elements", "Wasserstein, number of elements")):
        text = f"the same, 1,000 of the valid ones: {name}, to the binary and ternary test entries"
        rows.append([text, number(p[key]), f"{said[key]:g} (to the whole test set)", str(p[key]["n"])])
    for task, one in r["test_sets"].items():
        text = f"{task}, test set itself: structural, compositional validity, %"
        cells = f"{percent(one['structure_valid'])}, {percent(one['composition_valid'])}"
        rows.append([text, cells, "", str(one["n"])])
    e, h = r["formation_energy"], r["partial_hull"]
    text = "formation energy of MP-20 test entries by CHGNet, eV/atom: mean absolute error, bias"
    rows.append([text, f"{number(e['mae'])}, {number(e['bias'])}", "", str(e["mae"]["n"])])
    text = "energy above the partial hull against the Materials Project's, eV/atom: mean absolute error"
    rows.append([text, number(h["mae"], 4), "", str(h["mae"]["n"])])
    rows.append(
        [
            "the same: within 5 meV/atom, %; too high, %",
            f"{percent(h['within_5_mev'])}; {percent(h['too_high'])}",
            "",
            str(h["mae"]["n"]),
        ]
    )
    return markdown(["", "ours", "published", "n"], rows)


def throughput() -> str:
    """What an evaluator costs."""
    rows = [
        [name, f"{_short(1e3 * e['value'])} ± {_short(1e3 * e['stderr'])}", str(e["n"])]
        for name, e in load("materials/trust")["throughput"].items()
    ]
    return markdown(["", "ms per crystal on one core", "n"], rows)


def _short(value: float) -> str:
    """About two digits, never an exponent."""
    return f"{value:.0f}" if value >= 10.0 else f"{value:.2g}"


def composition() -> str:
    """Two networks trained apart, multiplied."""
    r = load("materials/composition")
    blocks = []
    for part in r["parts"]:
        (d0, d1), (x0, x1) = part["ranges"].values()
        title = f"density {d0:g}–{d1:g} g/cm³, electronegativity difference {x0:g}–{x1:g}"
        rows = [["the training data", "", "", percent(part["data"]), "", "", "", ""]]
        rows += [
            [
                name,
                *(percent(one.get(k)) for k in ("density", "electronegativity_difference", "both", "both_and_valid")),
                str(one.get("formulas_among_hits", "")),
                str(one["evaluations"]),
                f"{one['seconds']:.0f}",
            ]
            for name, one in part["methods"].items()
        ]
        head = [title, "density %", "difference %", "both %", "both, valid %", "formulas among them"]
        blocks.append(markdown([*head, "evaluations a crystal", f"s for {r['n']}"], rows))
    return "\n\n".join(blocks)


def editing() -> str:
    """Sublattices, chemical systems, perturbed crystals."""
    r = load("materials/editing")
    rows = []
    for name, one in (
        ("most frequent element kept, the rest drawn", r["sublattice"]),
        ("chemical system of a test crystal", r["chemical_system"]),
        *((f"perturbed to t = {one['strength']:g} and drawn again", one) for one in r["perturbed"]),
    ):
        exact = ""
        if "largest_move_of_kept_sites_in_A" in one:
            exact = f"kept sites move at most {one['largest_move_of_kept_sites_in_A']:.1g} Å"
        if "violations" in one:
            exact = f"{one['violations']} of {one['n']} have another element"
        rows.append([name, percent(one["match_rate"]), percent(one["valid"]), exact, str(one["n"])])
    return markdown(["", "matches the test crystal %", "valid %", "", "n"], rows)


def steps() -> str:
    """Evaluations, match rate and time."""
    rows = []
    for task in ("perov_5", "mp_20"):
        if not (RESULTS / f"materials/steps_{task}.json").exists():
            continue
        r = load(f"materials/steps_{task}")
        for row in r["rows"]:
            rows.append(
                [
                    f"{task}, {r['mean_atoms']:.1f} atoms",
                    row["coords"],
                    str(row["evaluations"]),
                    percent(row["match_rate"]),
                    number(row["rmse"]),
                    percent(row["structure_valid"]),
                    f"{row['seconds_per_1000']:.1f}",
                    f"{row['structures_per_second_per_evaluation']:.0f}",
                    str(r["n"]),
                ]
            )
    for line in published.SPEED:
        rows.append([f"{line.method}, MP-20", "", "", "", "", "", f"{line.seconds:g}", "", line.source])
    head = ["", "coordinates", "evaluations", "match rate %", "RMSE", "structural %", "s per 1,000"]
    return markdown([*head, "structures / s / evaluation", "n, source"], rows)


TABLES = {
    "materials_trust": trust,
    "materials_throughput": throughput,
    "materials_perov_5": lambda: de_novo("perov_5"),
    "materials_perov_5_prediction": lambda: prediction("perov_5"),
    "materials_mp_20": lambda: de_novo("mp_20"),
    "materials_mp_20_prediction": lambda: prediction("mp_20"),
    "materials_stability": stability,
    "materials_composition": composition,
    "materials_editing": editing,
    "materials_steps": steps,
}
