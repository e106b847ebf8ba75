"""docs/features.md names for every feature a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "diffusion_core"
PAGE = (ROOT / "docs" / "features.md").read_text()
GROUPS = (
    "Schedules",
    "Predictions",
    "Losses",
    "Samplers",
    "Guidance",
    "Composition",
    "Likelihood",
    "Distillation",
    "Fields",
    "Speed",
    "Beyond the list",
)


def rows() -> list[tuple[str, list[str]]]:
    """(group, cells) of every feature."""
    found, group = [], ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            group = line[3:]
        elif line.startswith("|") and not line.startswith(("| feature", "| ---")):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.append((group, [cell.strip() for cell in cells]))
    return found


def functions(path: Path) -> set[str]:
    """Names of the test functions of a file, without importing it."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def problems(cells: list[str]) -> list[str]:
    """What is wrong with a row: an empty cell, no test, or a test that is not there."""
    wrong = ["empty cell"] * any(not cell for cell in cells) + ["5 cells expected"] * (len(cells) != 5)
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", cells[2])
    if not named and not cells[2].startswith("none: "):
        wrong.append("neither a test nor 'none: <reason>'")
    for file, name in named:
        path = TESTS / file
        if not path.exists() or name not in functions(path) or not name.startswith("test_"):
            wrong.append(f"{file}::{name} does not exist")
    return wrong


@pytest.mark.parametrize(("group", "cells"), rows(), ids=[cells[0] for _, cells in rows()])
def test_every_feature_names_a_test_that_exists(group: str, cells: list[str]) -> None:
    assert not problems(cells)


def test_no_group_and_no_feature_is_missing() -> None:
    listed = [group for group, _ in rows()]
    assert list(dict.fromkeys(listed)) == list(GROUPS)
    assert sum(group != "Beyond the list" for group in listed) == 60


def test_counts_are_of_sixteen() -> None:
    for group, (name, _, _, yes, part) in rows():
        if group != "Beyond the list":
            assert 0 <= int(yes) + int(part) <= 16, name


def test_what_is_missing_is_seen() -> None:
    assert problems(["a", "b", "`test_sample.py::test_there_is_no_such_test`", "0", "0"])
    assert problems(["a", "b", "`test_nowhere.py::test_the_start_is_not_modified`", "0", "0"])
    assert problems(["a", "b", "", "0", "0"])
    assert not problems(["a", "b", "none: a reason", "0", "0"])


def test_names_in_the_second_column_are_names_of_the_core() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "diffusion_core").rglob("*.py"))
    for _, cells in rows():
        for name in re.findall(r"`(?:\w+\.)*([A-Za-z]\w*)`", cells[1]):
            assert re.search(rf"\b{name}\b", sources), f"{cells[0]}: {name}"
