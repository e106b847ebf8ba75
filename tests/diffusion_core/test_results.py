"""Estimates against scipy and against their own promise, coverage; files that are all there and are JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffusion_core import results
from diffusion_core.results import Estimate


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rates_have_wilsons_interval(counts):
    successes, n = counts
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    got = results.rate(successes, n)
    assert (got.value, got.n, got.unit) == (successes / n, n, "1")
    assert got.low == pytest.approx(expected.low, abs=1e-12)
    assert got.high == pytest.approx(expected.high, abs=1e-12)
    assert got.stderr == pytest.approx(math.sqrt(got.value * (1 - got.value) / n))


def within(covered: int, trials: int, promised: float, k: float = 4.0) -> bool:
    return abs(covered / trials - promised) < k * math.sqrt(promised * (1.0 - promised) / trials)


def test_the_bootstrap_interval_of_a_mean_covers_it_as_often_as_theory_says():
    """The percentile bootstrap of n normal values is mean -+ 1.96 s sqrt((n-1)/n) / sqrt(n): its coverage is known."""
    n, trials = 40, 600
    generator = np.random.default_rng(0)
    estimates = [results.mean(generator.normal(3.0, 2.0, n).tolist(), "m", resamples=1000) for _ in range(trials)]
    promised = 2.0 * stats.t(n - 1).cdf(1.959964 * math.sqrt((n - 1) / n)) - 1.0
    assert 0.93 < promised < 0.95
    assert within(sum(e.low <= 3.0 <= e.high for e in estimates), trials, promised)
    spread = np.std([e.value for e in estimates], ddof=1)
    assert np.mean([e.stderr for e in estimates]) == pytest.approx(spread, rel=4.0 / math.sqrt(2 * trials))
    assert all(e.n == n and e.unit == "m" for e in estimates)


def test_the_same_values_give_the_same_interval_and_one_value_has_no_interval():
    values = [0.2, 0.9, 0.4]
    assert results.mean(values) == results.mean(values)
    alone = results.mean([0.5])
    assert (alone.value, alone.n) == (0.5, 1) and math.isnan(alone.low) and math.isnan(alone.high)


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_the_interval_of_a_quantile_covers_it_whatever_the_distribution(q):
    """Order statistics j and k (1-based) hold the quantile with P(j <= Binomial(n, q) < k), exactly."""
    n, trials = 100, 2000
    j = math.floor(n * q - 1.96 * math.sqrt(n * q * (1 - q))) + 1
    k = min(math.ceil(n * q + 1.96 * math.sqrt(n * q * (1 - q))) + 1, n)
    promised = stats.binom(n, q).cdf(k - 1) - stats.binom(n, q).cdf(j - 1)
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(trials):
        estimate = results.quantile(generator.exponential(2.0, n).tolist(), q, "ms")
        covered += estimate.low <= -2.0 * math.log(1.0 - q) <= estimate.high
    assert promised > 0.93
    assert within(covered, trials, promised)


def test_a_quantile_is_numpys():
    values = np.random.default_rng(2).normal(size=37).tolist()
    assert results.quantile(values, 0.3, "ms").value == np.quantile(values, 0.3)


@pytest.mark.parametrize("empty", [results.mean([]), results.rate(0, 0), results.quantile([], 0.5, "ms")])
def test_nothing_measured_is_not_a_number(empty, tmp_path):
    assert empty.n == 0 and math.isnan(empty.value) and math.isnan(empty.low)
    results.write_json(tmp_path / "a.json", empty)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["n"] == 0 and all(found[k] is None for k in ("value", "stderr", "low", "high"))


def test_what_is_written_is_strict_json_and_what_is_not_finite_is_null(tmp_path):
    content = {
        "estimate": Estimate(math.nan, math.inf, -math.inf, 1.0, 3, "ms"),
        "deep": [{"x": (1.0, math.nan)}, np.array([1.5, np.inf]), np.float32("nan"), np.int64(4), np.bool_(True)],
        "plain": ["text", 1, True, None, Path("a/b")],
        7: 0.1,
    }
    file = tmp_path / "new" / "folder" / "result.json"
    results.write_json(file, content)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(file.read_text(), parse_constant=refuse) == {
        "estimate": {"value": None, "stderr": None, "low": None, "high": 1.0, "n": 3, "unit": "ms"},
        "deep": [{"x": [1.0, None]}, [1.5, None], None, 4, True],
        "plain": ["text", 1, True, None, "a/b"],
        "7": 0.1,
    }


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    results.write_json(file, {"a": 1})
    with pytest.raises(TypeError, match="cannot write object as JSON"):
        results.write_json(file, {"a": object()})

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        results.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


def test_hardware_and_commit_say_where_numbers_come_from():
    here = results.hardware()
    assert {"cpu", "cores", "torch_threads", "python", "torch"} <= here.keys() and here["cores"] >= 1
    assert results.commit() == "unknown" or len(results.commit().rstrip("+")) == 12
