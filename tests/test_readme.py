"""README keeps its word: its code runs, its tables are its results files, what it names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_python_blocks_run_and_sample_the_mixture_and_the_product() -> None:
    first, second = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(first, "README.md", "exec"), names)
    x = names["x"]
    # 0.7 of the mass sits at +1; 1000 draws have a standard error of 0.0145
    assert abs(float((x > 0).double().mean()) - 0.7) < 5 * 0.0145  # type: ignore[operator]
    exec(compile(second, "README.md", "exec"), names)
    x = names["x"]
    assert bool((x[:, 1] == 0.5).all())  # type: ignore[index]
    # the product: precision 2 / 0.25 - 1, mean (2 * 4 * 1 + 0.3) / 7; guidance goes further out than that
    assert float(x[:, 0].mean()) > 8.3 / 7.0  # type: ignore[index]


def test_tables_are_what_the_results_files_say() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.render", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert target.startswith("http") or (ROOT / target).exists()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (\w+(?:\.\w+)+)", README))))
def test_commands_exist(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_make_has_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{goal}:", makefile, re.MULTILINE)
