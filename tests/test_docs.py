"""The pages of docs/ keep their word: their code runs, their links and figures are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FRAGMENTS = {"composition.md": "shows calls without their world; benchmarks/composition.py runs them"}
"""Pages whose Python blocks do not run, and why."""

COMPILED = {"speed.md"}
"""Pages whose code compiles the loop, which cannot be done through the type checks of the test suite."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def anchors(text: str) -> set[str]:
    """The places that headings make, as GitHub spells them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in FRAGMENTS and blocks(page.read_text())],
    ids=lambda page: page.name,
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path) -> None:
    if page.name in COMPILED:
        code = "\n".join(blocks(page.read_text()))
        found = subprocess.run([sys.executable, "-c", code], cwd=DOCS.parent, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return
    names: dict[str, object] = {"__name__": page.stem}
    for i, code in enumerate(blocks(page.read_text())):
        exec(compile(code, f"{page.name}, block {i + 1}", "exec"), names)


def test_pages_that_do_not_run_exist() -> None:
    assert FRAGMENTS.keys() | COMPILED <= {page.name for page in PAGES}


@every_page
def test_links_and_figures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(other.read_text()), f"{page.name}: {target}"


@every_page
def test_files_and_modules_that_are_named_are_there(page: Path) -> None:
    root = DOCS.parent
    text = page.read_text()
    for path in re.findall(r"`((?:docs|examples|benchmarks|tests|diffusion_core|policy)/[\w/.]+\.\w+)`", text):
        assert (root / path).exists(), f"{page.name}: {path}"
    for module in re.findall(r"python -m ([\w.]+)", text):
        base = root.joinpath(*module.split("."))
        assert base.with_suffix(".py").exists() or (base / "__main__.py").exists(), f"{page.name}: {module}"


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text()))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_every_figure_is_shown_somewhere() -> None:
    shown = {
        name
        for page in [*PAGES, DOCS.parent / "README.md"]
        for name in re.findall(r"\((?:docs/)?([\w.]+\.png)\)", page.read_text())
    }
    assert {figure.name for figure in DOCS.glob("*.png")} <= shown
